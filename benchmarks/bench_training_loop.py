"""Passes over the data by `cpfast train`'s loop, against the loop that most people write."""

import contextlib
import functools
import multiprocessing
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import significant
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cpfast.train import loop, process
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.models import build

# Samples of a pass, shape of an image, batch. On the CPU a pass is of some seconds.
CASES = {
    "cpu": {"cnn": (2048, (8, 8, 1), 32), "resnet8": (1024, (32, 32, 3), 128)},
    "cuda": {"resnet20": (50_000, (32, 32, 3), 512), "resnet56": (50_000, (32, 32, 3), 512)},
}
SECONDS = {"cpu": 30.0, "cuda": 40.0}
WORKERS = {"cpu": (0, 1, 2), "cuda": (8, 15)}
NEVER = 10**6
PAPER = AUGMENTATIONS["paper"]


def random_images(count, shape):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=g)
    # The test images are never looked at.
    return ImageData(images, labels, images[:1], labels[:1], tuple("0123456789"), "random")


def lean(model, data, batch, device, **options):
    """A pass of our own loop, with detection, scores, and a selection that keeps everything."""
    config = Config.from_options(
        {
            "data": "random", "model": model, "batch_size": batch, "repeats": 1, "epochs": NEVER,
            "eval_every": NEVER, "method": "prune", "keep": 1.0, "flip": True, "device": device,
            **options,
        }
    )  # fmt: skip
    training = loop.Training(config, data.to(torch.device(device)))
    return training


def bare(*arguments, **options):
    """The same loop without detection, scores and selection."""
    training = lean(*arguments, **options, detect=False)
    size, device = training.data.train_size, training.device
    generator = torch.Generator(device).manual_seed(0)
    ones = torch.ones(size, device=device)

    class Unscored:
        def plan(self, epoch, **_):
            return torch.randperm(size, generator=generator, device=device)

        def weights(self, index):
            return ones

        def loss(self, logits, target, index, weight):
            return F.cross_entropy(logits.float(), target)

    training.pruner = Unscored()
    return training


class Augmented(Dataset):
    """One image at a time, by Pillow, as torchvision's transforms do it."""

    def __init__(self, data):
        self.images, self.labels = data.train_images.numpy(), data.train_labels.tolist()
        self.mean = data.mean().permute(2, 0, 1)
        self.random = np.random.default_rng(0)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image

        array = self.images[i]
        image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
        down, right = self.random.uniform(-PAPER.shift, PAPER.shift, 2)
        image = image.rotate(
            self.random.uniform(-PAPER.rotation, PAPER.rotation),
            Image.Resampling.BILINEAR,
            translate=(round(right * image.width), round(down * image.height)),
        )
        if self.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).view(array.shape).permute(2, 0, 1)
        return pixels.float() / 255 - self.mean, self.labels[i]


def plain(model, data, batch, device, workers, how):
    """A pass with a DataLoader: eager, float32, but for what `how` names."""
    amp = "bf16" in how
    loader = DataLoader(
        Augmented(data), batch, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=device == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
    layout = torch.channels_last if "channels_last" in how else torch.contiguous_format
    network: nn.Module = build(model, data.shape, data.outputs, 0)
    network = network.to(device=device, memory_format=layout)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=2e-4
    )

    def one_pass():
        network.train()
        total = 0.0
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=layout)
            labels = labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    return one_pass


class Elsewhere:
    """A plain loop in a process of its own, which our own settings of this one do not reach."""

    elsewhere = True  # its memory is not seen from here

    def __init__(self, which, device, workers, how):
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        arguments = (other, which, device, workers, how, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        other.close()  # so that a child that dies is noticed

    def __call__(self):
        self._end.send("go")
        loss = self._end.recv()
        if isinstance(loss, Exception):
            raise loss
        return loss

    def close(self):
        with contextlib.suppress(OSError):  # of one that has ended
            self._end.send(None)
        self._process.join()


def _serve(end, which, device, workers, how, threads):
    torch.set_num_threads(threads)
    model, (count, shape, batch) = case_of(which, device)
    try:
        one_pass = plain(model, random_images(count, shape), batch, device, workers, how)
        while end.recv():
            end.send(one_pass())
    except Exception as error:
        end.send(error)


def case_of(which, device):
    return list(CASES[device].items())[which]


def contenders_of(model, data, batch, device):
    arguments = (model, data, batch, device)
    if device == "cuda":
        trainings = {
            "cpfast": lean(*arguments, step="graph"),
            "cpfast, compiled": lean(*arguments, step="compile+graph"),
            "cpfast, eager": lean(*arguments, step="eager"),
        }
    else:
        trainings = {
            "cpfast": lean(*arguments),
            "cpfast, bf16": lean(*arguments, precision="bf16"),
        }
    trainings["cpfast without detection, scores, selection"] = bare(*arguments)
    return {
        name: functools.partial(loop.train_epoch, training) for name, training in trainings.items()
    }


def rivals_of(which, device):
    fewest, *_, most = WORKERS[device]
    plain_ones = [(workers, "") for workers in WORKERS[device]]
    # What our own loop does too; beside the plain ones, with the fewest and the most workers.
    better = [(n, how) for how in ("channels_last", "bf16, channels_last") for n in (fewest, most)]
    for workers, how in plain_ones + better:
        name = f"DataLoader, {workers} worker{'s' * (workers != 1)}"
        yield f"{name}, {how}" if how else name, Elsewhere(which, device, workers, how)


@pytest.fixture
def threads_of(device):
    before = torch.get_num_threads()
    yield lambda count: torch.set_num_threads(count) if device == "cpu" else None
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("which", [0, 1], ids=["smaller", "larger"])
def bench_training_loop(race, device, threads_of, which, threads):
    pytest.importorskip("PIL")
    if device == "cuda" and threads > 1:
        pytest.skip("threads are the CPU's")
    if device == "cpu" and threads > (os.cpu_count() or 1):
        pytest.skip(f"{threads} threads on {os.cpu_count()} processors")
    threads_of(threads)
    process.keep_memory()
    model, (count, shape, batch) = case_of(which, device)
    data = random_images(count, shape)
    rivals = dict(rivals_of(which, device))

    def rates(field):
        """Samples a second of each contender, by the median of its passes."""
        return {
            "samples_per_second": {
                name: significant(count / sorted(times)[len(times) // 2])
                for name, times in field.times.items()
            }
        }

    where = f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
    try:
        race(
            "training loop",
            f"{model}, {count:,} of {'x'.join(map(str, shape))}, batch of {batch}{where}",
            contenders_of(model, data, batch, device) | rivals,
            [()],
            None,
            extra=rates,
            budget=SECONDS[device],
            graphs=False,
            aim=0,
            patience=60,
        )
    finally:
        for rival in rivals.values():
            rival.close()
