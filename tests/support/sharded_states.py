"""Saves a rotation of sharded layers, a pruner and a detector, or loads them: run by torchrun.

sharded_states.py FOLDER save|load LAYOUT..., with layouts "fsdp", "tp", "hsdp", "2d" or "plain".
"""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import cpfast

N, EPOCHS = 40, 8


def made(layout: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 1))
    world = dist.get_world_size()
    if layout == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    elif layout == "hsdp":
        names = ("replicate", "shard")
        fully_shard(model, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=names))
    elif layout in ("tp", "2d"):
        shape = (world,) if layout == "tp" else (2, world // 2)
        names = ("tp",) if layout == "tp" else ("dp", "tp")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        if layout == "2d":
            fully_shard(model, mesh=mesh["dp"])
    return model


@torch.no_grad()
def turn(model: nn.Module, seed: int) -> None:
    """The same change of the whole weights, however they lie."""
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=g)
        if hasattr(parameter, "full_tensor"):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
        parameter.add_(noise)


def run(folder: pathlib.Path, what: str, layout: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = made(layout)
    rotation = cpfast.LayerRotation(model)
    detector = cpfast.CriticalPeriodDetector("slope45", EPOCHS, window=2)
    pruner = cpfast.DataPruner(N, num_epochs=EPOCHS, policy="ucb", anneal=1.0, strict=None)
    parts = {"rotation": rotation, "detector": detector, "pruner": pruner}
    if what == "save":
        for epoch in range(4):
            plan = pruner.plan(epoch)
            own = plan[rank::world]
            pruner.update(own, (own * 7 % 11).float())
            pruner.sync()
            turn(model, epoch)
            rotation.update()
            detector.step(rotation.mean(), epoch + 1)
        pruner.plan(4)
        dcp.save({k: part.state_dict() for k, part in parts.items()}, checkpoint_id=folder / "dcp")
        whole = rotation.state_dict(full=True)
        if rank == 0:
            torch.save(whole, folder / "rotation.pt")
    else:
        for epoch in range(4):
            turn(model, epoch)
        state = {k: part.state_dict() for k, part in parts.items()}
        dcp.load(state, checkpoint_id=folder / "dcp")
        for k, part in parts.items():
            part.load_state_dict(state[k])
    turn(model, 9)
    log = {
        "measured": rotation.update().tolist(),
        "detector": detector.state_dict(),
        "plan": pruner.plan(4).tolist(),
        "next": pruner.plan(5).tolist(),
        "planned": pruner.samples_planned,
    }
    if what == "load":
        other = cpfast.LayerRotation(model)
        other.load_state_dict(torch.load(folder / "rotation.pt", weights_only=True))
        log["from one file"] = other.update().tolist()
    (folder / f"{what}-{layout}-{world}-rank{rank}.json").write_text(json.dumps(log))
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for layout in sys.argv[3:]:
        run(pathlib.Path(sys.argv[1]), sys.argv[2], layout)
    os._exit(0)  # see distributed_epochs.py
