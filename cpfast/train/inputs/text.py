"""Text, whose characters are the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpfast.forms import shown
from cpfast.train.data import TextData
from cpfast.train.errors import UserError
from cpfast.train.inputs import Input, inputs
from cpfast.train.scores.next_token import NextTokenScores


@inputs.register("text", source="this project")
class Text(Input):
    """Tokens, positions in the vocabulary, of any integer dtype: [N, T] -> int64 [N, T].

    Args:
        classes: the vocabulary, a character each.
        length: the longest T.
    """

    data = TextData

    def __init__(self, classes: tuple[str, ...], length: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.length = length

    @classmethod
    def of(cls, data: TextData) -> Text:
        return cls(tuple(data.vocabulary), *data.shape)

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    def options(self) -> dict[str, Any]:
        return {"length": self.length}

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Raises:
            TypeError, ValueError: the tokens are of another dtype or shape, or too many.
        """
        if tokens.dim() != 2 or tokens.shape[1] > self.length:
            raise ValueError(
                f"tokens: expected [N, T], T up to {self.length}, got {list(tokens.shape)}"
            )
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"tokens: expected integers, got {shown(tokens)}")
        return tokens.long()

    def split(self, data: Any, name: str) -> tuple[Tensor, Tensor]:
        """Tokens are matched by their characters.

        Raises:
            UserError: no text, or longer sequences, or a character that the model does not know.
        """
        if not isinstance(data, TextData):
            raise UserError(f"--data {data.name}: no text, which the model was trained on")
        if data.shape > self.shape:
            raise UserError(
                f"--data {data.name}: sequences of {data.shape[0]} characters; the model takes "
                f"{self.length}"
            )
        tokens = {"train": data.train_tokens, "test": data.test_tokens}[name].long()
        own = torch.tensor([self._position(character) for character in data.vocabulary])
        unknown = tokens[(own.to(tokens.device)[tokens] < 0)]
        if len(unknown):
            character = data.vocabulary[int(unknown[0])]
            raise UserError(f"--data {data.name}: the model does not know character {character!r}")
        tokens = own.to(tokens.device)[tokens]
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _position(self, character: str) -> int:
        return self.classes.index(character) if character in self.classes else -1

    def scores(self) -> NextTokenScores:
        return NextTokenScores()
