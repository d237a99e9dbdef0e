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
from cpfast.cli.options import (
    AUGMENTATION,
    DATA,
    METHOD,
    MODEL,
    OUTPUT,
    PERIOD,
    TRAINING,
    Parser,
    add_run_options,
    counted,
    device_of,
    group,
    percent,
)
from cpfast.cli.report import show_run
from cpfast.cli.start import Interrupted, header, prepare, together
from cpfast.pruning import policies
from cpfast.recipes import RecipeFile, recipes
from cpfast.train import data, extension, guard, loggers, models, ranks, report, run
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


DESCRIPTION = """\
Train one model. A run keeps its settings, metrics, checkpoint and model in a folder of its own;
with no option it trains on scikit-learn's digits.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train one model; with no option, on digits",
        usage="cpfast train [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=functools.partial(_run, parser))
    for title in (DATA, AUGMENTATION, MODEL, METHOD):  # in this order
        group(parser, title)
    method = group(parser, METHOD).add_mutually_exclusive_group()
    method.add_argument(
        "--method",
        choices=tuple(recipes),
        metavar="NAME",
        help=f"{', '.join(recipes)} (cpfast list recipes); default: fast, with --preset paper "
        "detector+prune",
    )
    method.add_argument(
        "--recipe", metavar="FILE", help="a method of your own, in TOML (docs/recipes.md)"
    )
    add_run_options(parser)
    augmentation, saved, period, training, output = (
        group(parser, title).add_argument
        for title in (AUGMENTATION, METHOD, PERIOD, TRAINING, OUTPUT)
    )
    augmentation(
        "--augment",
        choices=tuple(AUGMENTATIONS),
        help="paper: turns up to 15 degrees and shifts up to a tenth; crop-flip: shifts up to an "
        "eighth; randaugment: these, then two of torchvision's 14 operations, of each image its "
        "own; all with mirroring, see --flip; none: nothing. Default: paper",
    )
    augmentation(
        "--mixup", type=float, metavar="ALPHA",
        help="train on mixtures of two images, of shares drawn from Beta(ALPHA, ALPHA); default: "
        "none",
    )  # fmt: skip
    augmentation(
        "--cutmix", type=float, metavar="ALPHA",
        help="put a part of another image into each, of a size drawn likewise; default: none",
    )  # fmt: skip
    saved(
        "--policy",
        choices=tuple(policies),
        metavar="NAME",
        help="which samples pruning leaves out (cpfast list policies); default: infobatch",
    )
    saved(
        "--keep", type=float, metavar="SHARE",
        help="of the samples (policy tokens: of their tokens), that pruning keeps; default: the "
        "policy's, 0.5 for most",
    )  # fmt: skip
    saved(
        "--reference", metavar="FILE",
        help="of --policy tokens: losses of another model on the same training data, as cpfast "
        "score writes them; default: tokens are chosen by their own loss",
    )  # fmt: skip
    saved(
        "--anneal", type=float, metavar="SHARE",
        help="after which nothing is left out any more: of the training with --method prune, of "
        "what follows the period's end in methods with a detector, which repeat passes again as "
        "well. Default: pruning stops at 0.875 of the training, passes stay at one",
    )  # fmt: skip
    period("--at", type=int, metavar="EPOCH", help="the period's end, of --criterion fixed")
    period(
        "--patience", type=int, metavar="N",
        help="epochs in a row for which a criterion's verdict must hold; default: 1",
    )  # fmt: skip
    period(
        "--not-before", type=int, metavar="EPOCH",
        help="the first at which the period may end; default: the criterion's own",
    )  # fmt: skip
    period(
        "--watch",
        metavar="all|NAME[,NAME]",
        help="criteria that are measured as well, and change nothing; what they find and cost is "
        "in metrics.jsonl",
    )
    period(
        "--guard", type=float, metavar="POINTS",
        help="train on both ways once it has ended, as the method saves and as if it had not "
        "ended, until it is shown whether the saving costs more than POINTS of accuracy, as 0.5; "
        "if it does, it is taken back (docs/training.md). Default: it is kept, whatever it costs",
    )  # fmt: skip
    period(
        "--guard-share", type=float, metavar="SHARE",
        help="of the training samples, held out to compare them on; default: 0.1",
    )  # fmt: skip
    training(
        "--budget", type=percent, metavar="PERCENT",
        help="train for this share of what one pass in each of --epochs costs: in fewer epochs, "
        "with what is known to do well at such a share (docs/training.md); settings that are given "
        "as well stay. Default: all of it, by --method",
    )  # fmt: skip
    training(
        "--accumulate", type=int, metavar="N",
        help="add up the gradients of N batches before a step, where a batch of that size does not "
        "fit in memory; default: 1",
    )  # fmt: skip
    training(
        "--ema", type=float, metavar="DECAY",
        help="evaluate and keep an exponential moving average of the weights, as 0.999; default: "
        "the weights as they are",
    )  # fmt: skip
    output(
        "--out", metavar="RUN",
        help="run folder, a new one unless --resume; default: one in runs/, after data, model and "
        "method",
    )  # fmt: skip
    output(
        "--resume", action="store_true",
        help="go on with the run in --out, with its own settings; with --epochs N, up to N in all",
    )  # fmt: skip
    output(
        "--config", metavar="FILE.toml",
        help="settings by the names of these options (epochs = 50); those given here as well come "
        "first. Each run writes one, config.toml",
    )  # fmt: skip
    output(
        "--save-every", type=int, metavar="EPOCHS",
        help="between two checkpoints, from which --resume goes on; default: 1",
    )  # fmt: skip
    output(
        "--log", "--loggers", dest="log", metavar="NAME[,NAME]",
        help=f"where the metrics go beside metrics.jsonl: {', '.join(loggers.loggers)} "
        "(docs/training.md); after torchrun, which takes --log for its own, say --loggers; "
        "default: nowhere",
    )  # fmt: skip
    output(
        "--quiet", "-q", action="store_true",
        help="print no line an epoch; that is printed where there is no terminal for a bar",
    )  # fmt: skip


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
        if options["budget"] is not None:
            raise UserError("--budget: not with --resume, which has the settings of the run")
        if options["epochs"] is not None:
            config = extension.extended(config, options["epochs"], folder.epochs())
        if config.epochs > epochs:
            guard.check_extendable(folder)
    else:
        if folder is not None:
            folder.check_free()
        config = Config.from_options({**options, "device": device})
    config = prepare(config, options)
    loggers.check(loggers.named(config.log))
    with joined.first():
        dataset = data.load(config.data, config.limit, joined.is_first, download, **config.reading)
    held = None
    if config.guard is not None:
        held = guard.hold_out(dataset, config.guard_share)
        dataset = held.data
    if not resume:
        shown = {"energy": config.energy, "plot": config.plot}
        options = {**options, **shown, "device": device}
        config = Config.from_options(options, dataset.train_size, data.side(dataset))
        whole = Config.from_options({**options, "budget": None}, dataset.train_size).epochs
    place = torch.device(config.device)
    if held is None:
        training = Training(config, dataset.to(place))
    else:
        held = held.to(place)
        training = Training(config, held.data, fingerprint=held.fingerprint)
    if folder is None:
        name = f"{report.data_name(config, limits=False)}-{config.model}-{config.method}"
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
        if not resume and options["budget"] is not None:
            method = config.method
            by = "" if method == "full" else f"; {method}: {recipes[method].line}"
            print(
                f"budget: {options['budget']:g} % of {counted(whole, 'epoch')}, one pass each{by}"
            )
        if held is not None:
            print(guard.describe(config, held))
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
                if held is None:
                    run.advance(training, folder, progress=bar, log=log)
                else:
                    guard.advance(training, held, folder, progress=bar, log=log, say=bar.say)
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
    kept = {k: v for k, v in options.items() if k not in ("preset", "budget", "epochs")}
    other = differences(kept, stored)
    if other:
        raise UserError(f"--resume {folder.path}: cannot change {'; '.join(other)}")
    changes = {k: v for k, v in options.items() if k in ENVIRONMENT and v is not None}
    return stored.replace(**{**changes, "device": device_of(changes.get("device", stored.device))})
