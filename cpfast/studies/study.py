"""What a comparison is to run, of whichever kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.train.config import Config

if TYPE_CHECKING:
    from typing_extensions import Self

    from cpfast.train.compare.runner import Entry, Runner


@dataclass(frozen=True)
class Plan:
    """What to run: a kind of comparison adds fields of its own, which go to results.json.

    Attributes:
        config: of full; its seed is set by each run.
        HEAD: the kind's own fields in results.json, with their types.
        KEY: what identifies an entry of "runs", with its types.
        OWN: what else it has beyond `ENTRY`.
        EVALUATED: every run that ended has an accuracy.
    """

    config: Config
    seeds: tuple[int, ...]

    KIND: ClassVar[str]
    HEAD: ClassVar[dict[str, type]]
    KEY: ClassVar[dict[str, tuple[type, ...]]]
    OWN: ClassVar[dict[str, tuple[type, ...]]] = {}
    EVALUATED: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        """The kind's own fields, as JSON has them."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["config"], own["seeds"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Self:
        """The plan that results.json holds."""
        own = {k: tuple(v) if isinstance(v := results[k], list) else v for k in cls.HEAD}
        return cls(Config(**results["config"]), tuple(results["seeds"]), **own)

    def wanted(self, results: Mapping[str, Any]) -> int:
        """How many runs there will be, so far as those in `results` tell."""
        raise NotImplementedError

    def largest_batch(self) -> int:
        return self.config.batch_size

    def fault(self, entry: Entry) -> str | None:
        """Why a stored entry, of which every value has its type, is none of this plan's."""
        raise NotImplementedError

    def run(self, runner: Runner) -> None:
        """Do what is missing."""
        raise NotImplementedError
