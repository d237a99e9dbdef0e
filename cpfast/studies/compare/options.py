"""The options of `cpfast compare`, and the plan that they ask for."""

from __future__ import annotations

import argparse
import math
from typing import Any

from cpfast.train.compare import arms
from cpfast.train.compare.comparison import Comparison
from cpfast.train.compare.falsify import Falsification
from cpfast.train.compare.oracle import SETTINGS, Oracle
from cpfast.train.compare.plan import Plan
from cpfast.train.config import Config
from cpfast.train.errors import UserError

# What goes with which kind; --seeds goes with all.
OWN: dict[str, tuple[str, ...]] = {
    "arms": ("arms", "budgets", "at", "keep", "anneal"),
    "falsify": ("batch_factors", "decay_factors", "epoch_factors"),
    "oracle": ("oracle_settings", "switch_epochs"),
}
SEEDS = 2**32  # what a seed must be below
KINDS = {"arms": "the comparison of arms", "falsify": "--falsify", "oracle": "--oracle"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that `cpfast train` does not share. None means not given."""
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _arms_text()
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--falsify", dest="kind", action="store_const", const="falsify",
        help="try the criterion on true and on random labels instead, beside a diffusion null",
    )  # fmt: skip
    kinds.add_argument(
        "--oracle", dest="kind", action="store_const", const="oracle",
        help="sweep the epoch of the switch from k to 1 instead, and show each criterion's regret",
    )  # fmt: skip
    add("--seeds", type=int, help="how many, from --seed on; default: 3")
    add(
        "--arms",
        help=f"comma separated, or all; default: {','.join(arms.DEFAULT)}; with --repeats 1 all",
    )
    add("--budgets", type=int, nargs="*", metavar="PERCENT",
        help="also arms that use so much of full's samples; without a number: "
        f"{' '.join(map(str, arms.BUDGETS))}")  # fmt: skip
    add("--keep", type=float, help="share that pruning keeps; default: 0.5")
    add("--anneal", type=float, help="as in cpfast train, for arms with a detector or pruning")
    for name, what in (("batch", "batch size"), ("decay", "weight decay"), ("epoch", "epochs")):
        add(f"--{name}-factors", type=float, nargs="+", metavar="FACTOR",
            help=f"of --falsify: of the {what}; default: 0.5 1 2")  # fmt: skip
    add("--oracle-settings", help=f"comma separated; default: {','.join(SETTINGS)}")
    add("--switch-epochs", type=int, nargs="+", metavar="EPOCH",
        help="of --oracle; default: about 7, each twice the one before")  # fmt: skip


def _arms_text() -> str:
    """A line for each arm; k stands for --repeats."""
    known = arms.known(0, (50,))
    lines = [f"  {arm.name:<20}{arm.describe('k', '--at')}" for arm in known.values()]
    return "\n".join(["arms, with k = --repeats (those with @50 are of --budgets 50):", *lines])


def plan_from(options: dict[str, Any]) -> Plan:
    """The plan that the options ask for; --device is resolved already.

    Raises:
        UserError: an option that does not go with the kind, or has a wrong value.
    """
    given = dict(options)
    kind = given.pop("kind") or "arms"
    count = given.pop("seeds")
    count = 3 if count is None else count
    if count < 1:
        raise UserError(f"--seeds must be at least 1, got {count}")
    own = {name: given.pop(name) for names in OWN.values() for name in names}
    if kind == "falsify" and given.get("labels") is not None:
        raise UserError(f"--falsify has both labels; leave --labels {given['labels']} out")
    if kind != "arms" and given.get("criterion") == "fixed":
        raise UserError(f"{KINDS[kind]}: --criterion fixed looks at no rotation")
    for other, names in OWN.items():
        for name in names:
            if other != kind and own[name] is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} goes with {KINDS[other]}, not with {KINDS[kind]}")
    # With --criterion fixed the arms `detector` and `fixed` are one.
    fixed = given.get("criterion") == "fixed"
    base = {**given, "method": "full", "keep": own["keep"], "anneal": own["anneal"]}
    config = Config.from_options({**base, "at": own["at"] if fixed else None})
    if config.seed + count > SEEDS:
        raise UserError(f"--seeds {count}: from --seed {config.seed} on they leave 0 .. 2**32 - 1")
    seeds = tuple(range(config.seed, config.seed + count))
    if kind == "falsify":
        factors = {name: tuple(own[name]) for name in OWN[kind] if own[name] is not None}
        return Falsification(config, seeds, **factors)
    if kind == "oracle":
        named = own["oracle_settings"]
        names = tuple(SETTINGS) if named is None else _names("--oracle-settings", named)
        return Oracle(config, seeds, names, tuple(sorted(set(own["switch_epochs"] or ()))))
    return _comparison(config, seeds, own)


def _comparison(config: Config, seeds: tuple[int, ...], own: dict[str, Any]) -> Comparison:
    at = math.ceil(config.epochs / 8) if own["at"] is None else own["at"]
    if not 1 <= at <= config.epochs:
        raise UserError(f"--at must be in 1 .. {config.epochs} (--epochs), got {at}")
    budgets: tuple[int, ...] = ()
    if own["budgets"] is not None:
        budgets = tuple(sorted(set(own["budgets"]))) or arms.BUDGETS
    for budget in budgets:
        if not 1 <= budget <= 100:
            raise UserError(f"--budgets must be in 1 .. 100 (percent), got {budget}")
    known = arms.known(at, budgets)
    # With k = 1 most of the default ones are full all over again.
    default = ",".join(arms.DEFAULT) if config.repeats > 1 else "all"
    wanted = _names("--arms", default if own["arms"] is None else own["arms"])
    of_budgets = [
        n for n, a in known.items() if "@" in n and (config.repeats > 1 or not a.repeated)
    ]
    return Comparison(
        config, seeds, arms.choose([*wanted, *of_budgets], known, config.repeats), at, budgets
    )


def _names(option: str, text: str) -> tuple[str, ...]:
    """Each once, in the order given."""
    names = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise UserError(f"{option}: no name in {text!r}")
    return names
