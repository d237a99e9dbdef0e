"""What an epoch reports: a line of metrics.jsonl. Whoever writes or reads one has it from here."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from cpfast.forms import Finite, Maybe, Open, Table, check

__all__ = ["CriterionMetrics", "EpochMetrics", "GuardMetrics", "Seconds", "read"]


class Seconds(TypedDict):
    """Where an epoch's time went."""

    train: float
    """Synchronised wall time of training, of which detection, scoring and selection are parts."""
    evaluation: float
    """Not part of train."""
    preparation: float
    """Not part of train: the first few steps of a process, which compile and capture."""
    detection: float
    """Measuring the rotation and what else the criterion asks for, and judging."""
    scoring: float | None
    """The whole call of the scored loss, the loss itself included: an upper bound; None where the
    step is a CUDA graph, whose parts cannot be timed."""
    selection: float
    """Choosing the epoch's samples."""
    forwards: float | None
    """Forward passes that only score: of samples that the plan has hidden, and within batches; None
    where those of batches are part of a CUDA graph. 0 in lines of before it was there."""


class CriterionMetrics(TypedDict):
    """What a criterion found and cost in an epoch, whether it drives or is watched."""

    period_end: int | None
    """Epochs completed when the period had ended by this criterion; None while it lasts."""
    censored: bool
    """As the line's own."""
    statistic: float | None
    """What it decides by, where it has such a number after this epoch."""
    seconds: float
    """Of ``detection``: measuring after the epoch's steps, and judging. What several criteria
    measure is charged to the first; what is added up within the steps is part of them."""
    samples: int
    """Of ``measured_samples``, likewise."""


class Communication(TypedDict):
    """What a process gave to the others in an epoch."""

    ranks: int
    """How many they are."""
    collectives: int
    bytes: int
    """Of which most are gradients."""
    sync_bytes: int
    """Of the scores' one collective."""


class Validation(TypedDict):
    """Of evaluating two networks on held-out samples."""

    samples: int
    """Each evaluated twice."""
    flops: float | None
    """None as in the line."""
    seconds: float


class GuardMetrics(TypedDict):
    """What --guard found and cost in an epoch that was trained twice, as it saves and as it spends:
    the line is that of one of them, and what the other cost stands here."""

    kept: str
    """"saving" or "spending": which of them the line is of."""
    verdict: str | None
    """"saving" or "spending": which of them goes on from here, "undecided" after the last epoch;
    None: both go on."""
    reason: str | None
    """Of a verdict without a comparison, since one of them diverged: what it says."""
    cost: float | None
    """Share of the held-out samples that spending has right, less that of saving."""
    lower: float | None
    """What the population's share is shown to be above."""
    upper: float | None
    """What it is shown to be below."""
    validation: Validation
    forward_samples: int
    """Of the other one, as all that follows."""
    backward_samples: int
    measured_samples: int
    flops: float | None
    seconds: Seconds


ALONE: Communication = {"ranks": 1, "collectives": 0, "bytes": 0, "sync_bytes": 0}


