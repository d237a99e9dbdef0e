"""The examples of the checkout: run in processes of their own, and compared with their twins."""

import difflib
import os
import pathlib
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def changed_lines(plain: pathlib.Path, ours: pathlib.Path) -> list[str]:
    """What a user of the plain script changes to have ours: the lines that are new or other, and
    those that are left out in place of none. Blank lines do not count."""
    before, after = (
        [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for path in (plain, ours)
    )
    changed = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            changed += [*after[c:d], *before[a:b][d - c :]]
    return changed


def run_example(
    path: pathlib.Path, *args: str, timeout: float = 120, launcher: tuple[str, ...] = ()
) -> str:
    """What a script prints.

    Args:
        launcher: a module and its arguments that start the script, such as :func:`torchrun`.
    """
    done = subprocess.run(
        [sys.executable, *(("-m", *launcher) if launcher else ()), str(path), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    # Processes of gloo's abort now and then in torch's teardown, after all is printed.
    aborted = bool(launcher) and "terminate called without an active exception" in done.stderr
    assert done.returncode == 0 or aborted, f"{path}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def torchrun(processes: int) -> tuple[str, ...]:
    return "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"
