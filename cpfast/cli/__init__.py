"""The command line, one file a command:
`cpfast train | eval | predict | score | compare | study | report | list | env`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

import cpfast
from cpfast.cli import compare, env, predict, report, score, study, train
from cpfast.cli import eval as eval_command
from cpfast.cli import list as list_command
from cpfast.cli.options import Parser
from cpfast.cli.start import Interrupted
from cpfast.train.errors import UserError

__all__ = ["main"]

COMMANDS = (
    train, eval_command, predict, score, compare, study, report, list_command, env,
)  # fmt: skip
OUT_OF_MEMORY = "out of memory: use a smaller --limit, --batch-size or --model"


EXAMPLES = """\
examples:
  cpfast train                                   on scikit-learn's digits, in seconds
  cpfast train --data photos --out runs/photos   on folders of images, one for each class
  cpfast predict runs/photos new.jpg             and what the model says of another one
  cpfast compare --data cifar10 --download       what methods save, against plain training

cpfast COMMAND --help tells more of each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 where a part of what was asked for could not
    be done, 2 for an error, 130 for Ctrl-C, 141 for a pipe whose reader has gone.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a module here
    try:
        options = vars(_parser().parse_args(arguments))
        del options["command"]
        run = options.pop("run")
        status = run(options, arguments)
        sys.stdout.flush()  # so that a reader that has gone is noticed here
        return status or 0
    except UserError as error:
        return _fail(str(error))
    except torch.OutOfMemoryError:
        return _fail("the device is out of memory: use a smaller --batch-size or --model")
    except MemoryError:
        return _fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # as torch's allocator for the CPU says it
            raise
        return _fail(OUT_OF_MEMORY)
    except BrokenPipeError:
        # As `head` leaves it. What is still buffered must not fail at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Interrupted as stop:
        print(f"\ncpfast: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\ncpfast: interrupted", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"cpfast: error: {message}", file=sys.stderr)
    return 2


def _parser() -> Parser:
    parser = Parser(
        prog="cpfast",
        description="Train PyTorch models on your data, with fewer samples once the critical\n"
        "learning period has ended, and compare what that saves.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cpfast {cpfast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        command.add(commands)
    return parser
