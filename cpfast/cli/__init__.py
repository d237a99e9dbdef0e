"""The command line: `cpfast train | compare | report | env`."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch

import cpfast
from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import recipes
from cpfast.train import compare, data, energy, loop, models, plots, process, report, run
from cpfast.train.compare.options import add_options, plan_from
from cpfast.train.compare.show import show
from cpfast.train.config import (
    ENVIRONMENT,
    LABELS,
    MODELS,
    NAMED,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    STEPS,
    Config,
    differences,
)
from cpfast.train.errors import UserError, require
from cpfast.train.progress import ProgressBar
from cpfast.train.runfolder import CONFIG, RunFolder, new_folder

ROTATION_PICTURE = "rotation.png"


OUT_OF_MEMORY = "out of memory: use a smaller --limit, --batch-size or --model"


class Interrupted(Exception):
    """Ctrl-C, with a line that says how to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 for Ctrl-C, 141 for a pipe
    whose reader has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = vars(_parser().parse_args(arguments))
        command = options.pop("command")
        if command == "train":
            _train(options)
        elif command == "compare":
            _compare(options, arguments)
        elif command == "report":
            _report(options)
        else:
            _env()
        sys.stdout.flush()  # so that a reader that has gone is noticed here
        return 0
    except UserError as error:
        return _fail(str(error))
    except torch.OutOfMemoryError:
        return _fail("the device is out of memory: use a smaller --batch-size or --model")
    except MemoryError:
        return _fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # as torch's allocator for the CPU says it
            raise
        return _fail(OUT_OF_MEMORY)
    except BrokenPipeError:
        # As `head` leaves it. What is still buffered must not fail at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Interrupted as stop:
        print(f"\ncpfast: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\ncpfast: interrupted", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"cpfast: error: {message}", file=sys.stderr)
    return 2


# --- commands -------------------------------------------------------------------------------


def _train(options: dict[str, Any]) -> None:
    out, resume = options.pop("out"), options.pop("resume")
    download = options.pop("download")
    folder = None if out is None else RunFolder(out)
    if resume:
        if folder is None:
            raise UserError("--resume needs --out RUN, the folder of the run")
        config = _resumed_config(folder, options)
    else:
        if folder is not None:
            folder.check_free()
        config = Config.from_options({**options, "device": _device(options["device"])})
    _prepare(config)
    dataset = data.load(config.data, config.limit, progress=True, download=download)
    loop.check(config, dataset)
    header = _header(config, dataset)  # it builds the model, and so checks that too
    if folder is None:
        name = f"{report.data_name(config.replace(limit=None))}-{config.model}-{config.method}"
        folder = RunFolder(new_folder(Path("runs"), name))
    with folder.locked():
        if not resume:
            folder.create(config)
        print(header)
        done = folder.epochs()
        state = ", finished" if done == config.epochs else f", after epoch {done}"
        print(f"run folder {folder.path}{state if done else ''}", flush=True)
        try:
            with ProgressBar(config.epochs, done) as bar:
                run.train(config, dataset, folder, progress=bar)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted after epoch {folder.epochs()} of {config.epochs}; continue "
                f"with: cpfast train --resume --out {shlex.quote(str(folder.path))}"
            ) from None
        print()
        _show_run(folder, config.plot)


def _resumed_config(folder: RunFolder, options: dict[str, Any]) -> Config:
    stored = folder.config()
    other = differences(options, stored)
    if other:
        raise UserError(f"--resume {folder.path}: cannot change {'; '.join(other)}")
    changes = {k: v for k, v in options.items() if k in ENVIRONMENT and v is not None}
    return stored.replace(**{**changes, "device": _device(changes.get("device", stored.device))})


