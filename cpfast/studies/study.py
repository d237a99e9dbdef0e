"""What a study is: what it runs, what may be asked of it, and what it shows."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.detection import criteria
from cpfast.registry import Registry
from cpfast.train.config import Config
from cpfast.train.data import kind_of
from cpfast.train.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

    from cpfast.studies.document import Document
    from cpfast.studies.runner import Runner
    from cpfast.studies.store import Entry, Results
    from cpfast.train.data import Data

SEEDS = 2**32  # what a seed must be below


@dataclass(frozen=True)
class Study:
    """What to run. A study adds fields of its own, which go to results.json as they are.

    Attributes:
        config: of the run that the others are held against; its seed is set by each run.
        KIND: what results.json calls the study.
        HEAD: its own fields in results.json, with their types.
        KEY: what identifies an entry of "runs", with its types.
        OWN: what else an entry has beyond `cpfast.studies.store.ENTRY`.
        EVALUATED: every run that ended has an accuracy.
        EXTENDS: lists among its fields to which more may be added later, beside seeds, and the
            option of each.
    """

    config: Config
    seeds: tuple[int, ...]

    KIND: ClassVar[str]
    HEAD: ClassVar[dict[str, type]] = {}
    KEY: ClassVar[dict[str, tuple[type, ...]]]
    OWN: ClassVar[dict[str, tuple[type, ...]]] = {}
    EVALUATED: ClassVar[bool] = True
    EXTENDS: ClassVar[dict[str, str]] = {}

    # --- what is asked ----------------------------------------------------------------------

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Its own, beside those of a run and --seeds. None means not given."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """What the options ask for; --device is resolved already.

        Raises:
            UserError: for a wrong value.
        """
        return cls(*configured(options))

    # --- what is run ------------------------------------------------------------------------

    def wanted(self, results: Results) -> int:
        """How many runs there will be, so far as those in `results` tell."""
        raise NotImplementedError

    def largest_batch(self) -> int:
        return self.config.batch_size

    def needs_scipy(self) -> bool:
        """Whether its document cannot be made without."""
        return len(self.seeds) > 1

    def check(self, data: Data) -> None:
        """Refuse now, and not after the first hours, what one of the runs would refuse.

        Raises:
            UserError: these settings and these data do not go together.
        """
        if self.largest_batch() > data.train_size:
            raise UserError(
                f"a batch of {self.largest_batch()}, the largest of this comparison, is more than "
                f"the {data.train_size} samples to train on; use a smaller --batch-size"
            )

    def run(self, runner: Runner) -> None:
        """Do what is missing."""
        raise NotImplementedError

    # --- what is stored ---------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Its own fields, as JSON has them."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["config"], own["seeds"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}

    @classmethod
    def of(cls, results: Results) -> Self:
        """The study that results.json holds."""
        own = {k: tuple(v) if isinstance(v := results[k], list) else v for k in cls.HEAD}
        return cls(Config(**results["config"]), tuple(results["seeds"]), **own)

    def fault(self, entry: Entry) -> str | None:
        """Why a stored entry, of which every value has its type, is none of this study's."""
        return None

    # --- what is shown ----------------------------------------------------------------------

    def label(self, entry: Entry) -> str:
        """What a run was, in the line that says that it has ended."""
        return "  ".join(str(entry[name]) for name in self.KEY if name != "seed")

    def outcome(self, entry: Entry) -> str:
        """What it came to, if it did not diverge."""
        return f"{100 * entry['test_accuracy']:6.2f} %"

    def document(self, results: Results) -> Document:
        """The tables and what must be said beside them."""
        raise NotImplementedError

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        """By the name of the file: what draws it at a path."""
        return {}


studies: Registry[Study] = Registry("study", "cpfast.studies", "cpfast.studies")


def configured(options: Mapping[str, Any], **settings: Any) -> tuple[Config, tuple[int, ...]]:
    """The settings of a run and the seeds that the options ask for.

    Args:
        options: those that are no settings of a run are left alone; "size" is the number of
            training samples, where that is known.
        settings: in their place.

    Raises:
        UserError: for a wrong value.
    """
    count = 3 if options["seeds"] is None else options["seeds"]
    if count < 1:
        raise UserError(f"--seeds must be at least 1, got {count}")
    fields = {field.name for field in dataclasses.fields(Config)} | {"preset"}
    given = {name: value for name, value in options.items() if name in fields}
    config = Config.from_options({**given, "method": "full", **settings}, options.get("size"))
    if config.seed + count > SEEDS:
        raise UserError(f"--seeds {count}: from --seed {config.seed} on they leave 0 .. 2**32 - 1")
    return config, tuple(range(config.seed, config.seed + count))


def filled(options: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """With defaults of the study's own for what is left open."""
    return {**options, **{k: v for k, v in defaults.items() if options.get(k) is None}}


def of_digits(options: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """As `filled`, where it is digits that are trained on."""
    return filled(options, **(defaults if options.get("data") in (None, "digits") else {}))


def needs_images(options: Mapping[str, Any]) -> None:
    """Refuse other data.

    Raises:
        UserError: the data are no images.
    """
    if options.get("data") is not None and kind_of(options["data"]) not in ("images", None):
        raise UserError(f"--data {options['data']}: this study is of images")


def needs_rotation(options: Mapping[str, Any]) -> None:
    """Refuse a criterion that cannot be replayed on a curve of the mean rotation.

    Raises:
        UserError: it looks at something else.
    """
    name = options.get("criterion")
    if name is not None and not getattr(criteria[name].factory, "of_rotation", False):
        known = [n for n, e in criteria.items() if getattr(e.factory, "of_rotation", False)]
        raise UserError(
            f"--criterion {name}: it is not of the mean rotation alone; choose from "
            f"{', '.join(known)}"
        )


def named(option: str, text: str) -> tuple[str, ...]:
    """The names in a comma separated list, each once, in the order given.

    Raises:
        UserError: there is none.
    """
    names = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise UserError(f"{option}: no name in {text!r}")
    return names


def name_of(study: type[Study]) -> str:
    """Under which it is registered."""
    return next(name for name, entry in studies.items() if entry.factory is study)
