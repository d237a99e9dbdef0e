"""What tests of criteria share: a softmax regression whose gradients are known, and replays."""

import numpy as np
import torch

import cpfast
from cpfast.detection.probe import ModelProbe

SAMPLES, FEATURES, CLASSES = 24, 5, 3


class Regression:
    """A softmax regression with its data, in torch, and its gradients in numpy."""

    def __init__(self, seed=0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        self.model = torch.nn.Linear(FEATURES, CLASSES)
        with torch.no_grad():
            self.model.weight.copy_(torch.randn(CLASSES, FEATURES, generator=generator))
            self.model.bias.copy_(torch.randn(CLASSES, generator=generator))
        self.model.to(device)
        self.x = torch.randn(SAMPLES, FEATURES, generator=generator).to(device)
        self.y = torch.randint(CLASSES, (SAMPLES,), generator=generator).to(device)

    def batch(self, number, size=6):
        index = (torch.arange(size) + size * number) % SAMPLES
        return self.model(self.x[index]), self.y[index]

    def probe(self, **options):
        return ModelProbe(cpfast.LayerRotation(self.model), **options)

    def numbers(self, *index):
        """Samples with a 1 behind their features, probabilities, labels, in float64."""
        index = np.concatenate(index) if index else np.arange(SAMPLES)
        x = np.hstack([self.x.cpu().numpy()[index].astype(np.float64), np.ones((len(index), 1))])
        w, b = (p.detach().cpu().numpy().astype(np.float64) for p in self.model.parameters())
        logits = x @ np.hstack([w, b[:, None]]).T
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return x, exp / exp.sum(1, keepdims=True), self.y.cpu().numpy()[index]

    def gradient(self, number, size=6):
        """Of a batch's mean cross-entropy: [CLASSES, FEATURES + 1], the bias last."""
        x, p, y = self.numbers((np.arange(size) + size * number) % SAMPLES)
        return (p - np.eye(CLASSES)[y]).T @ x / size


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def replay(criterion, rows, total=1000, **options):
    """The detector that was told so many epochs."""
    detector = cpfast.CriticalPeriodDetector(criterion, total, **options)
    for epoch, row in enumerate(rows, 1):
        detector.step(list(np.atleast_1d(row)), epoch)
    return detector