def _compare(options: dict[str, Any], arguments: list[str]) -> None:
    out, download = options.pop("out"), options.pop("download")
    plan = plan_from({**options, "device": _device(options["device"])})
    config = plan.config
    _prepare(config)
    path = Path(out) if out is not None else compare.default_folder(plan)
    folder = RunFolder(path)
    compare.check_folder(path)
    dataset = data.load(config.data, config.limit, progress=True, download=download)
    header = _header(config, dataset)
    with folder.locked():
        results = compare.open_results(plan, dataset.train_size, path)
        print(header)
        done, wanted = len(results["runs"]), plan.wanted(results)
        print(f"comparison in {path}" + (f", {done} of {wanted} runs done" if done else ""))
        for note in compare.environment_notes(results["environments"])[1:]:
            print(note)
        try:
            results = compare.run(plan, dataset, path, ProgressBar, _print_entry)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; what is done is kept; continue with the same command: "
                f"cpfast {shlex.join(arguments)}"
            ) from None
        print()
        print(show(path, results, config.plot))


def _report(options: dict[str, Any]) -> None:
    for number, folder in enumerate(options["runs"]):
        if number:
            print()
        path = Path(folder)
        if (path / compare.RESULTS).exists():
            print(show(path, compare.read_results(path), options["plot"] is not False))
        elif (path / CONFIG).exists():
            _show_run(RunFolder(path), options["plot"] is not False)
        else:
            raise UserError(
                f"{path}: no run and no comparison here (no {CONFIG}, no {compare.RESULTS})"
            )


