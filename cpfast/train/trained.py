"""A trained model, from the folder of its run: `cpfast.load`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cpfast.arguments import typed
from cpfast.forms import shown
from cpfast.train import saved
from cpfast.train.inputs import Input

__all__ = ["Predictions", "TrainedModel", "load"]

WHICH = ("last", "best")
BATCH = 512  # as the training evaluates


class Predictions(NamedTuple):
    """What a model says of N samples."""

    classes: list[str]
    """The most probable one of each."""
    probabilities: Tensor
    """float32 [N, classes], on the CPU."""


class TrainedModel(nn.Module):
    """A network with what comes before it: samples as the data set holds them -> logits.

    Images are uint8 [N, H, W, C], or floating point in [0, 1], and give logits [N, classes]; text
    is tokens [N, T], positions in the vocabulary, and gives logits [N, T, vocabulary]. It computes
    in float32. `torch.export.export` takes it as it is.

    Attributes:
        input: prepares samples for the network.
        network: the bare network.
        classes: the name of each logit; of text, its character.
        epoch, test_accuracy: of its weights; `test_accuracy` is None where it was not evaluated.
        description: what model.json says.
    """

    def __init__(
        self, network: nn.Module, input: Input, weights: dict[str, Any], description: dict[str, Any]
    ) -> None:
        super().__init__()
        self.input = input
        self.network = network
        self.classes = input.classes
        self.epoch: int = weights["epoch"]
        self.test_accuracy: float | None = weights["test_accuracy"]
        self.description = description

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.input(x))

    @typed
    def predict(self, samples: Any, *, batch_size: int = BATCH) -> Predictions:
        """The class of each sample, and the probabilities of all.

        Args:
            samples: a batch as `forward` takes it, a tensor or an array; or the path of a file, or
                a sequence of paths. Images in files may be of any size: they are prepared as those
                of the training were.

        Raises:
            TypeError, ValueError: the samples are of another kind or shape.
            cpfast.train.errors.UserError: a file cannot be read; names it.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        parts = [self.probabilities(batch) for batch in self._batches(samples, batch_size)]
        empty = torch.zeros(0, len(self.classes))
        probabilities = torch.cat([empty, *parts])
        labels = probabilities.argmax(1).tolist() if parts else []
        return Predictions([self.classes[label] for label in labels], probabilities)

    @typed
    @torch.inference_mode()
    def probabilities(self, x: Tensor) -> Tensor:
        """Of a batch as `forward` takes it: float32 [N, classes], on the CPU."""
        device = next(self.network.parameters()).device
        logits = self(x.to(device))
        if logits.dim() != 2:
            raise ValueError("samples: a model of text has no classes to predict; call it instead")
        return logits.float().softmax(1).cpu()

    def _batches(self, samples: Any, batch_size: int) -> Iterator[Tensor]:
        if isinstance(samples, (str, Path)):
            samples = [samples]
        if isinstance(samples, Sequence):
            if not all(isinstance(path, (str, Path)) for path in samples):
                raise TypeError(
                    f"samples: expected paths, a tensor or an array, got {shown(samples)}"
                )
            for start in range(0, len(samples), batch_size):
                paths = samples[start : start + batch_size]
                yield torch.cat([self.input.read(Path(path)) for path in paths])
            return
        try:
            batch = torch.as_tensor(samples)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"samples: expected paths, a tensor or an array, got {shown(samples)}"
            ) from None
        if batch.dim() == 0:
            raise ValueError(f"samples: expected a batch, got {shown(batch)}")
        yield from batch.split(batch_size)


@typed
def load(run: str | Path, which: str = "last", device: str | torch.device = "cpu") -> TrainedModel:
    """The trained model of a run, in eval mode.

    It computes in float32, whatever precision it was trained in: what a run in bf16 or fp16
    evaluated itself may differ from it by a few samples. For another precision use torch.autocast
    around its calls.

    Args:
        run: its folder, or one with its model.json and the .safetensors file alone.
        which: "last", the weights after the last epoch; or "best", those of the evaluation with the
            best test accuracy. That was chosen on the test set, so it promises too much.
        device: where to.

    Raises:
        ValueError: another `which`, or no such device.
        cpfast.train.errors.UserError: no finished model is there, or a file of it is damaged or of
            another version; in one line that names it.
    """
    if which not in WHICH:
        raise ValueError(f"which: expected one of {', '.join(WHICH)}, got {which!r}")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected one of torch, got {device!r}") from None
    path = Path(run)
    description = saved.describe(path)
    weights = saved.weights_of(description, path, which)
    network, taken = saved.restore(path, description, weights)
    return TrainedModel(network, taken, weights, description).to(place).eval()
