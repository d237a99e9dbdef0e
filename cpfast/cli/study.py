"""`cpfast study NAME`: many runs, and what may be concluded from them."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from functools import partial
from pathlib import Path
from typing import Any, cast

from cpfast.cli.options import add_run_options, device_of
from cpfast.cli.start import Interrupted, header, prepare, together
from cpfast.registry import Entry
from cpfast.studies import Runner, Study, environment, store, studies
from cpfast.studies.document import entry_line
from cpfast.studies.show import show
from cpfast.train import data, models, weights
from cpfast.train.errors import UserError, require
from cpfast.train.progress import ProgressBar
from cpfast.train.ranks import Ranks
from cpfast.train.runfolder import RunFolder

MOST_WORKERS = 256


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="many runs that answer a question about critical periods",
        description="Experiments on when and what a network learns: each trains many runs, and "
        "says what may be concluded from them (docs/studies.md).",
    )
    names = parser.add_subparsers(dest="study", required=True, metavar="NAME")
    for name, entry in studies.items():
        add_study(names.add_parser(name, help=entry.line), entry)


def add_study(parser: argparse.ArgumentParser, entry: Entry[Study]) -> None:
    study = cast(type[Study], entry.factory)
    if parser.description is None:
        parser.description = entry.line
    parser.usage = f"{parser.prog} [options]"
    parser.set_defaults(run=partial(_run, study))
    parser.add_argument(
        "--seeds", type=int, metavar="N",
        help="train all of it N times, with the seeds from --seed on, for means and intervals; "
        "default: 3",
    )  # fmt: skip
    study.add_options(parser)
    add_run_options(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where runs, table and pictures go; one that is there already is continued, and "
        "extended by more --seeds or what else is added; default: one in runs/, by the settings",
    )


def _run(kind: type[Study], options: dict[str, Any], arguments: list[str]) -> None:
    with together(device_of(options["device"])) as joined:
        _study(kind, options, arguments, joined)


def _study(kind: type[Study], options: dict[str, Any], arguments: list[str], joined: Ranks) -> None:
    workers = options.get("workers") or 1
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers must be in 1 .. {MOST_WORKERS}, got {options['workers']}")
    study = kind.from_options({**options, "device": device_of(options["device"])})
    config = prepare(study.config, options)
    study = dataclasses.replace(study, config=config)
    if study.needs_scipy():
        require("scipy", "this study")  # not after all the runs
    out = options["out"]
    path = joined.mirrored(Path(out) if out is not None else store.default_folder(study))
    store.check_folder(path)
    with joined.first():
        dataset = data.load(
            config.data,
            config.limit,
            joined.is_first,
            options["download"],
            **config.reading,
        )
    study = kind.from_options({**options, "device": config.device, "size": dataset.train_size})
    config = study.config.replace(energy=config.energy, plot=config.plot)
    study = dataclasses.replace(study, config=config)
    model = models.build(config.model, dataset.shape, dataset.outputs, config.seed)
    begun = None
    if config.weights is not None and Path(config.weights).is_file():  # to continue needs none
        begun = weights.load(model, config.weights)
    with RunFolder(path).locked():
        runner = Runner(
            study, dataset, path, partial(ProgressBar, shown=joined.is_first),
            lambda entry: print(entry_line(study, entry), flush=True), workers,
        )  # fmt: skip
        print(header(config, dataset, models.count_parameters(model)))
        if begun is not None:
            print(f"each run begins with {begun}")
        done, wanted = len(runner.results["runs"]), study.wanted(runner.results)
        print(f"comparison in {path}" + (f", {done} of {wanted} runs done" if done else ""))
        for note in environment.notes(runner.results["environments"])[1:]:
            print(note)
        try:
            results = runner.run()
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; what is done is kept; continue with the same command: "
                f"cpfast {shlex.join(arguments)}"
            ) from None
        print()
        print(show(path, results, config.plot))
