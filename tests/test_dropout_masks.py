"""Dropout masks that are kept from pass to pass, and the random numbers around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
from deltasam.core.dropout_masks import DropoutMasks
from deltasam.core.structure import Structure


class Draws(nn.Module):
    """A closure's worth of random numbers: dropout, others between, and a generator of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(50)), nn.Dropout(0.4)

    def forward(self, p: float = 0.3) -> Tensor:
        x = self.dropout(self.weight) * torch.rand(50)
        return F.dropout(x, p) + torch.bernoulli(torch.full((50,), 0.5)) + torch.rand(())


def test_kept_masks_are_the_drawn_ones() -> None:
    model, masks = Draws(), DropoutMasks(Structure(Draws()))
    torch.manual_seed(5)
    with masks.record():
        first = model()
    after = torch.rand(3)
    torch.manual_seed(5)
    plain = model()
    torch.manual_seed(5)
    with masks.replay():
        replayed = model()
    assert torch.equal(first, plain)
    assert torch.equal(replayed, plain)
    assert torch.equal(torch.rand(3), after)


def test_a_mask_that_does_not_fit_is_drawn() -> None:
    model, masks = Draws(), DropoutMasks(Structure(Draws()))
    torch.manual_seed(5)
    with masks.record():
        model()
    for kwargs in ({"p": 0.7}, {}):
        torch.manual_seed(5)
        plain, after = model(**kwargs), torch.rand(3)
        torch.manual_seed(5)
        with masks.replay():
            assert torch.equal(model(**kwargs), plain)
        assert torch.equal(torch.rand(3), after)


def test_every_mask_of_an_encoder_is_kept() -> None:
    case = cases.make("bert")
    masks = DropoutMasks(Structure(case.model))
    with masks.record():
        case.closure()
    # Two layers, three masks in each (attention, its output, the feed-forward), the embeddings, the head.
    assert len(masks._masks) == 2 * 3 + 2


def test_nothing_is_recorded_without_dropout() -> None:
    masks = DropoutMasks(Structure(cases.make("bert").model.eval()))
    with masks.record() as mode:
        assert mode is None
