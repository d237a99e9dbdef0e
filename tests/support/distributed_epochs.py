"""Trains a data-parallel model on pruned data, and writes what this rank saw: run by torchrun."""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import cpfast

N, EPOCHS = 203, 4


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(N, 8, generator=g), torch.randint(4, (N,), generator=g))
    torch.manual_seed(rank)  # DistributedDataParallel starts all ranks from rank 0's weights
    model = DistributedDataParallel(torch.nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rotation = cpfast.LayerRotation(model.module)
    detector = cpfast.CriticalPeriodDetector("slope45", EPOCHS, window=2)
    pruner = cpfast.DataPruner(N, EPOCHS, anneal=1.0)
    sampler = cpfast.PrunedSampler(pruner)
    loader = DataLoader(cpfast.IndexedDataset(data), 16, sampler=sampler)

    calls = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda *args, **kwargs: (calls.append(1), all_reduce(*args, **kwargs))[1]
    log = {
        "plans": [],
        "shares": [],
        "rotation": [],
        "collectives": [],
        "refused": "",
        "state refused": "",
    }
    for epoch in range(EPOCHS):
        calls.clear()
        sampler.set_epoch(epoch)
        log["plans"].append(pruner.plan(epoch).tolist())
        share = []
        with model.join():  # shares may differ by a sample, and so by a step
            for (x, y), index in loader:
                optimizer.zero_grad()
                pruner.loss(model(x), y, index).backward()
                optimizer.step()
                share += index.tolist()
        calls.clear()
        try:
            pruner.plan(epoch + 1)
        except RuntimeError as error:
            log["refused"] = str(error)
        try:
            pruner.state_dict()
        except RuntimeError as error:
            log["state refused"] = str(error)
        pruner.sync()
        log["collectives"].append(len(calls))
        log["shares"].append(share)
        rotation.update()
        detector.step(rotation.mean(), epoch + 1)
        log["rotation"].append(rotation.mean().item())
    log["end_epoch"] = detector.end_epoch
    log["scores"] = pruner.scores.tolist()
    (folder / f"rank{rank}.json").write_text(json.dumps(log))
    dist.barrier()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    # Without torch's teardown: in 1 of 20 runs on a busy machine a process of gloo's aborts in it
    # ("terminate called without an active exception"), with all work done.
    os._exit(0)
