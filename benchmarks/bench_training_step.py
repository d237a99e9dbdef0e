"""A whole training step with scores, and with rotation once an epoch, against the plain step."""

import statistics

import pytest
import torch
import torch.nn.functional as F
from harness import Contender, close, significant
from workloads import logits

import cpfast
from cpfast.train.models import build

SAMPLES = 50_000
BATCH = {"cpu": {"ResNet-20": 32, "ResNet-56": 16, "ResNet-18": 4}, "cuda": 128}
# An epoch of CIFAR-10 in batches of 128: what one LayerRotation.update() is spread over.
STEPS = 391
CONTENDERS = ("cpfast", "F.cross_entropy, no scores", "F.cross_entropy, no scores, once more")
SECONDS = {"cpu": 20.0, "cuda": 8.0}


def network(name, device):
    model = build(name.replace("-", "").lower(), (32, 32, 3), 10, seed=0)
    return model.to(device).train()


def trainer(name, device, loss):
    """A step of its own model: every contender's starts from the same weights."""
    model = network(name, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(x, y, index):
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y, index).backward()
        optimizer.step()

    return model, step


def interval(values):
    """Median, and a 95 % interval of it by the binomial's normal approximation."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - reach)), min(n - 1, int(n / 2 + reach))
    return [significant(v) for v in (ordered[low], statistics.median(ordered), ordered[high])]


@pytest.fixture
def one_thread():
    """A step of a small network on two threads waits for the slower: ratios drown in that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("batch", [128, 512])
def bench_training_loss(race, device, batch):
    """What a step's loss costs by itself, forward and backward, scores and weights included."""
    pruner = cpfast.DataPruner(SAMPLES, num_epochs=200, device=device)
    scores, weights = (torch.ones(SAMPLES, device=device) for _ in range(2))

    def by_hand(x, y, index):
        losses = F.cross_entropy(x, y, reduction="none")
        scores[index] = losses.detach()
        return (losses * weights[index]).mean()

    def both_ways(loss):
        return lambda x, *others: torch.autograd.grad(loss(x, *others), x)[0]

    x, y = logits((batch, 10), device, torch.float32)
    contenders = {
        "cpfast": both_ways(pruner.loss),
        "F.cross_entropy, no scores": both_ways(lambda x, y, index: F.cross_entropy(x, y)),
        "F.cross_entropy, recorded and weighted": both_ways(by_hand),
    }
    sets = [(x, y, torch.randperm(SAMPLES, device=device)[:batch])]
    agree = close(1e-3, 1e-3 / batch)
    race("training loss", f"batch of {batch}", contenders, sets, 8 * x.numel(), agree=agree)


@pytest.mark.parametrize("name", ["ResNet-20", "ResNet-56", "ResNet-18"])
def bench_training_step(race, device, one_thread, name):
    batch = BATCH[device][name] if device == "cpu" else BATCH[device]
    pruner = cpfast.DataPruner(SAMPLES, num_epochs=200, device=device)
    _, plain = trainer(name, device, lambda x, y, index: F.cross_entropy(x, y))
    _, again = trainer(name, device, lambda x, y, index: F.cross_entropy(x, y))
    scored_model, scored = trainer(name, device, pruner.loss)
    rotation = cpfast.LayerRotation(scored_model)

    g = torch.Generator(device).manual_seed(0)
    sets = [
        (
            torch.randn(batch, 3, 32, 32, generator=g, device=device),
            torch.randint(10, (batch,), generator=g, device=device),
            torch.randperm(SAMPLES, generator=g, device=device)[:batch],
        )
        for _ in range(8)
    ]

    def amortised(field):
        """Step with scores, and its share of an epoch's rotation, over the plain one: by rounds."""
        update = Contender(lambda *_: rotation.update(), sets, device)
        update.block()
        update.calibrate(update.block())
        share = statistics.median(update.block() for _ in range(15)) / STEPS
        ours, theirs, again = (field.times[name] for name in CONTENDERS)
        return {
            "rotation_share": significant(share),
            "step_ratio": interval([(a + share) / b for a, b in zip(ours, theirs, strict=True)]),
            # Two equal things differ by so much in this run.
            "noise_ratio": interval([a / b for a, b in zip(again, theirs, strict=True)]),
        }

    race(
        "training step",
        f"{name}, batch of {batch}" + (", one thread" if device == "cpu" else ""),
        dict(zip(CONTENDERS, (scored, plain, again), strict=True)),
        sets,
        None,
        extra=amortised,
        budget=SECONDS[device],
        graphs=False,
        # On a GPU the host runs ahead over several steps, as it does in training.
        aim=0.1 if device == "cuda" else 0,
    )
