"""`cpfast train --guard POINTS`: the saving after the critical period on trial, and taken back
where it costs too much.

Once the period has ended, the run is trained twice from there, an epoch of one and an epoch of the
other in turn: as it saves, and as it spends, which is by the same recipe as if the period had not
ended. After each epoch both are compared on training samples that are held out of the training
from its beginning. Where it is shown that saving costs more than POINTS of accuracy, the run goes
back to the period's end and on as it spends; what was trained so since then is that continuation,
so it is taken over rather than trained again. Where it is shown to cost less, the other one is
dropped. Where neither is shown to the end of the training, the run stays the one that saves.

What is shown: of each held-out sample the difference is known, +1 where only spending is right, -1
where only saving is, else 0 (of text the difference of the shares of a sequence's characters). Its
mean over the population that the samples are from is what the saving costs. That it is above, or
below, POINTS is told by betting on the differences in a random order that is fixed beforehand
(`cpfast.train.anytime`), after epoch t of the trial at level alpha / (t (t + 1)):

- The samples are the same after each epoch, and the decision to stop depends on them. The networks
  do not: they are trained on other samples, and alike whatever was found, so the differences after
  epoch t are those of a pair of networks that is fixed without them. So each look by itself is a
  test on a fresh sample, and the looks, linked as they are, are together wrong with a probability
  of at most the sum of their levels, which is alpha, whenever one stops.
- Each look tests that the cost is at most POINTS, and that it is at least that. But for a cost of
  exactly POINTS, where neither verdict does harm, one of the two is false, and only the other's
  test can err. Any wrong verdict has a probability of at most alpha, .05.
- The samples count as drawn independently. They are held out by class, which makes their mean surer
  than that. What is shown is true of the networks of that epoch: a cost that would show, or go,
  only later in the training is not seen once it has been decided.

All that is decided follows from what is stored. The run's own lines of metrics hold each
comparison, and whose epoch it is; `guard/snapshot` in its folder is the run at the period's end,
`guard/spending` the run as it spends, both with a checkpoint. An epoch of spending is stored before
that of the run itself, which is when the comparison is stored too. So a stop at any moment loses
the epochs under way, and a run that goes on ends as if it had not been stopped, to the bit.

What the other of the two cost stands in the metrics beside the epoch's own, and is charged to the
run: samples, FLOPs, seconds. The energy is metered around both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from cpfast.recipes import Action
from cpfast.train import anytime, batches, loop, metrics, run, saved
from cpfast.train.batches import FULL
from cpfast.train.config import Config
from cpfast.train.data import Data, TextData, stratified
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loggers import Log
from cpfast.train.loop import Progress, Training
from cpfast.train.metrics import EpochMetrics, GuardMetrics, Seconds
from cpfast.train.report import guard_text
from cpfast.train.runfolder import ENERGY, RunFolder

__all__ = ["Held", "advance", "check_extendable", "describe", "hold_out", "train"]

SHARE = 0.1  # of the training samples that is held out where nobody says
FOLDER, SNAPSHOT, SPENDING = "guard", "snapshot", "spending"
_SEED = 1  # of what is held out, and of its order; limits and test sets are drawn by 0

Say = Callable[[str], None]


class Held(NamedTuple):
    """Data without what is held out of them.

    Attributes:
        data: to train and to test on.
        samples: held out, by the names of a data set's test samples, in the order in which they are
            looked at.
        fingerprint: of all of the data.
    """

    data: Data
    samples: dict[str, Tensor]
    fingerprint: str

    @property
    def size(self) -> int:
        return len(next(iter(self.samples.values())))

    def to(self, device: torch.device) -> Held:
        samples = {name: value.to(device) for name, value in self.samples.items()}
        return self._replace(data=self.data.to(device), samples=samples)


def hold_out(data: Data, share: float | None = None) -> Held:
    """Hold out a share of the training samples, of those with labels each class's, always the same.

    Raises:
        UserError: they are too few.
    """
    size = data.train_size
    count = round((SHARE if share is None else share) * size)
    labels = None if isinstance(data, TextData) else data.train_labels.cpu().numpy()
    least = 1 if labels is None else len(np.unique(labels))
    if not least <= count <= size - least:
        of = f" of {least} classes" if labels is not None else ""
        raise UserError(
            f"--guard: it would hold out {count} of {size} training samples{of}, and train on the "
            f"rest; {least} at least are needed of either (see --guard-share)"
        )
    generator = np.random.Generator(np.random.PCG64(_SEED))
    if labels is None:
        kept = np.sort(generator.permutation(size)[: size - count])
    else:
        kept = stratified(labels, size - count, _SEED)
    held = np.setdiff1d(np.arange(size), kept)
    order = torch.as_tensor(held[generator.permutation(count)])
    samples = {
        name.replace("train_", "test_"): value[order.to(value.device)]
        for name, value in vars(data).items()
        if name.startswith("train_")
    }
    rest = data.with_train(torch.as_tensor(kept), f"{count:,} more are held out for --guard")
    return Held(rest, samples, data.fingerprint())


def describe(config: Config, held: Held) -> str:
    """A line for a run's header: what is held out, and what cannot be shown by it."""
    assert config.guard is not None
    text = (
        f"guard: {held.size:,} samples are held out of the training, to tell whether the saving "
        f"costs more than {config.guard:g} points"
    )
    alike = 100 * anytime.bounds(np.zeros(held.size), anytime.level(1)).upper
    if alike > config.guard:
        text += (
            "; were both right alike on all of them, that would only show that it costs less than "
            f"{alike:.2g}"
        )
    return text


