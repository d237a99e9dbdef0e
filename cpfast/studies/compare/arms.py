"""What each arm of a comparison is: its settings, what it is forked from, what it waits for.

full        k repeats in every epoch
detector    k repeats until the period has ended, then one; forked from full at that moment, so
            that both share their beginning, and its cost is that beginning plus the rest
k1          one repeat in every epoch: the first fair control
k1_matched  one repeat for as many samples as the detector arm used, with more epochs and the
            schedule stretched: the second
fixed       k repeats until a preset epoch, then one; forked from full there
k1_warped   one repeat, and the schedule as slow in the beginning as detector's repeats make it:
            pass for pass the same training (`cpfast.train.warp`), without any repeat
shortened   k repeats in fewer epochs, for the detector arm's samples, the schedule compressed
rs2         k repeats of random subsets, fresh in each epoch, for the detector arm's samples
            (arXiv 2305.18424)

and for each pruning policy p ("random" is called rs2)

p           k repeats, pruned from the start (rs2 as above)
k1+p        one repeat, pruned from the start
detector+p  forked from full at the period's end; one repeat and pruning from then on

and, by their names alone (they are not among "all"), those of policies that need tokens, and

r            a recipe that is none of the arms above, such as early-decay
k1+r         the same, with one repeat
detector:c   detector, where the criterion c says that the period has ended; not forked from full,
             which does not watch it

and for each budget b, in percent of full's samples (all three by --budgets, each by its name)

shortened@b  k repeats in fewer epochs
k1@b         one repeat, the schedule stretched
rs2@b        k repeats of random subsets

Whatever is counted in epochs or samples is the nearest whole number to its budget. Annealing, the
full data at the end, is off where a budget is to be met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import recipes
from cpfast.train.config import Config
from cpfast.train.errors import UserError

DEFAULT = ("full", "detector", "k1", "k1_matched", "shortened")
FAIR = ("k1", "k1_matched", "shortened")  # controls that no comparison should lack
CONTROLS = (*FAIR, "k1_warped", "fixed", "rs2")
BUDGETED = ("shortened", "k1", "rs2")  # bases
BUDGETS = (50, 60, 70, 80, 100)
# Recipes that are arms by other means: forked, or with a policy.
_ARMS_OF_THEIR_OWN = ("full", "detector", "prune", "detector+prune")
NAMES = {"random": "rs2"}  # of policies, where the literature has another

# The settings of an arm from those of full, the training samples there are, and the samples that
# the arm it matches has used.
Settings = Callable[[Config, int, int], Config]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        text: what it does; {k} stands for the repeats, {at} for the epoch of fixed.
        settings: see `Settings`.
        needs: the arm that must have ended before: full to fork from, or the one it matches.
        fork: whether to fork from full after an epoch, given the end of the period; None for an
            arm that starts anew.
        watches: acts on the rotation, and so pays for measuring it.
        repeated: is another arm all over again where k = 1.
        base: the arm that it varies, where it is a variant: k1 of k1+infobatch and of k1@50.
        policy: that it prunes by.
        by_name: not among "all".
        budget: in percent of full's samples, where it has one of its own.
    """

    name: str
    text: str
    settings: Settings
    needs: str | None = None
    fork: Callable[[int, int | None], bool] | None = None
    watches: bool = False
    repeated: bool = False
    base: str | None = None
    policy: str | None = None
    budget: int | None = None
    by_name: bool = False

    @property
    def takes_reference(self) -> bool:
        """Whether its policy chooses by the losses of another model as well: --reference."""
        return self.policy is not None and policies.make(self.policy).needs_tokens

    def configured(self, config: Config, size: int, samples: int) -> Config:
        """As `settings`, with the reference where its policy takes one."""
        own = self.settings(config, size, samples)
        return own if self.takes_reference else own.replace(reference=None)

    def describe(self, repeats: int | str, at: int | str) -> str:
        return self.text.format(k=repeats, at=at).replace("k = k", "k")


