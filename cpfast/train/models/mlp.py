"""A small multilayer perceptron for tables."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import init_he

WIDTH = 256


class MLP(nn.Module):
    """[N, F] -> logits [N, outputs]: two hidden layers of `WIDTH`, each normalised."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.hidden1, self.norm1 = nn.Linear(features, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)
        self.hidden2, self.norm2 = nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, outputs)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.hidden1(x)))
        x = F.relu(self.norm2(self.hidden2(x)))
        return self.head(x)


@models.register("mlp", source="arXiv 2106.11959, its MLP, with batch normalisation")
def mlp() -> Model:
    """Two hidden layers of 256 for tables."""
    return Model(lambda shape, outputs: MLP(shape[0], outputs), reads="table", optimizer="adamw")
