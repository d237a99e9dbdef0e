"""The processes that train one run together: torchrun starts them, and each takes its part of every
batch.

Their gradients are averaged by one all-reduce a step, of all of them in one tensor, rather than by
DistributedDataParallel: that waits for the gradient of every parameter, and layers may be frozen
here. Whatever is decided, rank 0 decides it, or all do from the same numbers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpfast.train.errors import UserError
from cpfast.train.files import new_folder


class Ranks:
    """This process among those of a run; one alone where torchrun has not started it.

    Attributes:
        size, rank: number of processes, and which of them this is.
        collectives, bytes: what this process has given to so many since `count` was last called.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.collectives = self.bytes = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    # --- within the training ----------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Over all of them, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            self.count(values.nbytes)
        return values

    def agree(self, values: Tensor) -> Tensor:
        """On what rank 0 has, in place: lest a last bit has them decide differently."""
        if self.size > 1:
            dist.broadcast(values, 0)
            self.count(values.nbytes)
        return values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """In place, where there are any: one collective."""
        if self.size > 1:
            self.average([p.grad for p in parameters if p.grad is not None])

    def average_buffers(self, module: nn.Module) -> None:
        """The running statistics, of which each process has seen its part of the batches."""
        if self.size > 1:
            self.average([buffer for buffer in module.buffers() if buffer.is_floating_point()])

    def average(self, tensors: list[Tensor]) -> None:
        """In place: one collective, of all of them."""
        if self.size == 1 or not tensors:
            return
        flat = self.sum(torch.cat([tensor.flatten() for tensor in tensors])) / self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def count(self, nbytes: int) -> None:
        """A collective to which this process gave so many bytes."""
        self.collectives += 1
        self.bytes += nbytes

    def counted(self) -> tuple[int, int]:
        """Collectives and bytes since the last call."""
        counted = self.collectives, self.bytes
        self.collectives = self.bytes = 0
        return counted

    # --- around it --------------------------------------------------------------------------

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 does it, then the others, who find what it has fetched or decoded."""
        if self.size > 1 and not self.is_first:
            dist.barrier()
        yield
        if self.size > 1 and self.is_first:
            dist.barrier()

    def new_folder(self, parent: Path, name: str) -> Path:
        """As `files.new_folder`, of rank 0; a temporary one of the others."""
        return new_folder(parent if self.is_first else _temporary(), name)

    def mirrored(self, path: Path) -> Path:
        """The folder that this process reads and writes in place of `path`: rank 0 that itself, the
        others a temporary copy, so that all go the same way whether they see rank 0's disk or not.
        """
        if self.size == 1:
            return path
        names = [_names(path)] if self.is_first else [None]
        dist.broadcast_object_list(names, 0)
        copy = path if self.is_first else _temporary() / path.name
        for name in names[0] or ():
            content = [(path / name).read_bytes()] if self.is_first else [None]
            dist.broadcast_object_list(content, 0)
            if not self.is_first:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(content[0])  # type: ignore[arg-type]
        return copy


def join(device: str) -> Ranks:
    """Find the other processes, where torchrun has started several.

    Args:
        device: "cpu", or "cuda:N".

    Raises:
        UserError: more processes than GPUs.
    """
    if is_one_of_several() and not dist.is_initialized():
        is_cuda = torch.device(device).type == "cuda"
        if is_cuda:
            local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if local >= count:
                raise UserError(f"--device {device}: a process too many for {count} GPUs")
            torch.cuda.set_device(local)
        # A restarted process finds the addresses of those before it in the store that it shares
        # with them (torch 2.13, torchrun --standalone).
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store, rank, size = next(dist.rendezvous("env://"))
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.PrefixStore(f"cpfast-{attempt}", store),
            rank=rank,
            world_size=size,
        )
    return Ranks()


def leave() -> None:
    """When all is done."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def is_one_of_several() -> bool:
    """Whether torchrun has started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


def on_this_machine() -> int:
    """How many of these processes share it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1) if is_one_of_several() else 1


def machines() -> int:
    """How many the processes are spread over, if evenly."""
    world = int(os.environ.get("WORLD_SIZE", "1") or 1)
    return -(-world // on_this_machine()) if is_one_of_several() else 1


def is_speaker() -> bool:
    """Whether this is rank 0, or there is no other, before they have found each other too."""
    return not is_one_of_several() or int(os.environ.get("RANK", "0") or 0) == 0


def own_device(device: str) -> str:
    """The one of this process."""
    if torch.device(device).type != "cuda" or not is_one_of_several():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def is_restarted() -> bool:
    """Whether torchrun has started the processes again, after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) > 0


def may_restart() -> bool:
    """Whether it would."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") or 0) > 0


def _names(path: Path) -> list[str]:
    """Of all files in a folder, but for what is hidden."""
    files = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
    return [str(file) for file in files if not any(p.startswith(".") for p in file.parts)]


_folders: list[Any] = []  # removed when the process ends


def _temporary() -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="cpfast-"))
    return Path(_folders[-1].name)