def known(at: int, budgets: Sequence[int] = ()) -> dict[str, Arm]:
    """All arms by name; `fixed` switches after epoch `at`."""
    arms = [
        Arm("full", "k = {k} throughout", _as_given),
        Arm("detector", "k = {k}, then 1", _detected, needs="full", fork=_ends, watches=True,
            repeated=True),
        Arm("k1", "k = 1, as many epochs", _once, repeated=True),
        Arm("k1_matched", "k = 1, detector's samples", _once_matched, needs="detector",
            repeated=True),
        Arm("k1_warped", "k = 1, detector's samples and learning rates", _once_warped,
            needs="detector", repeated=True, by_name=True),
        Arm("fixed", "k = {k}, and 1 after epoch {at}", partial(_fixed, at=at),
            needs="full", fork=lambda epoch, end: epoch == at, repeated=True),
        Arm("shortened", "k = {k}, fewer epochs, detector's samples", _shortened_matched,
            needs="detector", repeated=True),
    ]  # fmt: skip
    for policy, entry in policies.items():
        name = NAMES.get(policy, policy)
        by_name = getattr(entry.factory, "needs_tokens", False)  # goes with text alone
        if policy == "random":
            arms.append(
                Arm(name, "k = {k} of random subsets, detector's samples", _subsets_matched,
                    needs="detector", repeated=True, policy=policy)
            )  # fmt: skip
        else:
            arms.append(
                Arm(name, "k = {k}, pruned", partial(_pruned, policy=policy), policy=policy,
                    by_name=by_name)
            )  # fmt: skip
        arms += [
            Arm(f"k1+{name}", "k = 1, pruned", partial(_pruned, policy=policy, repeats=1),
                repeated=True, base="k1", policy=policy, by_name=by_name),
            Arm(f"detector+{name}", "k = {k}, then 1 and pruned",
                partial(_detected_pruned, policy=policy), needs="full", fork=_ends, watches=True,
                base="detector", policy=policy, by_name=by_name),
        ]  # fmt: skip
    for recipe in [name for name in recipes if name not in _ARMS_OF_THEIR_OWN]:
        arms += [
            Arm(recipe, f"k = {{k}}, {recipe}", partial(_by_recipe, recipe=recipe), watches=True,
                by_name=True),
            Arm(f"k1+{recipe}", f"k = 1, {recipe}", partial(_by_recipe, recipe=recipe, repeats=1),
                watches=True, repeated=True, base="k1", by_name=True),
        ]  # fmt: skip
    for criterion in [name for name in criteria if name != "fixed"]:
        arms.append(
            Arm(f"detector:{criterion}", f"k = {{k}}, 1 after {criterion}",
                partial(_by_criterion, criterion=criterion), watches=True, repeated=True,
                base="detector", by_name=True)
        )  # fmt: skip
    for budget in budgets:
        share = budget / 100
        if budget < 100:  # else they are full
            arms += [
                Arm(f"shortened@{budget}", f"k = {{k}}, {budget} % of the epochs",
                    partial(_shortened, share=share), base="shortened", budget=budget),
                Arm(f"rs2@{budget}", f"k = {{k}} of random {budget} %",
                    partial(_share, share=share), base="rs2", policy="random", budget=budget),
            ]  # fmt: skip
        arms.append(
            Arm(f"k1@{budget}", f"k = 1, {budget} % of full's samples",
                partial(_stretched, share=share), repeated=True, base="k1", budget=budget)
        )  # fmt: skip
    return {arm.name: arm for arm in arms}


def choose(names: Sequence[str], arms: dict[str, Arm], repeats: int) -> tuple[str, ...]:
    """The arms named ("all" are all), with full, and those that they need, in the order of `arms`.

    Raises:
        UserError: for a name that there is not, or an arm that with k = 1 is another one.
    """
    unknown = [name for name in names if name not in arms and name != "all"]
    if unknown:
        raise UserError(f"--arms: no arm {unknown[0]!r}; there are {', '.join(arms)}, or all")
    useful = [a.name for a in arms.values() if repeats > 1 or not a.repeated]
    every = [name for name in useful if not arms[name].by_name]
    wanted = {"full", *(name for name in names if name != "all")}
    wanted |= set(every) if "all" in names else set()
    double = sorted(wanted - set(useful))
    if double:
        raise UserError(
            f"--arms {','.join(double)}: with --repeats 1 no other than the rest; choose from "
            f"{', '.join(useful)}"
        )
    while more := {n for w in wanted if (n := arms[w].needs) is not None} - wanted:
        wanted |= more
    return tuple(name for name in arms if name in wanted)