def _env() -> None:
    rows = [("python", platform.python_version()), ("torch", torch.__version__)]
    for name in ("cpfast", "numpy", "scikit-learn", "matplotlib", "codecarbon", "pillow", "tqdm"):
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("backend", cpfast.backend()))
    rows += [(f"build {key}", str(value)) for key, value in cpfast.build_info().items()]
    rows.append(("platform", platform.platform()))
    rows.append(("CPU", f"{os.cpu_count()} threads, torch uses {torch.get_num_threads()}"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            rows.append((f"cuda:{index}", f"{properties.name}, {memory}"))
    else:
        rows.append(("CUDA", f"none ({_no_cuda()})"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


# --- their parts ----------------------------------------------------------------------------


def _prepare(config: Config) -> None:
    """Fail for a missing library before anything is read or written; set up the process."""
    require("tqdm", "the progress bar")
    if config.energy:
        energy.grams_per_kwh(config.country)
    if config.plot:
        require("matplotlib", "a picture", ", or pass --no-plot")
    process.prepare(config)


def _device(name: str | None) -> str:
    """The device to run on; without a name, CUDA where both torch and cpfast have it.

    Raises:
        UserError: the device is not there.
    """
    if name is None:
        usable = torch.cuda.is_available() and cpfast.backend() != "cpu"
        return "cuda:0" if usable else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: {_no_cuda()}; or use --device cpu")
    if cpfast.backend() == "cpu":
        raise UserError(
            f"--device {name}: this cpfast is built without CUDA; rebuild it where nvcc is found: "
            "CPFAST_CUDA=1 pip install --no-build-isolation .; or use --device cpu"
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: there is only {_counted(torch.cuda.device_count(), 'CUDA device')}"
        )
    return f"cuda:{index}"


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one with CUDA"
    return "torch finds no CUDA device; check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"


def _header(config: Config, dataset: data.ImageData | data.TextData) -> str:
    model = models.build(config.model, dataset.shape, dataset.outputs, 0)
    threads = f" ({_counted(torch.get_num_threads(), 'thread')})" if config.device == "cpu" else ""
    return (
        f"{dataset.describe()}\n"
        f"{config.model}, {models.count_parameters(model):,} parameters; {config.epochs} epochs; "
        f"{config.precision} on {config.device}{threads}; ops: {cpfast.backend()}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _print_entry(entry: compare.Entry) -> None:
    print(compare.entry_line(entry), flush=True)


def _show_run(folder: RunFolder, plot: bool) -> None:
    summary = report.summarise(folder)
    picture = None
    if plot:
        picture = folder.path / ROTATION_PICTURE
        plots.draw_run(summary, picture)
    print(report.run_table(summary, picture))


# --- options --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Knows all: the command itself refuses the rest, and names its own help."""
        options, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cpfast",
        description="Train with fewer samples once the critical learning period has ended.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    train = commands.add_parser("train", help="train one model; with no option, on digits")
    train.add_argument("--method", choices=tuple(recipes), help="default: detector+prune")
    _add_common(train)
    train.add_argument("--policy", choices=tuple(policies), help="data pruning; default: infobatch")
    train.add_argument("--keep", type=float, help="share that pruning keeps; default: 0.5")
    train.add_argument(
        "--anneal",
        type=float,
        help="share after which all is spent again: with a detector of what follows the period's "
        "end (data and repeats), with prune of the training (data); "
        "default: pruning stops at 0.875 of the training, repeats stay at 1",
    )
    train.add_argument("--out", help="run folder; default: a new one in runs/")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")

    arms = commands.add_parser(
        "compare", help="arms over seeds, with the fair controls; or --falsify, or --oracle"
    )
    add_options(arms)
    _add_common(arms)
    arms.add_argument("--out", help="folder; the same one continues; default: in runs/")

    shown = commands.add_parser("report", help="show the tables and redraw the pictures of runs")
    shown.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or a comparison")
    shown.add_argument("--no-plot", dest="plot", action="store_const", const=False)

    commands.add_parser("env", help="versions, backend, build, devices")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Options of train and compare. None means not given: the default depends on the data."""
    add = parser.add_argument
    add("--data", help=f"{', '.join(NAMED)}; or a folder or file of images; default: digits")
    add("--download", action="store_true", help="fetch --data if it is missing")
    add("--limit", type=int, help="train on so many images, stratified, or sequences")
    add(
        "--model",
        choices=MODELS,
        help="default: cnn for digits and mnist, transformer for text, else resnet20",
    )
    add("--epochs", type=int, help="default: 200; digits 120, mnist 20, text 10")
    add(
        "--repeats",
        type=int,
        help="augmented passes an epoch in the period (k); default: 3, for text 1",
    )
    add("--batch-size", type=int, help="default: 128; for digits and text 32")
    add("--optimizer", choices=OPTIMIZERS, help="default: sgd, for text adamw")
    add("--lr", type=float, help="default: of sgd, batch size / 32 x 0.01 (cnn: x 0.1); else fixed")
    add("--weight-decay", type=float, help="of kernels only; default: 2e-4, for text 0.1")
    add(
        "--schedule", choices=SCHEDULES, help="of the learning rate; default: step, for text cosine"
    )
    add("--criterion", choices=tuple(criteria), help="of the period's end; default: slope45")
    add(
        "--at",
        type=int,
        help="epoch of --criterion fixed; of the arm fixed, default: an eighth of all",
    )
    add("--labels", choices=LABELS, help="random: a control with nothing to learn; default: true")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror images; default: not for digits, mnist and other idx files by path",
    )
    add("--seed", type=int, help="default: 0")
    add("--eval-every", type=int, help="epochs between evaluations; default: a tenth of all")
    add("--device", help="cpu, cuda or cuda:N; default: cuda if there is one")
    add("--precision", choices=PRECISIONS, help="default: fp32 on the CPU, else bf16")
    add(
        "--step",
        choices=STEPS,
        help="how a training step is executed; default: eager on the CPU, else graph",
    )
    add("--threads", type=int, help="of the CPU; default: 1 for cnn, else half of the processors")
    add("--no-energy", dest="energy", action="store_const", const=False)
    add("--country", help="whose electricity makes the CO2e, as BRA; default: the world's mean")
    add("--price-kwh", type=float, help="of the cost, in any currency; evaluation is included")
    add("--price-hour", type=float, help="of the machine; the cost is the sum of both prices")
    add("--no-plot", dest="plot", action="store_const", const=False)
