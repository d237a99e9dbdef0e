"""Trains by Lightning in several processes, and writes what this rank saw: run by torchrun."""

import json
import os
import pathlib
import sys
import warnings

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch.utils.data import BatchSampler, DataLoader
from toy_lightning import (
    BATCH,
    EPOCHS,
    Parts,
    Toy,
    data,
    made,
    network,
    optimizer_of,
    trainer,
)

import cpfast
from cpfast.integrations.course import Course

RANKS = int(os.environ["WORLD_SIZE"])
SAVED = {2: 10, 4: 7}[RANKS]  # within the fourth epoch
SIZE = 193  # of which an unequal share is a step more


class Inside(Toy):
    """Makes its loader when the processes have found each other."""

    def train_dataloader(self):
        sampler = cpfast.PrunedSampler(self.pruner)
        return DataLoader(cpfast.IndexedDataset(data(SIZE)), BATCH, sampler=sampler)


def validation() -> DataLoader:
    return DataLoader(cpfast.IndexedDataset(data(40)), 10)


def fit(parts: Parts, *callbacks, ckpt_path=None, inside=False, **options):
    run = trainer(parts.callback, *callbacks, strategy="ddp", devices=RANKS, **options)
    module, loader = parts.module, parts.loader
    if inside:
        module, loader = Inside(parts.module.pruner), None
    run.fit(module, loader, validation(), ckpt_path=ckpt_path)
    pruner = parts.module.pruner
    return {
        "batches": module.batches,
        "validated": module.validated,
        "weights": [p.tolist() for p in module.net.parameters()],
        "rotation": parts.callback.rotation.compute(),
        "scores": pruner.scores.tolist(),
        "end_epoch": parts.callback.course.detector.end_epoch,
        "seen": pruner.samples_seen,
    }


def refused(parts: Parts, loader: DataLoader) -> str:
    try:
        fit(parts._replace(loader=loader))
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def fabric(folder: pathlib.Path, stop: int | None = None):
    """A loop over a course's epochs; from its file on, if there is one."""
    fabric = Fabric(accelerator="cpu", devices=RANKS, strategy="ddp")
    fabric.launch()
    pruner = cpfast.DataPruner(SIZE, num_epochs=EPOCHS, policy="random", anneal=0.8)
    sampler = cpfast.PrunedSampler(pruner, drop_last=True)
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    course = Course(detector, sampler=sampler)
    loader = DataLoader(cpfast.IndexedDataset(data(SIZE)), BATCH, sampler=sampler)
    loader = fabric.setup_dataloaders(loader)
    net = network()
    model, optimizer = fabric.setup(net, optimizer_of(net))
    state = {"model": model, "optimizer": optimizer, "course": course}
    path = folder / "fabric.ckpt"
    if path.exists():
        fabric.load(path, state)
    batches = {}
    for epoch in course.epochs(model, optimizer):
        batches[epoch] = []
        for (x, y), index in loader:
            fabric.backward(pruner.loss(model(x), y, index))
            optimizer.step()
            optimizer.zero_grad()
            batches[epoch].append(index.tolist())
        if epoch == stop:
            fabric.save(path, state)
            break
    return {"batches": batches, "weights": [p.tolist() for p in net.parameters()]}


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    log = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved = pl.callbacks.ModelCheckpoint(
            folder,
            "{step}",
            every_n_train_steps=SAVED,
            save_top_k=-1,
            save_on_train_epoch_end=False,
        )
        log["given"] = fit(made(policy="random", size=SIZE), saved)
        log["resumed"] = fit(
            made(policy="random", size=SIZE), ckpt_path=folder / f"step={SAVED}.ckpt"
        )
        log["inside"] = fit(
            made(policy="random", size=SIZE), inside=True, use_distributed_sampler=False
        )
    log["warnings"] = sorted({str(w.message) for w in caught})

    parts = made(policy="random", size=SIZE)
    indexed, sampler = parts.loader.dataset, parts.loader.sampler
    batched = DataLoader(indexed, batch_sampler=BatchSampler(sampler, BATCH, drop_last=False))
    log["batch_sampler"] = refused(parts, batched)
    whole = cpfast.PrunedSampler(parts.module.pruner, shard="never")
    log["never"] = refused(
        made(policy="random", size=SIZE), DataLoader(indexed, BATCH, sampler=whole)
    )

    log["fabric"] = fabric(folder)
    fabric(folder, stop=2)
    log["fabric resumed"] = fabric(folder)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(log))
    dist.barrier()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as in distributed_epochs.py
