"""Several runs at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import NamedTuple

import torch

from cpfast.train import run
from cpfast.train.config import Config
from cpfast.train.data import Data
from cpfast.train.errors import Diverged
from cpfast.train.runfolder import RunFolder

__all__ = ["Job", "run_all", "work"]

_data: Data | None = None  # of a worker


class Job(NamedTuple):
    """A run to begin or to continue.

    Attributes:
        part: what of the study's data it is of; None: all of them. Goes to another process.
    """

    folder: RunFolder
    config: Config
    label: str
    part: Callable[[Data], Data] | None = None


def run_all(jobs: Sequence[Job], data: Data, workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each job as it ends, and why it diverged, or None.

    Raises:
        UserError: of any of them; those that were begun end first.
    """
    # A process that was forked would share the threads' locks of this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (data,)) as pool:
        waiting: dict[Future[str | None], Job] = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def work(job: Job, data: Data) -> str | None:
    """Why it diverged, or None."""
    with job.folder.locked():
        if not job.folder.is_run():
            job.folder.create(job.config)
        try:
            run.train(job.config, data if job.part is None else job.part(data), job.folder)
        except Diverged as error:
            return str(error)
    return None


def _begin(data: Data) -> None:
    global _data
    _data = data


def _work(job: Job) -> str | None:
    assert _data is not None
    torch.set_num_threads(job.config.threads or 1)
    return work(job, _data)