class EpochMetrics(TypedDict):
    """A line of metrics.jsonl."""

    epoch: int
    """Epochs completed, from 1."""
    train_loss: float | None
    """Estimate of the mean over all samples, weights included; None without a step."""
    test_loss: float | None
    """None where the epoch is not evaluated."""
    test_accuracy: float | None
    """Share of the test samples; None where the epoch is not evaluated."""
    chance: float | None
    """What guessing the commonest class would have there; None in lines of version 0.1.0."""
    rotation_mean: float | None
    """Over the layers; None where it is not measured, or nothing has moved."""
    rotation: dict[str, float]
    """Of each layer, by the name of its weight; empty where it is not measured."""
    slope: float | None
    """What the criterion decides by, where it has such a number after this epoch."""
    period_end: int | None
    """Epochs completed when the critical period ended; None while it lasts."""
    period_end_reason: str | None
    censored: bool
    """Whether the period's end was found at the first epoch at which it could have been found: then
    the true one may have been earlier."""
    criteria: dict[str, CriterionMetrics]
    """By name, the driving one first; empty where nothing is measured."""
    repeats: int
    """Passes over the data."""
    prune: bool
    """Whether samples may be left out of them."""
    settings: dict[str, Any]
    """All that the recipe set, as EpochSettings has it; empty in lines of version 0.1.0."""
    bias: float | None
    """The share of all samples' losses that the weights of the plan miss in expectation; None where
    the policy does not know."""
    planned_samples: int
    """In all passes together."""
    forward_samples: int
    """Those of the steps and of scoring."""
    backward_samples: int
    """Those that were trained on."""
    scored_samples: int
    """Those of forward_samples that were only scored."""
    measured_samples: int
    """Those that went forward and backward for the criteria alone, beside the others; in each
    process the same."""
    flops: float | None
    """Of all these samples, in all processes together: what `cpfast.train.flops` counts; None where
    the network cannot be counted, and in lines of before it was there."""
    measured_flops: float | None
    """Of flops, those for the criteria alone."""
    guard: GuardMetrics | None
    """None in epochs that are trained once, and in lines of before it was there."""
    full_samples: int
    """What k passes throughout would have trained on in this epoch."""
    lr: float
    """Of the last step."""
    communication: Communication
    """Between the processes of the run."""
    seconds: Seconds


# What lines of version 0.1.0 lack, and what holds for them.
_SINCE: dict[str, Any] = {
    "settings": {}, "bias": None, "scored_samples": 0, "measured_samples": 0, "censored": False,
    "criteria": {}, "communication": ALONE, "chance": None, "flops": None, "measured_flops": None,
    "guard": None,
}  # fmt: skip

_SECONDS = Open(
    {
        part: Maybe(Finite) if part == "scoring" else Finite
        for part in Seconds.__annotations__
        if part != "forwards"
    },
    {"forwards": Maybe(Finite)},
)
_GUARD = Open(
    {
        "kept": str,
        "verdict": Maybe(str),
        "reason": Maybe(str),
        "cost": Maybe(Finite),
        "lower": Maybe(Finite),
        "upper": Maybe(Finite),
        "validation": {"samples": int, "flops": Maybe(Finite), "seconds": Finite},
        "forward_samples": int,
        "backward_samples": int,
        "measured_samples": int,
        "flops": Maybe(Finite),
        "seconds": _SECONDS,
    }
)

# What tables and pictures are made of: only that is looked at in a file.
_FORM = Open(
    {
        "epoch": int,
        "test_accuracy": Maybe(Finite),
        "rotation": Table(float),
        "rotation_mean": Maybe(Finite),
        "slope": Maybe(float),
        "period_end": Maybe(int),
        "period_end_reason": Maybe(str),
        "forward_samples": int,
        "backward_samples": int,
        "full_samples": int,
        "seconds": _SECONDS,
    },
    {
        "guard": Maybe(_GUARD),
        "train_loss": Maybe(Finite),
        "chance": Maybe(Finite),
        "test_loss": Maybe(Finite),
        "censored": bool,
        "measured_samples": int,
        "flops": Maybe(Finite),
        "measured_flops": Maybe(Finite),
        "communication": {"ranks": int, "collectives": int, "bytes": int, "sync_bytes": int},
        "criteria": Table(
            {
                "period_end": Maybe(int),
                "censored": bool,
                "statistic": Maybe(float),
                "seconds": Finite,
                "samples": int,
            }
        ),
    },
)


def read(line: dict[str, Any]) -> EpochMetrics:
    """A line, of this version or an earlier one.

    Raises:
        ValueError: something is missing, or of another type.
    """
    missing = EpochMetrics.__annotations__.keys() - _SINCE.keys() - line.keys()
    if missing:
        raise ValueError(f"line: no {min(missing)!r}")
    check(line, _FORM, "line")
    seconds = {"forwards": 0.0, **line["seconds"]}
    return cast(EpochMetrics, {**_SINCE, **line, "seconds": seconds})
