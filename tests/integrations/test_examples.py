"""The examples run, learn, and are a few lines away from what their users have."""

import re
import runpy

import pytest
from support.accelerators import forget_accelerators
from support.example_scripts import EXAMPLES, changed_lines, run_example, torchrun

pytestmark = pytest.mark.slow

TWINS = sorted(path.name for path in (EXAMPLES / "plain").glob("*.py"))
FULL = 30 * 1437  # samples of as many epochs


def outcome(printed: str) -> tuple[float, int]:
    """Test accuracy in %, and samples seen; whoever trains by itself prints a line of its own."""
    (accuracy, samples), *others = re.findall(r"accuracy ([\d.]+)% after (\d+) samples", printed)
    assert not others
    return float(accuracy), int(samples)


@pytest.mark.parametrize("name", TWINS)
def test_at_most_five_lines_change(name):
    changed = changed_lines(EXAMPLES / "plain" / name, EXAMPLES / name)
    assert 0 < len(changed) <= 5, "\n".join(changed)


def test_changed_lines_are_counted(tmp_path):
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text("a\nb\n\nc\nd\ne\n")
    after.write_text("a\nB\nc\n\nnew\nd\n")
    assert changed_lines(before, after) == ["B", "new", "e"]
    assert changed_lines(before, before) == []


def test_all_are_listed_with_their_command():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in listed


def run_here(path, capsys):
    """As ``python path`` does, without the time that imports take."""
    runpy.run_path(str(path), run_name="__main__")
    forget_accelerators()
    return "".join(capsys.readouterr())


def needs_accelerate(*values):
    return pytest.param(*values, marks=pytest.mark.needs("accelerate"))


NEEDS_LIGHTNING = pytest.param("lightning_digits.py", marks=pytest.mark.needs("lightning"))


def assert_learns_from_fewer(printed):
    accuracy, samples = outcome(printed)
    assert accuracy > 89  # of other people's handwriting
    assert samples < 0.8 * FULL
    assert "UserWarning" not in printed  # of samples that were planned and not seen


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize(
    "name", ["plain_digits.py", needs_accelerate("accelerate_digits.py"), NEEDS_LIGHTNING]
)
def test_on_one_process(name, capsys, one_thread):
    plain = run_here(EXAMPLES / "plain" / name, capsys)
    accuracy, samples = outcome(plain)
    assert accuracy > 89 and samples == FULL
    assert_learns_from_fewer(run_here(EXAMPLES / name, capsys))


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("fsdp2_digits.py", torchrun(2)),
        needs_accelerate("accelerate_digits.py", torchrun(2)),
        needs_accelerate(
            "accelerate_digits.py",
            ("accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        ),
    ],
    ids=["fsdp2", "accelerate", "accelerate launch"],
)
def test_on_two_processes(name, launcher):
    assert_learns_from_fewer(run_example(EXAMPLES / name, launcher=launcher))


@pytest.mark.needs("sklearn")
def test_the_plain_twin_of_fsdp2():
    accuracy, samples = outcome(
        run_example(EXAMPLES / "plain" / "fsdp2_digits.py", launcher=torchrun(1))
    )
    assert accuracy > 89 and samples == FULL
