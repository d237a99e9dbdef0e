"""The command line, in which one process kills itself in the middle of an epoch, once: run by
torchrun, as killed_training.py RANK STEP ARGUMENTS... of cpfast."""

import os
import signal
import sys

from cpfast import cli
from cpfast.train import loop, ranks


def main(rank: int, step: int, arguments: list[str]) -> int:
    steps = []
    original = loop.Training.step

    def killing(training, *args):
        steps.append(1)
        if len(steps) == step and training.ranks.rank == rank and not ranks.is_restarted():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(training, *args)

    loop.Training.step = killing
    return cli.main(arguments)


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
