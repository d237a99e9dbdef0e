"""Does detection detect? Every criterion watches the same runs, on true and on random labels.

What sees learning fires where there is something to learn, and not, or elsewhere, where labels are
random. What sees a schedule fires at a share of it. So each setting is trained with both kinds of
labels: the configured one, and with half and twice the weight decay, batch size and epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.detection import criteria
from cpfast.studies.criteria import picture, table
from cpfast.studies.document import Document
from cpfast.studies.runner import Runner
from cpfast.studies.settings import SETTINGS
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, named, studies
from cpfast.train.config import LABELS, Config
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

# Of each criterion in a run: when it fired, whether at the first epoch at which it can, and what it
# took.
VERDICT = {"period_end": (int, type(None)), "censored": (bool,), "seconds": (int, float),
           "samples": (int,)}  # fmt: skip


@studies.register("criteria", source="this project")
@dataclass(frozen=True)
class Criteria(Study):
    """Does detection detect? Every criterion, on true and on random labels, in seven settings.

    Settings x labels x seeds; nothing acts on what is detected.

    Attributes:
        setting_names: of `cpfast.studies.settings.SETTINGS`.

    Raises:
        UserError: an unknown setting.
    """

    setting_names: tuple[str, ...] = tuple(SETTINGS)

    KIND: ClassVar = "criteria"
    HEAD: ClassVar = {"setting_names": list}
    EXTENDS: ClassVar = {"setting_names": "--settings"}
    KEY: ClassVar = {"setting": (str,), "labels": (str,), "seed": (int,)}
    OWN: ClassVar = {"verdicts": (dict,)}

    def __post_init__(self) -> None:
        for name in self.setting_names:
            if name not in SETTINGS:
                raise UserError(f"--settings: must be of {', '.join(SETTINGS)}; got {name!r}")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--settings", metavar="NAME[,NAME]",
            help=f"of the training, to try them in; default: {','.join(SETTINGS)}",
        )  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        if options.get("labels") is not None:
            raise UserError(f"--labels {options['labels']}: criteria has both; leave it out")
        text = options["settings"]
        names = tuple(SETTINGS) if text is None else named("--settings", text)
        watch = options.get("watch") or "all"
        return cls(*configured({**options, "watch": watch}, energy=False), names)

    def configured(self, setting: str, labels: str) -> Config:
        config = SETTINGS[setting](self.config)
        return config.replace(
            method="full", labels=labels, eval_every=config.epochs, save_every=config.epochs,
            energy=False,
        )  # fmt: skip

    def watched(self, results: Results) -> list[str]:
        """The criteria that some run has, as their registry has them."""
        found = {name for entry in results["runs"] for name in entry["verdicts"]}
        return [name for name in criteria if name in found]

    def wanted(self, results: Results) -> int:
        return len(self.setting_names) * len(LABELS) * len(self.seeds)

    def largest_batch(self) -> int:
        return max(SETTINGS[name](self.config).batch_size for name in self.setting_names)

    def run(self, runner: Runner) -> None:
        for seed, setting, labels in product(self.seeds, self.setting_names, LABELS):
            key = {"setting": setting, "labels": labels, "seed": seed}
            if runner.find(**key) is not None:
                continue
            folder = RunFolder(runner.out / f"seed{seed}" / f"{setting}-{labels}")
            config = self.configured(setting, labels).replace(seed=seed)
            label = f"seed {seed}, {setting}, {labels} labels"
            diverged = runner.train(config, folder, label)
            verdicts = _verdicts(folder)
            entry = entry_of(folder, seed, diverged, charged=True)
            runner.store({**key, "verdicts": verdicts, **entry})

    def fault(self, entry: Entry) -> str | None:
        if entry["setting"] not in self.setting_names or entry["labels"] not in LABELS:
            return f"{entry['setting']!r}, {entry['labels']!r} labels, is not of its grid"
        for name, verdict in entry["verdicts"].items():
            whole = isinstance(verdict, dict) and all(
                isinstance(verdict.get(key), types) for key, types in VERDICT.items()
            )
            if not whole:
                return f"'verdicts' has {name!r}: {verdict!r}"
        return None

    def label(self, entry: Entry) -> str:
        return f"{entry['setting']:<13}, {entry['labels']:<6} labels"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"criteria.png": partial(picture.draw, self, results)}


def _verdicts(folder: RunFolder) -> dict[str, dict[str, Any]]:
    lines = folder.metrics()
    if not lines:
        return {}
    return {
        name: {
            "period_end": last["period_end"],
            "censored": last["censored"],
            "seconds": sum(line["criteria"][name]["seconds"] for line in lines),
            "samples": sum(line["criteria"][name]["samples"] for line in lines),
        }
        for name, last in lines[-1]["criteria"].items()
    }