def train(
    config: Config,
    data: Data,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
    epochs: int | None = None,
    actions: Sequence[Action] = (),
    begin: Callable[[Training], None] | None = None,
    say: Say = print,
) -> Training:
    """As `cpfast.train.run.train`, of a run with `config.guard`.

    Args:
        data: all of them.
        say: told of the beginning of the trial, and of its end.

    Raises:
        UserError: as there, or `data` are too few.
        Diverged: as there; where one of two diverges, the other goes on.
    """
    held = hold_out(data, config.guard_share).to(torch.device(config.device))
    training = Training(config, held.data, actions, fingerprint=held.fingerprint)
    return advance(
        training, held, folder, progress=progress, epochs=epochs, actions=actions, begin=begin,
        say=say,
    )  # fmt: skip


def advance(
    training: Training,
    held: Held,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
    epochs: int | None = None,
    actions: Sequence[Action] = (),
    begin: Callable[[Training], None] | None = None,
    log: Log | None = None,
    say: Say = print,
) -> Training:
    """As `train`, of what is built already: on the data of `held`, on its device.

    Returns:
        The training that was kept.
    """
    config = training.config
    _check_no_branch(folder)
    lines = run.opened(training, folder, begin=begin, log=log)
    last = config.epochs if epochs is None else min(epochs, config.epochs)
    entry = _latest(lines)
    training.spends = entry is not None and entry["kept"] == "spending"
    if training.epoch >= last and not _is_rollback_due(entry):
        return training
    with run.metered(training, folder) as meter:
        common: dict[str, Any] = {"progress": progress, "log": log, "meter": meter}
        rest: dict[str, Any] = {"save_every": config.save_every, **common}
        if entry is None and not training.detector.ended:
            run.train_epochs(
                training, folder, lines, last, stored=lambda: not training.detector.ended, **rest
            )
        is_on = training.detector.ended and training.epoch < last and _is_open(entry)
        if is_on or _is_rollback_due(entry):
            trial = _Trial(training, held, folder, lines, actions, common)
            trial.open(say)
            training, lines = trial.decide(last, say)
        run.train_epochs(training, folder, lines, last, **rest)
    return training


def check_extendable(folder: RunFolder) -> None:
    """
    Raises:
        UserError: the run is on trial, in which both are of so many epochs.
    """
    checkpoint = folder.checkpoint() if _branch(folder).is_run() else None
    if checkpoint is None:
        return
    entry = _latest(checkpoint["metrics"])
    if _is_open(entry) or _is_rollback_due(entry):
        raise UserError(
            f"--epochs: {folder.path} is still on trial by --guard; resume it without --epochs "
            "first, until that has decided or the run is finished"
        )


