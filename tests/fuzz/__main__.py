"""Random calls: ``PYTHONPATH=tests python -m fuzz OP SEED`` repeats one.

``python -m fuzz OP,OP FIRST_SEED HOW_MANY [FILE]`` makes many, and writes to the file before each
what repeats it, so that who finds the process dead knows the call. With EMULATED=LIBRARY in the
environment the CUDA kernels run, of a library that tests/cuda_emulation/build.py has made.
"""

import faulthandler
import os
import sys
from contextlib import nullcontext

import torch
from cuda_emulation.harness import Emulation

from .calls import CALLS
from .draws import Draws

MOST_FAILURES = 5


def main(names: str, first: int, count: int = 1, path: str = "/dev/null") -> int:
    """How many calls were wrong, of no more than that."""
    faulthandler.enable()
    torch.set_num_threads(1)
    failures = 0
    library = os.environ.get("EMULATED")
    kernels = Emulation(library).instead_of_cpu() if library else nullcontext()
    with kernels, open(path, "w") as file:
        for op in names.split(","):
            for seed in range(first, first + count):
                line = f"PYTHONPATH=tests python -m fuzz {op} {seed}"
                file.seek(0)
                file.write(f"{line:100}")
                file.flush()
                try:
                    call(op, seed)
                except Exception as error:
                    if count == 1:
                        raise
                    print(f"{line}  # {type(error).__name__}: {error}", flush=True)
                    failures += 1
                    if failures == MOST_FAILURES:
                        return failures
    return failures


def call(op: str, seed: int) -> None:
    r = Draws(op, seed)
    CALLS[op](r)
    r.check_kept()


if __name__ == "__main__":
    names, *numbers = sys.argv[1:]
    sys.exit(1 if main(names, *map(int, numbers[:2]), *numbers[2:]) else 0)
