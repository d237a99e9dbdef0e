"""Three steps with ScoredLMHead in one process, under DDP and under FSDP2: run by torchrun."""

import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import cpfast

SIZE, TOKENS, WIDTH, CLASSES = 16, 5, 8, 37


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = cpfast.ScoredLMHead(WIDTH, CLASSES, bias=True)

    def forward(self, x, target, index, pruner):
        return pruner.linear_loss(self.body(x).tanh(), self.head, target, index, chunk=3)


def train(wrap, rank: int, world: int) -> dict:
    """Of all rows, and of some tokens of sequences."""
    plain = trained(wrap, rank, world, cpfast.DataPruner(SIZE, 3, strict=None), (SIZE,))
    g = torch.Generator().manual_seed(2)
    pruner = cpfast.DataPruner(
        SIZE, 3, "tokens", strict=None, reference=torch.rand(SIZE, TOKENS, generator=g)
    )
    return {"plain": plain, "tokens": trained(wrap, rank, world, pruner, (SIZE, TOKENS))}


def trained(wrap, rank: int, world: int, pruner: cpfast.DataPruner, shape: tuple) -> dict:
    torch.manual_seed(0)
    model = wrap(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner.plan(0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, WIDTH, generator=g)
    target = torch.arange(x[..., 0].numel()).view(shape) % CLASSES
    index = torch.arange(SIZE)
    own = slice(rank, None, world)
    for _ in range(3):
        optimizer.zero_grad()
        model(x[own], target[own], index[own], pruner).backward()
        optimizer.step()
    if world > 1:
        pruner.sync()
    weights = {
        name.removeprefix("module."): p.full_tensor() if hasattr(p, "full_tensor") else p
        for name, p in model.state_dict().items()
    }
    return {**weights, "scores": pruner.scores}


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model.head)
    return fully_shard(model)


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {
        "ddp": train(DistributedDataParallel, rank, world),
        "fsdp": train(sharded, rank, world),
    }
    if rank == 0:
        for name, result in results.items():
            torch.save(result, folder / f"{name}.pt")
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        torch.save(train(lambda model: model, 0, 1), folder / "one.pt")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # see distributed_epochs.py