def taking_references(arms: dict[str, Arm], repeats: int) -> list[str]:
    """Those that a reference may be given to."""
    useful = (arm for arm in arms.values() if repeats > 1 or not arm.repeated)
    return [arm.name for arm in useful if arm.takes_reference]


def budgets_of(names: Iterable[str]) -> set[int]:
    """Those that the names of arms tell, such as k1@50."""
    texts = (name.partition("@")[2] for name in names)
    return {int(text) for text in texts if text.isdecimal() and 1 <= int(text) <= 100}


def order(names: Iterable[str], arms: dict[str, Arm], shift: int) -> list[str]:
    """The order in which a seed runs the arms: each after the one it needs, else rotated.

    So arms that wait for none begin with another one for every seed, lest a machine that slows
    down as it warms favour one of them; detector always follows full, and what is matched to
    detector always follows detector.
    """
    waiting, ordered = list(names), []
    shift %= len(waiting)
    waiting = waiting[shift:] + waiting[:shift]
    while waiting:
        ready = next(n for n in waiting if arms[n].needs is None or arms[n].needs in ordered)
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _ends(epoch: int, end: int | None) -> bool:
    return epoch == end


def _unwatched(config: Config, **changes: object) -> Config:
    """Settings of an arm in which nothing depends on the rotation, so that it is not measured."""
    return config.replace(
        **{"method": "full", "detect": False, "criterion": "slope45", "at": None, **changes}
    )


def _lasting(config: Config, epochs: float, **changes: object) -> Config:
    """Over another number of epochs, evaluated as often in all."""
    whole = _nearest(epochs)
    every = math.ceil(config.eval_every * whole / config.epochs)
    return _unwatched(config, epochs=whole, eval_every=every, **changes)


def _as_given(config: Config, size: int, samples: int) -> Config:
    return config


def _once(config: Config, size: int, samples: int) -> Config:
    return _unwatched(config, repeats=1)


def _once_matched(config: Config, size: int, samples: int) -> Config:
    return _lasting(config, samples / size, repeats=1)


def _once_warped(config: Config, size: int, samples: int) -> Config:
    # detector has made k passes in each of its first epochs, and one in the others
    end = (_nearest(samples / size) - config.epochs) // (config.repeats - 1)
    slow = config.repeats * end
    return _lasting(config, slow + config.epochs - end, repeats=1, warp=f"{config.repeats}@{slow}")


def _shortened_matched(config: Config, size: int, samples: int) -> Config:
    return _lasting(config, samples / (config.repeats * size))


def _subsets_matched(config: Config, size: int, samples: int) -> Config:
    return _subsets(config, size, samples / (config.repeats * config.epochs))


def _fixed(config: Config, size: int, samples: int, at: int) -> Config:
    return config.replace(method="detector", criterion="fixed", at=at)


def _pruned(config: Config, size: int, samples: int, policy: str, **changes: object) -> Config:
    return _unwatched(config, method="prune", policy=policy, **changes)


def _by_recipe(config: Config, size: int, samples: int, recipe: str, **changes: object) -> Config:
    return config.replace(**{"method": recipe, **changes})


def _by_criterion(config: Config, size: int, samples: int, criterion: str) -> Config:
    return config.replace(method="detector", criterion=criterion, at=None)


def _detected(config: Config, size: int, samples: int) -> Config:
    return config.replace(method="detector")


def _detected_pruned(config: Config, size: int, samples: int, policy: str) -> Config:
    return config.replace(method="detector+prune", policy=policy)


def _subsets(config: Config, size: int, samples: float) -> Config:
    """So many random samples in each pass: the half keeps floor(keep * size) at that number."""
    keep = min(1.0, (_nearest(samples) + 0.5) / size)
    return _unwatched(config, method="prune", policy="random", keep=keep, anneal=1.0)


def _shortened(config: Config, size: int, samples: int, share: float) -> Config:
    return _lasting(config, share * config.epochs)


def _stretched(config: Config, size: int, samples: int, share: float) -> Config:
    return _lasting(config, share * config.repeats * config.epochs, repeats=1)


def _share(config: Config, size: int, samples: int, share: float) -> Config:
    return _subsets(config, size, share * size)


def _nearest(number: float) -> int:
    """Half up, and at least one: `round` would take halves to even numbers."""
    return max(1, math.floor(number + 0.5))
