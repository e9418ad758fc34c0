"""Rows that hold several examples are seen, and rows that hold one are not taken for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltasam
from deltasam.per_example.packed import refuse_packed


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


PACKED: dict[str, dict[str, Any]] = {
    "position ids start again": {"position_ids": ids([0, 1, 2, 0, 1])},
    "in one row of two": {"position_ids": ids([0, 1, 2, 3], [0, 1, 0, 1])},
    "one token each": {"position_ids": ids([0, 0, 0])},
    "a row cut out of the middle": {"position_ids": ids([37, 38, 0, 1])},
    "with a mask": {"position_ids": ids([0, 1, 0, 1, 0]), "attention_mask": ids([1, 1, 1, 1, 0])},
    "of a column": {"sentence_0_position_ids": ids([0, 1, 0]), "sentence_0_attention_mask": ids([1, 1, 1])},
    "flash attention": {"cu_seq_lens_q": torch.tensor([0, 3, 5])},
    "cumulative lengths": {"cu_seqlens": torch.tensor([0, 3, 5])},
    "numbered": {"seq_idx": ids([0, 0, 1])},
    "numbered by the mask": {"attention_mask": ids([1, 1, 2, 2, 0])},
    "inside": {"batch": {"text": {"position_ids": ids([0, 1, 0])}}},
    "in a list": {"batch": [torch.zeros(2), {"position_ids": ids([0, 1, 0])}]},
}
SINGLE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "plain": {"input_ids": ids([5, 5, 5]), "position_ids": ids([0, 1, 2]), "attention_mask": ids([1, 1, 1])},
    "one row for all": {"input_ids": ids([5, 5], [5, 5]), "position_ids": ids([0, 1])},
    "padding on the left": {"position_ids": ids([1, 1, 0, 1, 2]), "attention_mask": ids([0, 0, 1, 1, 1])},
    "padding on the right": {"position_ids": ids([2, 3, 4, 1, 1]), "attention_mask": ids([1, 1, 1, 0, 0])},
    "another attention mask's": {
        "decoder_position_ids": ids([0, 1, 1]),
        "decoder_attention_mask": ids([1, 1, 0]),
        "attention_mask": ids([1, 1, 1]),
    },
    "three axes of an image's": {"position_ids": torch.zeros(3, 2, 5, dtype=torch.long)},
    "one text alone": {"cu_seq_lens_q": torch.tensor([0, 3]), "seq_idx": ids([0, 0]), "position_ids": ids([0, 1])},
    "numbers by row": {"seq_idx": ids([0, 0], [1, 1])},
    "a bias of attention": {"attention_mask": torch.tensor([[0.0, 2.0]])},
    "empty": dict.fromkeys(("attention_mask", "position_ids"), torch.zeros(0, 4, dtype=torch.long)),
    "no tensors": {"position_ids": None, "cu_seqlens": [0, 1, 2], "names": ["a", "b"], 3: ids([2, 1])},
}


@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"sam:m=2 works on single examples, but a row .* several .*pad instead of pack"
    ):
        refuse_packed(PACKED[name], "sam:m=2")


@pytest.mark.parametrize("name", SINGLE)
def test_not_packed(name: str) -> None:
    refuse_packed(SINGLE[name], "sam")


class Positions(nn.Module):
    """Takes what it needs out of the batch, or writes it over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        positions = batch.pop("position_ids")
        y = self.layer(torch.ones(*positions.shape, 3) * positions[..., None]).sum((1, 2))
        positions.zero_()
        return y


def test_a_forward_may_change_what_it_is_given() -> None:
    model = Positions()
    method = deltasam.PerInstanceSAM(model)
    with pytest.raises(ValueError, match="position_ids restart"):
        method.backward(lambda: model({"position_ids": ids([0, 1, 0], [0, 1, 2])}))
    method.backward(lambda: model({"position_ids": ids([0, 1, 2], [0, 1, 2])}))
