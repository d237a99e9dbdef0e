"""`cpfast train`: one run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
from pathlib import Path
from typing import Any

import torch

from cpfast.cli import settings_file
from cpfast.cli.options import Parser, add_run_options, device_of
from cpfast.cli.report import show_run
from cpfast.cli.start import Interrupted, header, prepare, together
from cpfast.pruning import policies
from cpfast.recipes import RecipeFile, recipes
from cpfast.train import data, extension, loggers, models, ranks, report, run
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.config import ENVIRONMENT, Config, differences
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.progress import ProgressBar
from cpfast.train.ranks import Ranks
from cpfast.train.runfolder import RunFolder

EXAMPLES = """\
examples:
  cpfast train
  cpfast train --data photos --out runs/photos
  cpfast train --data table.csv --label species --class-weight balanced
  cpfast train --data cifar10 --download --method paper
  cpfast train --config runs/photos/config.toml --seed 1
  cpfast train --resume --out runs/photos
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train one model; with no option, on digits",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=functools.partial(_run, parser))
    spent = parser.add_argument_group("what is spent")
    method = spent.add_mutually_exclusive_group()
    method.add_argument(
        "--method",
        choices=tuple(recipes),
        help="a named recipe; default: fast, with --preset paper detector+prune",
    )
    method.add_argument("--recipe", metavar="FILE", help="a recipe of your own, in TOML")
    add_run_options(parser)
    augmenting = parser.add_argument_group("augmentation")
    judging = parser.add_argument_group("the critical period, more closely")
    augmenting.add_argument(
        "--augment",
        choices=tuple(AUGMENTATIONS),
        help="of images: paper: turns and shifts; crop-flip: shifts alone; randaugment: shifts, "
        "then two of 14 operations for each image, by torchvision; none: nothing, and no "
        "mirroring; default: paper",
    )
    parser.add_argument(
        "--mixup", type=float, metavar="ALPHA", help="mixtures of two images; default: none"
    )
    parser.add_argument(
        "--cutmix", type=float, metavar="ALPHA", help="images with a part of another"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="add up the gradients of so many batches before a step, where N x batch size samples "
        "at a time do not fit in memory; default: 1",
    )
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="evaluate and keep an exponential moving average of the weights, as 0.999; default: "
        "the weights as they are",
    )
    judging.add_argument("--at", type=int, help="epoch of --criterion fixed")
    judging.add_argument(
        "--watch",
        metavar="all|NAME[,NAME]",
        help="criteria that judge beside --criterion, without consequence; what they find and cost "
        "goes to metrics.jsonl",
    )
    judging.add_argument(
        "--patience",
        type=int,
        help="judged epochs in a row for which a verdict must hold; default: 1",
    )
    judging.add_argument(
        "--not-before",
        type=int,
        help="the first epoch that is judged; default: the criterion's own",
    )
    spent.add_argument("--policy", choices=tuple(policies), help="data pruning; default: infobatch")
    spent.add_argument(
        "--keep", type=float, help="share that pruning keeps; default: the policy's, 0.5 for most"
    )
    spent.add_argument(
        "--anneal",
        type=float,
        help="share after which all is spent again: with a detector of what follows the period's "
        "end (data and repeats), with prune of the training (data); "
        "default: pruning stops at 0.875 of the training, repeats stay at 1",
    )
    parser.add_argument(
        "--limit-test",
        type=int,
        metavar="N",
        help="evaluate on so many test samples, those with classes stratified; default: all",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        metavar="EPOCHS",
        help="between two checkpoints, from which --resume goes on; the last epoch is always "
        "saved; default: 1",
    )
    parser.add_argument(
        "--log",
        metavar=",".join(loggers.loggers),
        help="where the metrics go beside metrics.jsonl, one or several: csv: metrics.csv; "
        "tensorboard: tensorboard/, both in the run folder; wandb: Weights & Biases "
        "(WANDB_MODE=offline keeps it there too); default: nowhere else",
    )
    parser.add_argument(
        "--quiet", "-q", action="store_true", help="no line an epoch where there is no terminal"
    )
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        help="settings by the names of these options, as epochs = 50; what is given here as well "
        "counts. Each run writes one, config.toml",
    )
    parser.add_argument("--out", help="run folder; default: a new one in runs/")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; with --epochs, for so many in all",
    )


