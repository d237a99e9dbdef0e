"""A small training by Lightning's Trainer that remembers what it saw; the same written by hand."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import cpfast
from cpfast.integrations.lightning import CriticalPeriodCallback
from cpfast.recipes import Prune, Repeats

N, EPOCHS, BATCH = 203, 6, 16

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
# of the Trainer about things that a test has no use for
for about in ("does not have many workers", "smaller than the logging interval", "checkpoint dir"):
    warnings.filterwarnings("ignore", message=f".*{about}")


def data(size: int = N) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(size, 8, generator=g)
    y = (2 * (x[:, 0] > 0) + (x[:, 1] + 0.5 * torch.randn(size, generator=g) > 0)).long()
    return TensorDataset(x, y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def optimizer_of(net: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9)


class Toy(pl.LightningModule):
    """Remembers the indices of its batches by epoch, the epochs that it was validated in, and the
    rates of its steps."""

    def __init__(self, pruner=None, schedule=None, lr=0.1) -> None:
        super().__init__()
        self.net = network()
        self.pruner, self.schedule, self.lr = pruner, schedule, lr
        self.batches: dict[int, list[list[int]]] = {}
        self.validated: list[int] = []
        self.rates: list[float] = []

    def loss(self, batch):
        (x, y), index = batch
        logits = self.net(x)
        if self.pruner is None:
            return F.cross_entropy(logits, y)
        return self.pruner.loss(logits, y, index)

    def training_step(self, batch, batch_idx):
        seen = self.batches.setdefault(self.trainer.current_epoch, [])
        seen.append(batch[1].tolist())
        return self.loss(batch)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[1]))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.current_epoch)

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = optimizer_of(self.net, self.lr)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(self, optimizer)}

    @property
    def sizes(self) -> list[int]:
        return [sum(map(len, batches)) for batches in self.batches.values()]


def ever_fewer() -> cpfast.Recipe:
    """Two passes while the period lasts, then one that is pruned."""
    after = cpfast.Window("after")
    return cpfast.Recipe(EPOCHS, [Repeats(2), Repeats(1, after), Prune(window=after)])


class Parts(NamedTuple):
    callback: CriticalPeriodCallback
    loader: DataLoader
    module: Toy


def made(
    recipe=None,
    policy="infobatch",
    criterion="fixed",
    loader=DataLoader,
    workers=0,
    schedule=None,
    epochs=EPOCHS,
    size=N,
    **options,
) -> Parts:
    """A pruner, a sampler without anything else, and a callback that is given the rest."""
    chosen = {"at": 2} if criterion == "fixed" else {}
    detector = cpfast.CriticalPeriodDetector(criterion, epochs, **chosen)
    pruner = cpfast.DataPruner(size, num_epochs=epochs, policy=policy, anneal=0.8)
    sampler = cpfast.PrunedSampler(pruner)
    batches = loader(
        cpfast.IndexedDataset(data(size)), BATCH, sampler=sampler, num_workers=workers, **options
    )
    return Parts(CriticalPeriodCallback(detector, recipe=recipe), batches, Toy(pruner, schedule))


def trainer(*callbacks, epochs=EPOCHS, **options) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
    }
    return pl.Trainer(callbacks=list(callbacks), max_epochs=epochs, **{**defaults, **options})


def validation() -> DataLoader:
    """Of samples that have the same indices as some that are trained on."""
    return DataLoader(cpfast.IndexedDataset(data(40)), 20)


class Save(pl.callbacks.Checkpoint):
    """At a hook of an epoch, and of a batch of it."""

    def __init__(self, path, hook: str, epoch: int, batch: int | None = None) -> None:
        def save(trainer, module, *rest) -> None:
            is_batch = batch is None or rest[-1] == batch
            if trainer.current_epoch == epoch and is_batch and not trainer.sanity_checking:
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


class ByHand(NamedTuple):
    net: nn.Module
    batches: dict[int, list[list[int]]]
    rotation: dict[str, float]
    pruner: cpfast.DataPruner


def by_hand(
    recipe=None, policy="infobatch", accumulate=1, epochs=EPOCHS, size=N, ranks=1
) -> ByHand:
    """Without samplers, loaders, courses; in one process, however many ranks share its batches."""
    net, dataset = network(), data(size)
    optimizer = optimizer_of(net)
    detector = cpfast.CriticalPeriodDetector("fixed", epochs, at=2)
    pruner = cpfast.DataPruner(size, num_epochs=epochs, policy=policy, anneal=0.8, strict=None)
    rotation = cpfast.LayerRotation(net)
    trained = {}
    for epoch in range(epochs):
        asked = {}
        if recipe is not None:
            ended = detector.end_epoch is not None
            asked = {"repeats": 1 if ended else 2, "prune": ended, "period_end": detector.end_epoch}
        plan = pruner.plan(epoch, **asked)
        plan = plan[: len(plan) // ranks * ranks]  # equal shares
        shares = [plan[rank::ranks].split(BATCH) for rank in range(ranks)]
        trained[epoch] = [[batch.tolist() for batch in share] for share in shares]
        steps = list(zip(*shares, strict=True))
        for number, batches in enumerate(steps, 1):
            for index in batches:  # whose gradients are averaged
                x, y = dataset[index]
                (pruner.loss(net(x), y, index) / accumulate / ranks).backward()
            if number % accumulate == 0 or number == len(steps):
                optimizer.step()
                optimizer.zero_grad()
        rotation.update()
        detector.step(rotation.mean(), epoch + 1)
    if ranks == 1:
        trained = {epoch: share for epoch, (share,) in trained.items()}
    return ByHand(net, trained, rotation.compute(), pruner)


def same(module: nn.Module, other: nn.Module) -> bool:
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)
