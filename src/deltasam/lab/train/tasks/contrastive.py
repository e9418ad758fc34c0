"""Sentence embeddings, and the loss that tells a sentence from others by two views of it.

Legend: n sentences, T tokens, d numbers in an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from deltasam.core.vectors import wide

# Mirror-BERT's: of a shorter sentence a span would be too much.
SHORTEST_MASKED = 30


def embed(model: nn.Module, inputs: dict[str, Tensor], pooling: str, precision: str) -> Tensor:
    """Embeddings [n, d] in float32 or wider; ``bf16`` runs the model under autocast.

    Args:
        model: An encoder.
        inputs: A batch of sentences.
        pooling: ``mean`` over the tokens, padding left out, or ``cls``, the first token.
        precision: ``fp32`` or ``bf16``.
    """
    mask = inputs["attention_mask"]
    with torch.autocast(mask.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        states: Tensor = model(**inputs).last_hidden_state
    states = wide(states)
    if pooling == "cls":
        return states[:, 0]
    tokens = mask[:, :, None].to(states.dtype)
    return (states * tokens).sum(1) / tokens.sum(1)


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent: every view is to find its sentence's other view among all views but itself, by cosine similarity.

    Args:
        first: Embeddings of one view of each sentence [n, d].
        second: Of the other view [n, d].
        temperature: Similarities are divided by it.

    Returns:
        One loss per sentence, the mean of its two views' [n]; and the predictions of both [n, 2, 2n - 1].
    """
    n = len(first)
    views = normalize(torch.cat([first, second]), dim=1)
    logits = _without_diagonal(views @ views.T / temperature)
    places = torch.arange(n, device=first.device)
    other_views = torch.cat([places + n - 1, places])  # what was behind a view itself has moved up by one
    losses = cross_entropy(logits, other_views, reduction="none")
    return losses.view(2, n).mean(0), logits.view(2, n, -1).transpose(0, 1)


def mask_span(sentence: str, mask: str, length: int) -> str:
    """The sentence with one random span of characters replaced by a mask; a short one stays as it is.

    The place is drawn from the global random state.
    """
    if len(sentence) < max(SHORTEST_MASKED, length + 1):
        return sentence
    start = int(torch.randint(len(sentence) - length, ()))
    return f"{sentence[:start]} {mask} {sentence[start + length :]}"


def _without_diagonal(square: Tensor) -> Tensor:
    """[k, k] to [k, k - 1]: behind each entry of the diagonal, but the last, k others come."""
    k = len(square)
    return square.flatten()[1:].view(k - 1, k + 1)[:, :-1].reshape(k, k - 1)
