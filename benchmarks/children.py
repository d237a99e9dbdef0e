"""Processes under a limit, each with what it starts in a group of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence

GRACE = 10.0  # seconds from the interrupt to the kill


class Child:
    """A process that gets Ctrl-C when its time is over, and is killed if it does not end of it.

    Args:
        log: file that gets its output; None leaves it where ours goes.
        end: time.monotonic() at which its time is over.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        end: float,
        environment: dict[str, str] | None = None,
        folder: pathlib.Path | None = None,
        log: pathlib.Path | None = None,
        grace: float = GRACE,
    ) -> None:
        self.end, self.grace = end, grace
        self.begun = time.monotonic()
        self.interrupted = False
        with contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("ab"))
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # process_group=0 from Python 3.11 on
            )

    def poll(self) -> int | None:
        """Its exit code once it has ended; nothing of its group is left by then."""
        code = self._process.poll()
        now = time.monotonic()
        if code is None:
            if now > self.end + self.grace:
                self._signal(signal.SIGKILL)
            elif now > self.end and not self.interrupted:
                self.interrupt()
            return None
        self._signal(signal.SIGKILL)
        return code

    def interrupt(self) -> None:
        self.interrupted = True
        self.end = min(self.end, time.monotonic())
        self._signal(signal.SIGINT)

    def wait(self, pause: float = 0.05) -> int:
        while (code := self.poll()) is None:
            time.sleep(pause)
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def hear_interrupts() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and its children with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
