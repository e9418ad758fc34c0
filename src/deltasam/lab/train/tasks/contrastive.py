"""Sentence embeddings, and the contrastive loss of two views of each sentence.

Legend: n sentences, T tokens, d numbers in an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from deltasam.core.vectors import wide

# Mirror-BERT's limit: in a shorter sentence the span would be too large a part.
SHORTEST_MASKED = 30


def embed(model: nn.Module, inputs: dict[str, Tensor], pooling: str, precision: str) -> Tensor:
    """Embeddings [n, d] in float32 or wider; ``bf16`` runs the model under autocast.

    Args:
        model: An encoder.
        inputs: A batch of sentences.
        pooling: ``mean`` over the tokens without padding, or ``cls``, the first token.
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
    """NT-Xent: every view must find its sentence's other view among all other views, by cosine similarity.

    Args:
        first: Embeddings of the first view of each sentence [n, d].
        second: Embeddings of the second view [n, d].
        temperature: Divisor of the similarities.

    Returns:
        One loss per sentence [n], the mean over its two views; and the logits of both views [n, 2, 2n - 1].
    """
    n = len(first)
    views = normalize(torch.cat([first, second]), dim=1)
    logits = _without_diagonal(views @ views.T / temperature)
    places = torch.arange(n, device=first.device)
    other_views = torch.cat([places + n - 1, places])  # entries after the removed diagonal have moved up by one
    losses = cross_entropy(logits, other_views, reduction="none")
    return losses.view(2, n).mean(0), logits.view(2, n, -1).transpose(0, 1)


def mask_span(sentence: str, mask: str, length: int) -> str:
    """The sentence with one random span of characters replaced by a mask; a short sentence is returned unchanged.

    The position is drawn from the global random state.
    """
    if len(sentence) < max(SHORTEST_MASKED, length + 1):
        return sentence
    start = int(torch.randint(len(sentence) - length, ()))
    return f"{sentence[:start]} {mask} {sentence[start + length :]}"


def _without_diagonal(square: Tensor) -> Tensor:
    """[k, k] to [k, k - 1]: in memory, k other entries follow each diagonal entry except the last."""
    k = len(square)
    return square.flatten()[1:].view(k - 1, k + 1)[:, :-1].reshape(k, k - 1)
