"""A small causal transformer for text, after GPT-2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpfast.train.models import Model, models
from cpfast.train.models.attention import Block, init_transformer
from cpfast.train.models.head import WithHead

WIDTH, DEPTH, HEADS = 192, 4, 3


class Transformer(WithHead):
    """Tokens int64 [N, T] -> logits [N, T, vocabulary]: about 1.9 million parameters.

    The head is not tied to the embedding: with the characters of a language or the 256 bytes
    that would save less than 3 % of the parameters, and make one matrix of two roles, of which
    neither the rotation nor the scale could be told apart.

    Args:
        context: the largest T.
        vocabulary: number of different tokens.
    """

    def __init__(self, context: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(torch.zeros(context, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, causal=True) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)
        init_transformer(self, DEPTH)
        nn.init.normal_(self.positions, std=0.02)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions[: x.shape[1]]
        return self.norm(self.blocks(x))


@models.register("transformer", source="openai/gpt-2")
def transformer() -> Model:
    """Four causal blocks of width 192 for text, of 1.9 million parameters."""
    return Model(
        lambda shape, outputs: Transformer(shape[0], outputs), reads="text", optimizer="adamw"
    )
