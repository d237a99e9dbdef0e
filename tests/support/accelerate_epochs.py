"""What each of two processes reads and learns with Accelerate: run by torchrun."""

import json
import os
import pathlib
import sys
import warnings
from importlib.util import find_spec

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cpfast
from cpfast.integrations import accelerate as integration

N, EPOCHS, BATCH = 203, 4, 16
# name: (loader's options, DataLoaderConfiguration's)
WAYS = {
    "default": ({}, {}),
    "workers": ({"num_workers": 2}, {}),
    "uneven": ({}, {"even_batches": False}),
    "split": ({}, {"split_batches": True}),
    "split uneven": ({}, {"split_batches": True, "even_batches": False}),
    "dispatch": ({}, {"dispatch_batches": True}),
    "dispatch split": ({}, {"dispatch_batches": True, "split_batches": True}),
    "drop_last": ({"drop_last": True}, {}),
    "stateful": ({}, {"use_stateful_dataloader": True}),
}


def dataset():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=g)
    return TensorDataset(x, (x[:, 0] > 0).long())


def new_loader(pruner, **options):
    sampler = cpfast.PrunedSampler(pruner)
    return DataLoader(cpfast.IndexedDataset(dataset()), BATCH, sampler=sampler, **options)


def new_pruner(**options):
    return cpfast.DataPruner(N, EPOCHS, anneal=1.0, **options)


def losses(index, epoch):
    """Of which some are below the mean, others in each epoch."""
    return 1 + ((index * (7 + epoch)) % N).float() / N


def read(way):
    """What this process is given, whom the plans were for, and the lengths, by epoch."""
    options, configuration = WAYS[way]
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**configuration))
    pruner = new_pruner(strict=None if way == "drop_last" else False)
    loader = integration.prepare_loader(accelerator, new_loader(pruner, **options))
    log = {"plans": [], "given": [], "lengths": [], "ends": [], "weights": []}
    for epoch in range(EPOCHS):
        if epoch == 3:  # the others as Accelerate counts
            loader.set_epoch(epoch)
            log["length of the next"] = len(loader)
        given, ends = [], []
        for (_, _), index in accelerator.prepare(loader):
            given.append(index.tolist())
            ends.append(accelerator.gradient_state.end_of_dataloader)
            pruner.update(index, losses(index, epoch))
        log["lengths"].append(len(loader))
        log["plans"].append(pruner.plan(epoch).tolist())
        log["weights"].append(pruner.weights(torch.arange(N)).tolist())
        log["given"].append(given)
        log["ends"].append(ends)
        pruner.sync()
    return log


def skip(way):
    """The second epoch from its second batch on, and the third."""
    options, configuration = WAYS[way]
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**configuration))
    pruner = new_pruner(strict=None)
    loader = integration.prepare_loader(accelerator, new_loader(pruner, **options))
    skipped = accelerator.skip_first_batches(loader, 1)
    loader.set_epoch(1)
    log = {"plans": [], "given": []}
    for one, epoch in ((skipped, 1), (loader, 2)):
        log["given"].append([index.tolist() for _, index in one])
        log["plans"].append(pruner.plan(epoch).tolist())
        index = torch.tensor(log["plans"][-1])
        pruner.update(index, losses(index, epoch))
        pruner.sync()
    return log