class _Trial:
    """The two, from the period's end on, and what is found of them.

    Args:
        training: the run, which saves.
        common: for the epochs of the run.
    """

    def __init__(
        self,
        training: Training,
        held: Held,
        folder: RunFolder,
        lines: list[str],
        actions: Sequence[Action],
        common: dict[str, Any],
    ) -> None:
        config = training.config
        assert training.detector.end_epoch is not None and config.guard is not None
        self._switch, self._points = training.detector.end_epoch, config.guard
        self._saving, self._folder, self._lines, self._common = training, folder, lines, common
        self._entry = _latest(lines)
        self._spending = Training(config, held.data, actions, fingerprint=held.fingerprint)
        self._spending.spends, self._spending.meter = True, common["meter"]
        self._branch = _branch(folder)
        self._branch_lines: list[str] = []
        self._aside = None if common["progress"] is None else _Aside(common["progress"])
        self._size = held.size
        data: Any = held.data
        self._samples = batches.of(config, dataclasses.replace(data, **held.samples))

    def open(self, say: Say) -> None:
        """Take up both where they stand; at the period's end, keep it first.

        Raises:
            UserError: what is stored of one of them is missing, or of another epoch.
        """
        epoch = self._saving.epoch
        if self._entry is None and epoch == self._switch:
            self._keep()
            say(
                f"guard: the critical period ended after epoch {epoch}; from here the run is "
                "trained as it saves and as it spends, and both are compared"
            )
        if not self._branch.is_run():
            raise UserError(f"{self._branch.path}: missing, though the run is on trial with it")
        self._branch_lines = run.opened(self._spending, self._branch)
        if self._spending.epoch not in (epoch, epoch + 1):
            raise UserError(
                f"{self._branch.path}: after epoch {self._spending.epoch}, though the run that it "
                f"is compared with is after epoch {epoch}"
            )

    def _keep(self) -> None:
        """The run at the period's end, twice: as it is, and to go on."""
        folder, meter = self._folder, self._common["meter"]
        folder.save_checkpoint({**run.state_dict(self._saving), "metrics": self._lines})
        folder.save_energy(meter.read())
        snapshot = RunFolder(folder.path / FOLDER / SNAPSHOT)
        for source, target in ((folder, snapshot), (snapshot, self._branch)):
            if not target.is_run():
                target.path.mkdir(parents=True, exist_ok=True)
                saved.copy(source.path, target.path)
                source.fork(target, self._saving.config)
        (self._branch.path / ENERGY).unlink(missing_ok=True)  # which nobody goes on with

    def decide(self, last: int, say: Say) -> tuple[Training, list[str]]:
        """Epochs of both until it is decided; the training that goes on, and its lines."""
        try:
            if _is_open(self._entry):
                run.train_epochs(
                    self._saving, self._folder, self._lines, last,
                    complete=self._complete, stored=lambda: _is_open(self._entry), **self._common,
                )  # fmt: skip
        except Diverged as error:
            self._entry = _diverged("spending", self._size, error)
        entry = self._entry
        if entry is None or entry["verdict"] is None:
            return self._saving, self._lines
        is_saving = entry["verdict"] != "spending"
        kept = (self._saving, self._lines) if is_saving else self._rolled_back()
        text = guard_text(self._points, entry, self._size, kept[0].epoch, self._switch)
        say(f"guard: {text}")
        return kept

    def _rolled_back(self) -> tuple[Training, list[str]]:
        """Back to the period's end, and on as it spends, which is trained already: the run's folder
        holds that from here on. Done again where a stop has come between."""
        entry = self._entry
        assert entry is not None
        own: list[EpochMetrics] = [json.loads(line) for line in self._lines[self._switch :]]
        if entry["reason"] is not None:  # of an epoch of which no line can be
            self._spend_until(len(self._lines) + 1)
        others = [json.loads(line) for line in self._branch_lines[self._switch :]]
        taken = [_swapped(one, other) for one, other in zip(own, others, strict=False)]
        taken += [cast(EpochMetrics, {**other, "guard": entry}) for other in others[len(own) :]]
        lines = [*self._lines[: self._switch], *map(json.dumps, taken)]
        self._log_again(lines)
        saved.copy(self._branch.path, self._folder.path)
        self._folder.save_checkpoint({**run.state_dict(self._spending), "metrics": lines})
        self._folder.restore_metrics(lines)
        if self._common["progress"] is not None:
            self._common["progress"].epoch(taken[-1])
        return self._spending, lines

    def _log_again(self, lines: list[str]) -> None:
        log: Log | None = self._common["log"]
        if log is None:
            return
        found = [metrics.read(json.loads(line)) for line in lines]
        log.close()
        log.begin(found[: self._switch])
        for line in found[self._switch :]:
            log.epoch(line, None)

    def _complete(self, line: EpochMetrics) -> EpochMetrics:
        """An epoch of saving, once spending has trained the same, with what the two differ in."""
        try:
            other = self._spend_until(line["epoch"])
        except Diverged as error:
            self._entry = _diverged("saving", self._size, error)
        else:
            self._entry = self._compared(line, other)
        return {**line, "guard": self._entry}

    def _spend_until(self, epoch: int) -> EpochMetrics:
        run.train_epochs(
            self._spending, self._branch, self._branch_lines, epoch, progress=self._aside
        )
        return metrics.read(json.loads(self._branch_lines[epoch - 1]))

    def _compared(self, line: EpochMetrics, other: EpochMetrics) -> GuardMetrics:
        t, epoch = self._saving, line["epoch"]
        with t.clock.whole("evaluation"):
            spending, saving = (
                loop.correct(one, self._samples, self._size, self._aside)
                for one in (self._spending, t)
            )
        seconds = t.clock.read()["evaluation"]
        differences, look = (spending - saving).numpy(), epoch - self._switch
        verdict = _verdict(differences, self._points / 100, look)
        if verdict is None and epoch == t.config.epochs:
            verdict = "undecided"
        lower, upper = anytime.bounds(differences, anytime.level(look))
        cost = t.flops.of(FULL._replace(frozen=line["settings"]["frozen"]))
        return {
            "kept": "saving",
            "verdict": verdict,
            "reason": None,
            "cost": float(differences.mean()),
            "lower": lower,
            "upper": upper,
            "validation": {
                "samples": self._size,
                "flops": None if cost is None else 2 * self._size * cost.forward,
                "seconds": seconds,
            },
            "forward_samples": other["forward_samples"],
            "backward_samples": other["backward_samples"],
            "measured_samples": other["measured_samples"],
            "flops": other["flops"],
            "seconds": other["seconds"],
        }


