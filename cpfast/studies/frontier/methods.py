"""What is held against the control: parts, alone and added up, with the knobs of each.

A part is some actions of a recipe, or a policy, or both; "resolution+infobatch" is two of them.
Policies and criteria come from their registries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.studies.frontier.knobs import METHOD, Knobs
from cpfast.train import autopilot
from cpfast.train.config import Config
from cpfast.train.errors import UserError

__all__ = [
    "AUTOPILOT", "CONTROL", "REFINED", "Part", "all_parts", "check", "default_methods", "knobs_of",
    "parts", "with_autopilot", "with_method",
]  # fmt: skip

CONTROL = "control"
REFINED = "refined"  # the control's second round of tuning
AUTOPILOT = "autopilot"  # which is not tuned

Given = Mapping[str, Any]
Action = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One way to spend less.

    Attributes:
        text: what it does.
        knobs: its own; the first value of each is the default.
        actions: those of a recipe, from values of its knobs, as a recipe's file has them.
        settings: of the run, from the same.
        reads: the kinds of data that it is for; empty for all.
    """

    text: str
    knobs: Knobs = field(default_factory=dict)
    actions: Callable[[Given], list[Action]] = lambda given: []
    settings: Callable[[Given], dict[str, Any]] = lambda given: {}
    reads: tuple[str, ...] = ()


def _pruned(given: Given) -> list[Action]:
    return [{"action": "prune", "keep": given["keep"], "window": {"until": given["anneal"]}}]


def _grown(name: str) -> Callable[[Given], list[Action]]:
    """From a share to the whole, on a ramp."""

    def actions(given: Given) -> list[Action]:
        until = given["until"]
        return [
            {"action": name, "share": given["share"]},
            {"action": name, "share": 1.0, "window": {"begin": until / 4, "ramp": 3 * until / 4}},
        ]

    return actions


def _repeated(given: Given) -> list[Action]:
    return [
        {"action": "repeats", "repeats": given["repeats"]},
        {"action": "repeats", "repeats": 1, "window": {"phase": "after"}},
    ]


def _volume(given: Given) -> list[Action]:
    budget = given["budget"]
    first = budget + given["slope"] * min(budget, 1 - budget) * 0.9
    return [{"action": "volume", "budget": budget, "first": round(first, 4)}]


_KEPT: Knobs = {"keep": (0.5, 0.3, 0.7, 0.85), "anneal": (0.875, 0.75, 1.0)}
_GROWN: Knobs = {"share": (0.5, 0.625, 0.75), "until": (0.4, 0.6, 0.8)}
_OWN: dict[str, Part] = {
    AUTOPILOT: Part("what cpfast train --budget makes of the given settings, not tuned"),
    "retuned": Part("ordinary training once more, for what tuning alone gains"),
    "resolution": Part("images that grow to full size", _GROWN, _grown("resolution"),
                       reads=("images",)),
    "length": Part("sequences that grow to full length",
                   {"share": (0.25, 0.125, 0.5), "until": (0.4, 0.6)}, _grown("length"),
                   reads=("text",)),
    "freeze": Part("no gradient for layers that have stopped turning",
                   {"below": (0.01, 0.003, 0.03)},
                   lambda given: [{"action": "freeze", "below": given["below"]}]),
    "batch": Part("larger batches towards the end",
                  {"times": (2, 4), "begin": (0.5, 0.3, 0.75)},
                  lambda given: [{"action": "batch", "times": given["times"],
                                  "window": {"begin": given["begin"]}}]),
    "volume": Part("random subsets, larger late (slope below 0) or early",
                   {"budget": (0.7, 0.5, 0.85), "slope": (-1.0, -0.5, 0.5, 1.0)}, _volume,
                   lambda given: {"policy": "random"}),
    "mixup": Part("mixed images", {"alpha": (0.2, 0.4, 0.8), "until": (0.8, 0.6, 1.0)},
                  lambda given: [{"action": "mixup", "alpha": given["alpha"],
                                  "window": {"until": given["until"]}}], reads=("images",)),
    "early-augment": Part("augmented in the beginning alone",
                          {"begin": (0.75, 0.5, 0.25), "augment": ("paper", "crop-flip")},
                          lambda given: [{"action": "augment", "factor": 0.0,
                                          "window": {"begin": given["begin"]}}],
                          # whatever the control's best has, which may be none
                          lambda given: {"augment": given["augment"]}, reads=("images",)),
    "early-decay": Part("weight decay in the beginning alone", {"begin": (0.5, 0.75, 0.25)},
                        lambda given: [{"action": "weight_decay", "factor": 0.0,
                                        "window": {"begin": given["begin"]}}]),
    "detector": Part("k passes until the critical period has ended, then one",
                     {"repeats": (3, 2)}, _repeated),
}  # fmt: skip


