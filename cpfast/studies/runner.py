"""Runs what a study asks for, and stores each result as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from cpfast.recipes import Action
from cpfast.studies import store
from cpfast.studies.store import RESULTS, Entry
from cpfast.studies.study import Study
from cpfast.studies.workers import Job, run_all
from cpfast.train import run as run_module
from cpfast.train.config import Config
from cpfast.train.data import Data
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Progress, Training
from cpfast.train.runfolder import Change, Fork, RunFolder, write_json

MakeProgress = Callable[[int, int, str], AbstractContextManager[Progress]]


class Branch(NamedTuple):
    """A run that begins as another one, and is copied from it once `is_due` of that one.

    Attributes:
        change: what is another in it than the settings, as `RunFolder.fork` takes it.
    """

    folder: RunFolder
    config: Config
    is_due: Callable[[Training], bool]
    change: Change | None = None


def at(epoch: int) -> Callable[[Training], bool]:
    """Of a run, whether so many of its epochs are completed: what is due, or enough, then."""
    return lambda training: training.epoch == epoch


class Runner:
    """What is done of a study, and does the rest.

    Args:
        out: folder; locked by the caller.
        data: with its true labels.
        progress: makes the bar of a run from (epochs, epochs done, label).
        finished: called with each entry that is stored now.
        workers: how many runs at a time, where a study asks for several at once.

    Attributes:
        results: what results.json holds.

    Raises:
        UserError: `out` holds another comparison, or the data do not go with this one.
    """

    def __init__(
        self,
        study: Study,
        data: Data,
        out: Path,
        progress: MakeProgress | None = None,
        finished: Callable[[Entry], None] | None = None,
        workers: int = 1,
    ) -> None:
        self.workers = workers
        self.study = study
        self.out = out
        self.data = data
        study.check(data)
        self.results = store.open_results(study, data.train_size, out)
        self._progress = progress
        self._finished = finished

    def run(self) -> dict[str, Any]:
        """Run what is missing; returns the results.

        results.json is written after each run; one under way continues from its last epoch. A run
        that diverges is stored as such, and the rest goes on.
        """
        self.study.run(self)
        return self.results

    def find(self, **key: Any) -> Entry | None:
        return store.find(self.results, **key)

    def store(self, entry: Entry) -> None:
        self.results["runs"].append(entry)
        write_json(self.out / RESULTS, self.results)
        if self._finished is not None:
            self._finished(entry)

    def train(
        self,
        config: Config,
        folder: RunFolder,
        label: str,
        *,
        branches: Sequence[Branch] = (),
        until: Callable[[Training], bool] | None = None,
        data: Data | None = None,
        actions: Sequence[Action] = (),
        begin: Callable[[Training], None] | None = None,
    ) -> str | None:
        """Begin or continue a run; why it diverged, or None.

        Args:
            branches: runs that begin with this one.
            until: stop once it says so of an epoch that is stored.
            data: in place of the study's.
            actions, begin: as of `cpfast.train.run.train`.
        """

        def forks(training: Training) -> list[Fork]:
            due = [b for b in branches if b.is_due(training) and not b.folder.is_run()]
            return [Fork(branch.folder, branch.config, branch.change) for branch in due]

        with folder.locked():
            if not folder.is_run():
                folder.create(config)
            bar: AbstractContextManager[Progress | None] = nullcontext()
            if self._progress is not None:
                bar = self._progress(config.epochs, folder.epochs(), label)
            try:
                with bar as shown:
                    run_module.train(
                        config, self.data if data is None else data, folder, progress=shown,
                        forks=forks, until=until, actions=actions, begin=begin,
                    )  # fmt: skip
            except Diverged as error:
                return str(error)
            return None

    def train_all(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Begin or continue runs that do not wait for each other: each as it ends, and why it
        diverged, or None."""
        if self.workers > 1 and len(jobs) > 1:
            yield from run_all(jobs, self.data, min(self.workers, len(jobs)))
            return
        for job in jobs:
            data = None if job.part is None else job.part(self.data)
            yield job, self.train(job.config, job.folder, job.label, data=data)


def check_branched(folder: RunFolder, *, was_due: bool) -> None:
    """Whether a run that begins with full may be missing.

    Raises:
        UserError: full has been where it was due.
    """
    if was_due and not folder.is_run():
        raise UserError(f"{folder.path}: missing, though full was forked into it")


def run(
    study: Study,
    data: Data,
    out: Path,
    progress: MakeProgress | None = None,
    finished: Callable[[Entry], None] | None = None,
) -> dict[str, Any]:
    """Run what is missing in `out`, which the caller has locked, as `Runner.run`."""
    return Runner(study, data, out, progress, finished).run()