def _run(parser: Parser, options: dict[str, Any], arguments: list[str]) -> None:
    file = options.pop("config")
    if file is not None:
        options = settings_file.merged(options, settings_file.read(file, parser), parser)
    with together(device_of(options["device"])) as joined:
        _train(options, joined)


def _train(options: dict[str, Any], joined: Ranks) -> None:
    out, resume = options.pop("out"), options.pop("resume")
    download, quiet = options.pop("download"), options.pop("quiet")
    options.update(_of_file(options.pop("recipe")))
    if out is None and ranks.may_restart():
        raise UserError("--out: needed with torchrun --max-restarts, to find the run again")
    folder = None if out is None else RunFolder(joined.mirrored(Path(out)))
    if folder is not None and ranks.is_restarted() and folder.is_run():
        resume = True
    if options["preset"] is None:
        options["preset"] = "paper" if options["method"] == "paper" else "fast"
    device = device_of(options["device"])
    if resume:
        if folder is None:
            raise UserError("--resume needs --out RUN, the folder of the run")
        config = _resumed_config(folder, options)
        epochs = config.epochs
        if options["epochs"] is not None:
            config = extension.extended(config, options["epochs"], folder.epochs())
    else:
        if folder is not None:
            folder.check_free()
        config = Config.from_options({**options, "device": device})
    config = prepare(config, options)
    loggers.check(loggers.named(config.log))
    with joined.first():
        dataset = data.load(config.data, config.limit, joined.is_first, download, **config.reading)
    if not resume:
        shown = {"energy": config.energy, "plot": config.plot}
        options = {**options, **shown, "device": device}
        config = Config.from_options(options, dataset.train_size)
    training = Training(config, dataset.to(torch.device(config.device)))
    if folder is None:
        name = f"{report.data_name(config.replace(limit=None))}-{config.model}-{config.method}"
        name = name.replace(":", "-")
        folder = RunFolder(joined.new_folder(Path("runs"), name))
    with folder.locked():
        if not resume:
            folder.create(config)
            settings_file.write(config, folder.path, dataset.reads)
        elif config.epochs > epochs:
            print(extension.extend(folder, config))
            settings_file.write(folder.config(), folder.path, dataset.reads)
        print(header(config, dataset, models.count_parameters(training.model)))
        if training.loaded is not None and not resume:
            print(f"begins with {training.loaded}")
        done = folder.epochs()
        state = ", finished" if done == config.epochs else f", after epoch {done}"
        print(f"run folder {folder.path}{state if done else ''}", flush=True)
        try:
            with (
                contextlib.closing(_log(training, folder, joined)) as log,
                ProgressBar(config.epochs, done, shown=joined.is_first, lines=not quiet) as bar,
            ):
                run.advance(training, folder, progress=bar, log=log)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted after epoch {folder.epochs()} of {config.epochs}; continue "
                f"with: cpfast train --resume --out {shlex.quote(str(folder.path))}"
            ) from None
        print()
        show_run(folder, config.plot, keep=joined.is_first)


def _log(training: Training, folder: RunFolder, joined: Ranks) -> loggers.Log:
    """Of the first process; of the others one without loggers."""
    config = training.config
    names = loggers.named(config.log) if joined.is_first else ()
    return loggers.Log(names, folder.path, config.to_dict(), training.data.train_size)


def _of_file(path: str | None) -> dict[str, Any]:
    """What a recipe's file sets.

    Raises:
        UserError: it cannot be read, or is no recipe.
    """
    if path is None:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        RecipeFile.parse(text, path, Path(path).stem)
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--recipe {error}") from error
    return {"recipe_text": text, "method": Path(path).stem}


def _resumed_config(folder: RunFolder, options: dict[str, Any]) -> Config:
    stored = folder.config()
    kept = {k: v for k, v in options.items() if k not in ("preset", "epochs")}
    other = differences(kept, stored)
    if other:
        raise UserError(f"--resume {folder.path}: cannot change {'; '.join(other)}")
    changes = {k: v for k, v in options.items() if k in ENVIRONMENT and v is not None}
    return stored.replace(**{**changes, "device": device_of(changes.get("device", stored.device))})