class _Aside:
    """Of a progress bar what else is trained meanwhile needs: that Ctrl-C is noticed."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, epochs: float) -> None:
        self._progress.step(0.0)

    def epoch(self, metrics: EpochMetrics) -> None:
        pass


def _verdict(differences: np.ndarray, cost: float, look: int) -> str | None:
    level = anytime.level(look)
    if anytime.is_above(differences, cost, level):
        return "spending"
    return "saving" if anytime.is_below(differences, cost, level) else None


def _swapped(saving: EpochMetrics, spending: EpochMetrics) -> EpochMetrics:
    """An epoch's line as that of spending, which has what saving cost beside it."""
    entry = saving["guard"]
    assert entry is not None
    found: GuardMetrics = {
        **entry,
        "kept": "spending",
        "forward_samples": saving["forward_samples"],
        "backward_samples": saving["backward_samples"],
        "measured_samples": saving["measured_samples"],
        "flops": saving["flops"],
        "seconds": saving["seconds"],
    }
    return {**spending, "guard": found}


def _diverged(verdict: str, size: int, error: Diverged) -> GuardMetrics:
    """Of an epoch in which the other one diverged: what that cost is not known."""
    parts: Any = dict.fromkeys(Seconds.__annotations__, 0.0)
    reason = str(error).partition(";")[0]  # what follows is advice
    return {
        "kept": verdict, "verdict": verdict, "reason": reason, "cost": None, "lower": None,
        "upper": None, "validation": {"samples": size, "flops": 0.0, "seconds": 0.0},
        "forward_samples": 0, "backward_samples": 0, "measured_samples": 0, "flops": 0.0,
        "seconds": parts,
    }  # fmt: skip


def _latest(lines: Sequence[str]) -> GuardMetrics | None:
    """Of the last epoch that was trained twice."""
    for line in reversed(lines):
        entry = metrics.read(json.loads(line))["guard"]
        if entry is not None:
            return entry
    return None


def _is_open(entry: GuardMetrics | None) -> bool:
    return entry is None or entry["verdict"] is None


def _is_rollback_due(entry: GuardMetrics | None) -> bool:
    """Whether it was decided, and the folder holds the run that saves nevertheless."""
    return entry is not None and entry["verdict"] == "spending" and entry["kept"] == "saving"


def _branch(folder: RunFolder) -> RunFolder:
    return RunFolder(folder.path / FOLDER / SPENDING)


def _check_no_branch(folder: RunFolder) -> None:
    of = folder.path.absolute().parent
    if of.name == FOLDER and RunFolder(of.parent).is_run():
        raise UserError(f"{folder.path}: a part of the guarded run {of.parent}; resume that")
