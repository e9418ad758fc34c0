"""The mathematics of each kind of layer.

All of these layers are linear in their own parameters, so a layer with the weights ``w + c_i g_i`` for example i
gives its ordinary output plus the layer applied with the weights ``c_i g_i``: the *shift*.

Legend: n examples (or groups of examples), T rows (tokens) of each, I inputs, O outputs; x layer input, b gradient
of the loss with respect to the layer's output, y the output. ``x_nTI`` has the shape [n, T, I].
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rule(abc.ABC):
    """What per-example gradients need to know of one kind of layer."""

    registry: ClassVar[dict[type[nn.Module], Rule]] = {}

    def __init_subclass__(cls, *, layer: type[nn.Module]) -> None:
        Rule.registry[layer] = cls()

    def covers(self, layer: Any) -> bool:
        """Whether this layer, with its options, follows the rule."""
        return True

    def rows(self, x: Tensor, groups: int) -> Tensor:
        """The layer's input as [groups, rows, features]."""
        return x.reshape(groups, -1, x.shape[-1])

    @abc.abstractmethod
    def square_norm(self, layer: Any, x: Tensor, b: Tensor) -> Tensor:
        """Squared norm of each example's gradient of the layer's trainable parameters [n]."""

    @abc.abstractmethod
    def shift(self, layer: Any, x_new: Tensor, x: Tensor, cb: Tensor) -> Tensor:
        """What the weights ``c_i g_i`` add to the output for the new input [n, T, O]; cb is c_i b_i."""

    @abc.abstractmethod
    def gradient(self, layer: Any, x: Tensor, b: Tensor) -> dict[str, Tensor]:
        """The gradient summed over the examples, by parameter name: to check the record against autograd."""


def _trains(layer: Any, name: str) -> bool:
    parameter = getattr(layer, name, None)
    return parameter is not None and parameter.requires_grad


class LinearRule(Rule, layer=nn.Linear):
    """``g_i = b_i^T x_i``, ``|g_i|^2 = sum (x_i x_i^T) * (b_i b_i^T)``, shift ``(x'_i x_i^T) b_i``.

    Long sequences of narrow layers form ``g_i`` one example at a time instead: fewer operations than T x T products.
    """

    def square_norm(self, layer: Any, x_nTI: Tensor, b_nTO: Tensor) -> Tensor:
        total = x_nTI.new_zeros(len(x_nTI))
        if _trains(layer, "weight"):
            if _gram_is_cheaper(x_nTI, b_nTO):
                total += (torch.bmm(x_nTI, x_nTI.mT) * torch.bmm(b_nTO, b_nTO.mT)).sum((1, 2))
            else:
                total += torch.stack([(b.mT @ x).square().sum() for x, b in zip(x_nTI, b_nTO, strict=True)])
        if _trains(layer, "bias"):
            total += b_nTO.sum(1).square().sum(1)
        return total

    def shift(self, layer: Any, x_new_nTI: Tensor, x_nTI: Tensor, cb_nTO: Tensor) -> Tensor:
        shift = torch.zeros_like(cb_nTO)
        if _trains(layer, "weight"):
            if _gram_is_cheaper(x_nTI, cb_nTO):
                shift = torch.bmm(torch.bmm(x_new_nTI, x_nTI.mT), cb_nTO)
            else:
                triples = zip(x_new_nTI, x_nTI, cb_nTO, strict=True)
                shift = torch.stack([new @ (x.mT @ cb) for new, x, cb in triples])
        return shift + cb_nTO.sum(1, keepdim=True) if _trains(layer, "bias") else shift

    def gradient(self, layer: Any, x_nTI: Tensor, b_nTO: Tensor) -> dict[str, Tensor]:
        return {"weight": b_nTO.flatten(0, 1).mT @ x_nTI.flatten(0, 1), "bias": b_nTO.sum((0, 1))}