def bare():
    """As Accelerate alone prepares it."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(new_loader(new_pruner()))
    return [i for _, index in loader for i in index.tolist()]


def prepared(accumulate=1, criterion="path_efficiency"):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    course, loader = integration.prepare(
        accelerator,
        DataLoader(dataset(), BATCH, shuffle=True),
        EPOCHS,
        recipe="prune",
        pruner=new_pruner(),
        detector=cpfast.CriticalPeriodDetector(criterion, EPOCHS),
    )
    return accelerator, course, *accelerator.prepare(model, optimizer, loader)


def train(accelerator, course, model, optimizer, loader, save=None, save_after=None):
    """Saves after so many batches of an epoch, and stops; None: at its end."""
    log = {"losses": [], "lengths": []}
    for epoch in course.epochs(model, optimizer):
        log["lengths"].append(len(loader))
        for batch, ((x, y), index) in enumerate(loader):
            with accelerator.accumulate(model):
                loss = course.pruner.loss(model(x), y, index)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if save is not None and (epoch, batch) == (1, save_after):
                accelerator.save_state(save)
                return log
        if save is not None and epoch == 1:
            accelerator.save_state(save)
            return log
    log["weights"] = [p.tolist() for p in accelerator.unwrap_model(model).parameters()]
    log["history"] = repr(course.detector.history)
    log["seen"] = course.pruner.samples_seen
    return log


def resume(folder, save_after):
    # whose sums are not kept within an epoch
    criterion = "path_efficiency" if save_after is None else "slope45"
    train(*prepared(criterion=criterion), folder, save_after)
    accelerator, course, model, optimizer, loader = prepared(criterion=criterion)
    accelerator.load_state(folder)
    if save_after is None:
        return train(accelerator, course, model, optimizer, loader)

    class Skipping:  # as users write it in their loop
        left = save_after + 1

        def __len__(self):
            return len(loader)

        def __iter__(self):
            left, self.left = self.left, 0
            return iter(accelerator.skip_first_batches(loader, left) if left else loader)

    return train(accelerator, course, model, optimizer, Skipping())


def refused():
    accelerator = Accelerator(cpu=True)
    pruner = new_pruner()
    loader = integration.prepare_loader(accelerator, new_loader(pruner))
    accelerator.register_for_checkpointing(pruner)
    log = {}

    def note(name, function):
        try:
            function()
        except (ValueError, RuntimeError) as error:
            log[name] = str(error)

    for _, index in loader:
        pruner.update(index, torch.ones(len(index)))
    note("unsynced", lambda: accelerator.save_state("unsynced"))
    note("next", lambda: next(iter(loader)))
    shard = cpfast.PrunedSampler(new_pruner(), 2, accelerator.process_index)
    data = cpfast.IndexedDataset(dataset())
    note(
        "sharded",
        lambda: integration.prepare_loader(accelerator, DataLoader(data, BATCH, sampler=shard)),
    )
    split = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    odd = DataLoader(data, 15, sampler=cpfast.PrunedSampler(new_pruner()))
    note("split", lambda: integration.prepare_loader(split, odd))
    both = DataLoaderConfiguration(dispatch_batches=True, use_stateful_dataloader=True)
    both = Accelerator(cpu=True, dataloader_config=both)
    note("both", lambda: integration.prepare_loader(both, new_loader(new_pruner())))
    alone = Accelerator(cpu=True)
    alone.state.num_processes = 1  # as without cpu=True where there is no GPU
    note("alone", lambda: integration.prepare_loader(alone, new_loader(new_pruner())))
    alone.state.num_processes = 2
    one = cpfast.IndexedDataset(TensorDataset(torch.zeros(1)))
    one = DataLoader(one, 4, sampler=cpfast.PrunedSampler(cpfast.DataPruner(1)))
    note("too few", lambda: list(integration.prepare_loader(accelerator, one)))
    return log


def metered():
    """What each epoch's log says of the energy, which the first process meters."""
    accelerator, said = Accelerator(cpu=True), []
    course, loader = integration.prepare(
        accelerator, DataLoader(dataset(), BATCH, shuffle=True), 2, recipe="full", energy=True,
        log=lambda metrics, step: said.append(metrics["cpfast/energy_kwh"]),
    )  # fmt: skip
    model = nn.Linear(8, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    for _ in course.epochs(model, optimizer):
        for (x, y), index in loader:
            accelerator.backward(course.pruner.loss(model(x), y, index))
            optimizer.step()
    return said


def main(folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    # where other samples came than were planned, or the same epoch again
    warnings.filterwarnings("error", "DataPruner|PrunedSampler")
    log = {"read": {way: read(way) for way in WAYS}}
    log["skip"] = {way: skip(way) for way in ("default", "dispatch")}
    log["bare"] = bare()
    log["train"] = train(*prepared())
    log["accumulated"] = train(*prepared(accumulate=3))
    log["resumed"] = {
        str(after): resume(str(folder / f"state-{after}"), after) for after in (None, 0, 2)
    }
    log["refused"] = refused()
    log["energy"] = metered() if find_spec("codecarbon") else None
    rank = int(os.environ["RANK"])
    (folder / f"rank{rank}.json").write_text(json.dumps(log))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    os._exit(0)  # see distributed_epochs.py
