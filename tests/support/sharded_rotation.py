"""Measures layers whose weights are sharded over all ranks: run by torchrun."""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import cpfast
from cpfast.detection.probe import ModelProbe


def rotation_of(before: torch.Tensor, now: torch.Tensor) -> float:
    before, now = before.double().flatten(), now.double().flatten()
    return float(1 - before @ now / (before.norm() * now.norm()))


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    # of 7, 5 and 1 rows: shares are uneven, and one rank has nothing of the last
    model = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.Linear(5, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    rotation = cpfast.LayerRotation(model)
    kernels = [p for p in model.parameters() if p.dim() > 1]
    log = {"names": rotation.names, "measured": [], "expected": [], "mean": []}
    for scale in (1.0, 0.2):  # the norms change too
        before = [p.full_tensor().clone() for p in kernels]
        rotation.reset()
        torch.manual_seed(rank)
        with torch.no_grad():
            for p in model.parameters():
                p.to_local().mul_(scale).add_(0.1 * torch.randn(p.to_local().shape))
        now = [p.full_tensor() for p in kernels]
        log["measured"].append(rotation.update().tolist())
        log["mean"].append(float(rotation.mean()))
        log["expected"].append([rotation_of(a, b) for a, b in zip(before, now, strict=True)])
    try:
        cpfast.LayerRotation(model, history=2).record()
    except RuntimeError as error:
        log["refused"] = str(error)
    try:
        ModelProbe(rotation, needs=("paths", "accuracy"))
    except RuntimeError as error:
        log["paths refused"] = str(error)
    ModelProbe(rotation, needs=("accuracy",))
    (folder / f"rank{rank}.json").write_text(json.dumps(log))
    dist.barrier()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    os._exit(0)  # see distributed_epochs.py