def _gram_is_cheaper(x_nTI: Tensor, b_nTO: Tensor) -> bool:
    rows, inputs, outputs = x_nTI.shape[1], x_nTI.shape[2], b_nTO.shape[2]
    return rows * (inputs + outputs) < inputs * outputs


class EmbeddingRule(Rule, layer=nn.Embedding):
    """Equal ids share a row: ``|g_i|^2 = sum_st [id_s = id_t] <b_s, b_t>``, shift ``sum_t [id'_s = id_t] b_t``."""

    def covers(self, layer: Any) -> bool:
        return layer.max_norm is None and not layer.scale_grad_by_freq

    def rows(self, ids: Tensor, groups: int) -> Tensor:
        return ids.reshape(groups, -1, 1)

    def square_norm(self, layer: Any, ids_nT1: Tensor, b_nTO: Tensor) -> Tensor:
        same_nTT = self._same(layer, ids_nT1, ids_nT1, b_nTO.dtype)
        return (same_nTT * torch.bmm(b_nTO, b_nTO.mT)).sum((1, 2))

    def shift(self, layer: Any, new_ids_nT1: Tensor, ids_nT1: Tensor, cb_nTO: Tensor) -> Tensor:
        return torch.bmm(self._same(layer, new_ids_nT1, ids_nT1, cb_nTO.dtype), cb_nTO)

    def gradient(self, layer: Any, ids_nT1: Tensor, b_nTO: Tensor) -> dict[str, Tensor]:
        weight = torch.zeros_like(layer.weight, dtype=b_nTO.dtype)
        ids = ids_nT1.flatten()
        kept = b_nTO.flatten(0, 1) * (ids != layer.padding_idx)[:, None] if layer.padding_idx is not None else b_nTO
        return {"weight": weight.index_add_(0, ids, kept.reshape(len(ids), -1))}

    def _same(self, layer: Any, new_ids_nT1: Tensor, ids_nT1: Tensor, dtype: torch.dtype) -> Tensor:
        same_nTT = new_ids_nT1 == ids_nT1.mT
        if layer.padding_idx is not None:  # this row of the weight has no gradient
            same_nTT = same_nTT & (new_ids_nT1 != layer.padding_idx)
        return same_nTT.to(dtype)


class LayerNormRule(Rule, layer=nn.LayerNorm):
    """``dgamma_i = sum_t b_t * xhat_t``, ``dbeta_i = sum_t b_t``, shift ``xhat' * dgamma_i + dbeta_i``."""

    def covers(self, layer: Any) -> bool:
        return len(layer.normalized_shape) == 1

    def square_norm(self, layer: Any, x_nTI: Tensor, b_nTI: Tensor) -> Tensor:
        return sum((g.square().sum(1) for g in self._parts(layer, x_nTI, b_nTI) if g is not None), b_nTI.new_zeros(()))

    def shift(self, layer: Any, x_new_nTI: Tensor, x_nTI: Tensor, cb_nTI: Tensor) -> Tensor:
        gamma_nI, beta_nI = self._parts(layer, x_nTI, cb_nTI)
        shift = torch.zeros_like(cb_nTI)
        if gamma_nI is not None:
            shift = self._normalised(layer, x_new_nTI) * gamma_nI[:, None]
        return shift if beta_nI is None else shift + beta_nI[:, None]

    def gradient(self, layer: Any, x_nTI: Tensor, b_nTI: Tensor) -> dict[str, Tensor]:
        return {"weight": (b_nTI * self._normalised(layer, x_nTI)).sum((0, 1)), "bias": b_nTI.sum((0, 1))}

    def _parts(self, layer: Any, x_nTI: Tensor, b_nTI: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gamma = (b_nTI * self._normalised(layer, x_nTI)).sum(1) if _trains(layer, "weight") else None
        return gamma, b_nTI.sum(1) if _trains(layer, "bias") else None

    def _normalised(self, layer: Any, x_nTI: Tensor) -> Tensor:
        return F.layer_norm(x_nTI, layer.normalized_shape, None, None, layer.eps)
