"""Somebody's own policy, criterion and action: one small class each, in a package of their own."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

MODULE = """
import torch
import cpfast
from cpfast.detection import Criterion
from cpfast.pruning import Chosen, Policy
from cpfast.recipes import Repeats, Recipe, recipes
from cpfast.recipes.action import ALWAYS


@cpfast.policies.register("every-second", source="a test")
class EverySecond(Policy):
    '''Keeps the samples of even number, and those that were never seen.'''

    unbiased = False

    def state(self, size, device):
        return {"epochs": torch.zeros(size, device=device)}

    def update(self, samples, moment):
        samples.state["epochs"] += samples.columns["loss"].isfinite()

    def select(self, samples, moment, keep, draw):
        even = samples.everyone() % 2 == 0
        return Chosen.of(even | (samples.state["epochs"] == 0))


@cpfast.criteria.register("half-turn", source="a test")
class HalfTurn(Criterion):
    '''The mean rotation reaches a threshold.'''

    def __init__(self, threshold: float = 0.01):
        self.threshold = threshold

    def measure(self, probe):
        return probe.rotation().mean(0, keepdim=True)

    def judge(self, history, moment):
        value = history[-1].values[0]
        return f"half-turn: {value:.2f}" if value > self.threshold else None


@cpfast.actions.register("slower", source="a test")
class Slower:
    '''Halves the learning rate.'''

    window = ALWAYS

    def apply(self, settings, amount, moment):
        return settings._replace(lr=settings.lr * (1 - amount / 2))


@recipes.register("slow", source="a test")
def slow(total_epochs: int, repeats: int = 2) -> Recipe:
    '''Two passes, slowly.'''
    return Recipe(total_epochs, [Repeats(repeats), Slower()])
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The module, found by its entry points as an installed package's are."""
    (tmp_path / "toys.py").write_text(MODULE)
    metadata = tmp_path / "toys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    groups = ("policies", "criteria", "actions", "recipes")
    (metadata / "entry_points.txt").write_text(
        "".join(f"[cpfast.{group}]\ntoys = toys\n" for group in groups)
    )
    paths = [str(tmp_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    return tmp_path


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_found_by_name(installed):
    out = python(
        """
        import cpfast
        from cpfast.recipes import recipes

        for registry in (cpfast.policies, cpfast.criteria, cpfast.actions, recipes):
            print([entry.line for entry in registry.values() if entry.source == "a test"])
        pruner = cpfast.DataPruner(6, policy="every-second", strict=None)
        print(sorted(pruner.plan(0).tolist()))
        import torch
        pruner.update(torch.arange(6), torch.ones(6))
        print(sorted(pruner.plan(1).tolist()))
        again = cpfast.DataPruner(6)
        again.load_state_dict(pruner.state_dict())
        print(sorted(again.plan(2).tolist()), again.policy)
        """
    )
    assert out.splitlines() == [
        "['Keeps the samples of even number, and those that were never seen.']",
        "['The mean rotation reaches a threshold.']",
        "['Halves the learning rate.']",
        "['Two passes, slowly.']",
        "[0, 1, 2, 3, 4, 5]",
        "[0, 2, 4]",
        "[0, 2, 4] every-second",
    ]


def test_the_command_line_trains_with_them(installed):
    out = installed / "run"
    python(
        f"""
        from cpfast.cli import main

        options = "--epochs 3 --no-energy --no-plot --policy every-second --criterion half-turn"
        options += " --preset paper"
        code = main(["train", "--method", "slow", *options.split(), "--out", {str(out)!r}])
        assert code == 0
        """
    )
    text = (out / "metrics.jsonl").read_text()
    assert '"period_end_reason": "half-turn' in text
    assert '"lr": 0.05,' in text.splitlines()[0]  # half of that of digits
    listed = python("from cpfast.cli import main; main(['list'])")
    for name in ("every-second", "half-turn", "slower", "slow"):
        assert name in listed