def parts() -> dict[str, Part]:
    """By name: this study's own, every policy, and detector:CRITERION for every criterion that
    needs no epoch."""
    found = dict(_OWN)
    for name, policy in policies.items():
        reads = ("text",) if policies.make(name).needs_tokens else ()
        found[name] = Part(policy.line, _KEPT, _pruned, _setting("policy", name), reads)
    for name in criteria:
        if name not in ("fixed", "slope45"):
            found[f"detector:{name}"] = Part(
                f"detector, by {name}", {"repeats": (3, 2)}, _repeated, _setting("criterion", name)
            )
    return found


def _setting(key: str, value: str) -> Callable[[Given], dict[str, Any]]:
    return lambda given: {key: value}


def default_methods(reads: str) -> tuple[str, ...]:
    """Of those for such data: what theory or the literature has most hope of, and some pairs."""
    known = parts()
    names = (
        AUTOPILOT, "retuned", "infobatch", "random", "volume", "detector", "freeze", "batch",
        "resolution", "length", "tokens", "early-augment", "resolution+infobatch",
        "resolution+batch", "resolution+early-augment", "length+batch",
    )  # fmt: skip
    return tuple(
        name for name in names if all(_is_for(known[part], reads) for part in name.split("+"))
    )


def all_parts(reads: str) -> tuple[str, ...]:
    """Each part that is for such data, alone."""
    return tuple(name for name, part in parts().items() if _is_for(part, reads))


def _is_for(part: Part, reads: str) -> bool:
    return not part.reads or reads in part.reads


def check(name: str, reads: str) -> None:
    """
    Raises:
        UserError: a part that there is not, twice the same, two that choose samples, or one for
            other data.
    """
    known, names = parts(), name.split("+")
    for part in names:
        if part not in known:
            raise UserError(f"--methods: no {part!r}; there are {', '.join(known)}")
        if not _is_for(known[part], reads):
            raise UserError(f"--methods {name}: {part} is for {known[part].reads[0]}")
        if names.count(part) > 1:
            raise UserError(f"--methods {name}: {part} twice")
    if AUTOPILOT in names and len(names) > 1:
        raise UserError(f"--methods {name}: {AUTOPILOT} is nothing to add to")
    chosen = [part for part in names if "policy" in known[part].settings(_defaults(known[part]))]
    if len(chosen) > 1:
        raise UserError(f"--methods {name}: {' and '.join(chosen)} both choose the samples")
    if sum(part.partition(":")[0] == "detector" for part in names) > 1:
        raise UserError(f"--methods {name}: two detectors")


def knobs_of(name: str) -> Knobs:
    """What is tried: of its own, as "part.knob", all but the defaults; and what each method has
    beside."""
    known = parts()
    own = {
        f"{part}.{knob}": values[1:]
        for part in name.split("+")
        for knob, values in known[part].knobs.items()
    }
    return {**own, **METHOD}


def with_method(config: Config, name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration with the method, by values of its own knobs; others are left alone."""
    known = parts()
    actions: list[Action] = []
    changes: dict[str, Any] = {}
    for part in name.split("+"):
        given = _defaults(known[part])
        given |= {
            knob.removeprefix(f"{part}."): value
            for knob, value in settings.items()
            if knob.startswith(f"{part}.")
        }
        actions += known[part].actions(given)
        changes |= known[part].settings(given)
    detect = any(a["action"] == "freeze" or a.get("window", {}).get("phase") for a in actions)
    return config.replace(**changes, method=name, recipe_text=_recipe(actions), detect=detect)


def with_autopilot(config: Config, budget: float, side: int | None) -> Config:
    """
    Args:
        budget: in percent; above 100 as many epochs more, and of one epoch at least.
        side: of images, the pixels of the shorter side.
    """
    budget = max(budget, 100 / config.epochs)
    if budget > 100:
        config, budget = config.replace(epochs=round(config.epochs * budget / 100)), 100
    config = Config(**autopilot.within(config.to_dict(), (), budget, side))
    return config.replace(eval_every=config.epochs, save_every=config.epochs)


def _defaults(part: Part) -> dict[str, Any]:
    return {knob: values[0] for knob, values in part.knobs.items()}


def _recipe(actions: list[Action]) -> str:
    """A recipe's file."""
    lines = ['summary = "Of a frontier."', 'source = "this project"']
    for action in actions:
        lines.append("[[actions]]")
        lines += [f"{key} = {_toml(value)}" for key, value in action.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """
    >>> _toml({"begin": 0.5, "phase": "after"})
    '{ begin = 0.5, phase = "after" }'
    """
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)
