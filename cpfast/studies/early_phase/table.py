"""The tables and the notes of the early phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpfast.studies.document import (
    Document,
    Table,
    diverged_notes,
    finding,
    last_notes,
    seeds_note,
    shown,
    title_of,
)
from cpfast.studies.early_phase.pretrain import INITIAL, PRETRAININGS
from cpfast.studies.early_phase.trace import NAMES
from cpfast.studies.statistics import Estimate, difference, estimate
from cpfast.studies.store import Results, accuracies

if TYPE_CHECKING:
    from cpfast.studies.early_phase.study import EarlyPhase


def undisturbed(results: Results) -> dict[int, float]:
    """Accuracy in percent by seed."""
    return accuracies(results, perturbation="none")


def cost(results: Results, name: str, epoch: int, other: str | None = None) -> Estimate | None:
    """Accuracy less that of the undisturbed run, or of another perturbation after as many epochs,
    in points, paired by seed."""
    values = accuracies(results, perturbation=name, epoch=epoch)
    if other is None:
        return estimate(difference(values, undisturbed(results)).values())
    others = accuracies(results, perturbation=other, epoch=epoch)
    return estimate(difference(values, others).values())


def traced(results: Results, name: str) -> list[Estimate]:
    """One of `NAMES` before each step, over seeds."""
    columns = [e["trace"][name] for e in results["runs"] if e["trace"] is not None]
    found = [estimate(values) for values in zip(*columns, strict=False)]
    return [value for value in found if value is not None]


def document(study: EarlyPhase, results: Results) -> Document:
    perturbations = Table(
        ("perturbation", "after epoch", "accuracy %", "to none"),
        [
            ("none", "", shown(estimate(undisturbed(results).values()), 2), ""),
            *(
                (
                    name, str(epoch),
                    shown(estimate(
                        accuracies(results, perturbation=name, epoch=epoch).values()), 2),
                    shown(cost(results, name, epoch), 2, sign=True),
                )
                for name in study.perturbations for epoch in study.rewinds
            ),
        ],
    )  # fmt: skip
    traces = {name: traced(results, name) for name in NAMES}
    length = min(map(len, traces.values()))
    steps = [0, *(2**i for i in range(length.bit_length()) if 2**i < length)]
    iterations = Table(
        ("before step", *(name.replace("_", " ") for name in NAMES)),
        [
            (str(step + 1), *(f"{traces[name][step].mean:.4g}" for name in NAMES))
            for step in steps if length
        ],
    )  # fmt: skip
    tables = [perturbations, *([iterations] if iterations.rows else [])]
    title = f"{title_of(study.config)}: the first iterations, and early weights perturbed"
    return Document(title, tables, _notes(study, results))


def _notes(study: EarlyPhase, results: Results) -> list[str]:
    notes = []
    for name in study.perturbations:
        for epoch in study.rewinds:
            notes += finding(
                f"{WHAT[name]} after epoch {epoch}, against the undisturbed run",
                cost(results, name, epoch),
            )
            if name in PRETRAININGS and INITIAL in study.perturbations:
                notes += finding(
                    f"{WHAT[name]} after epoch {epoch}, against the initial ones",
                    cost(results, name, epoch, INITIAL),
                )
    notes.append(
        "What costs points has destroyed something that training had made by then and does not "
        "make again; what costs none, within its interval, need not have been there."
    )
    steps = results["train_size"] * study.config.repeats // study.config.batch_size
    notes.append(
        f"An epoch has {steps} steps. Where weights are perturbed, the optimizer keeps its "
        "momentum, and biases and normalisation stay; its running statistics are measured anew "
        "before the last test, in all runs."
    )
    notes.append(
        "Before a step: accuracy and loss are of the test data by the statistics of each batch, "
        "since BatchNorm's running ones lag behind; the gradient norm is of the step's own batch; "
        "magnitude, sign changes (a share, against the start) and distances are of all weights of "
        "layers, cosine distances means over the layers. The end is the run's own."
    )
    if {INITIAL, *PRETRAININGS} & set(study.perturbations):
        notes.append(
            "Weights put in the place of others are all of the network's, with its normalisation; "
            "momentum begins anew, and so does the last layer where the classes were others. What "
            "they are trained on before is charged to nobody: it asks what the first epochs are "
            "for, not what they cost."
        )
    notes += diverged_notes(study, results)
    notes.append("Accuracy of the perturbed runs is that of the last epoch.")
    return [*notes, seeds_note(results), *last_notes(results, study.config)]


WHAT = {
    "magnitudes": "Magnitudes shuffled in the layer, signs kept,",
    "layer": "Weights shuffled in the layer",
    "filter": "Weights shuffled in each filter",
    "noise": "Noise as large as the weights",
    INITIAL: "The initial weights in their place",
    "blur": "Weights of as many epochs on blurred images in their place",
    "rotation": "Weights of as many epochs of telling quarter turns apart in their place",
    "blur+rotation": "Weights of as many epochs of telling turns of blurred images in their place",
}
