"""Functions of PyTorch that do many things in one call, written as the several functions that they consist of.

They cannot be given a copy of their weights for each example, having time in front or no rule in ``vmap``; the linear
layers in them are products like any other. Results lie in memory as those of PyTorch do, since a dropout after them
draws its mask in that order. A function returns None for arguments that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Tensor, Tensor | None], State]

Function = TypeVar("Function", bound=Callable[..., Any])

COMPOSED: dict[str, Callable[..., Any]] = {}
"""By the name of the function."""


def _is(name: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        COMPOSED[name] = function
        return function

    return register


@_is("multi_head_attention_forward")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """``F.multi_head_attention_forward``: query [T, n, E], key and value [S, n, E] to [T, n, E] and weights."""
    if query.ndim != 3 or add_zero_attn or any(t is not None for t in (bias_k, bias_v, static_k, static_v)):
        return None
    n = query.shape[1]
    sources = query, key, value
    firsts = {id(t): t.transpose(0, 1) for t in sources}
    if use_separate_proj_weight:
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        projected = [
            F.linear(firsts[id(t)], w) if b is None else F.linear(firsts[id(t)], w) + b
            for t, w, b in zip(sources, (q_proj_weight, k_proj_weight, v_proj_weight), biases, strict=True)
            if w is not None
        ]
    else:  # each with all three matrices, so that the weight is used as it is
        threes = {k: F.linear(t, in_proj_weight, in_proj_bias).chunk(3, -1) for k, t in firsts.items()}  # type: ignore[arg-type]
        projected = [threes[id(t)][part] for part, t in enumerate(sources)]
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in projected)  # [n, heads, T, E / heads]
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(attn_mask, key_padding_mask, n, q)
    dropout_p = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
        weights = F.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights.flatten(0, 1), dropout_p).unflatten(0, (n, num_heads))
        mixed = torch.matmul(weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal)
    output = F.linear(mixed.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    return output.transpose(0, 1).contiguous(), weights


def _mask(pairs: Tensor | None, padding: Tensor | None, n: int, q: Tensor) -> Tensor | None:
    """What is added to the scores, broadcast against [n, heads, T, S]."""
    if pairs is not None:
        pairs = _added(pairs, q)
        pairs = pairs.unflatten(0, (n, -1)) if pairs.ndim == 3 else pairs
    if padding is None:
        return pairs
    padding = _added(padding, q)[:, None, None]
    return padding if pairs is None else pairs + padding


def _added(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -torch.inf)


@_is("_weight_norm")
def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / |v|``, with a norm for each place along ``dim``, or one of all for -1."""
    others = [axis for axis in range(v.ndim) if axis != dim] if dim >= 0 else list(range(v.ndim))
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True).view(g.shape))


# Recurrent cells: a step from what the input gives [n, gates], the state, and the recurrent weight and bias.


def _lstm_step(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    h, c = state
    enter, forget, value, leave = (given + F.linear(h, weight, bias)).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(value)
    return torch.sigmoid(leave) * torch.tanh(c), c


def _gru_step(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (h,) = state
    reset_x, update_x, new_x = given.chunk(3, -1)
    reset_h, update_h, new_h = F.linear(h, weight, bias).chunk(3, -1)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (new + torch.sigmoid(update_x + update_h) * (h - new),)


def _tanh_step(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    return (torch.tanh(given + F.linear(state[0], weight, bias)),)


def _relu_step(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    return (torch.relu(given + F.linear(state[0], weight, bias)),)


def _of_step(step: Step) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The cell of a step, and layers of it."""

    def cell(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = step(F.linear(input, w_ih, b_ih), (hx,) if isinstance(hx, Tensor) else tuple(hx), w_hh, b_hh)
        return state[0] if isinstance(hx, Tensor) else state

    def layers(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...] | None:
        directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
        # Packed sequences have other arguments, projections more weights.
        known = isinstance(weights, (tuple, list)) and len(weights) == num_layers * directions * each
        if not known or (dropout and training) or input.ndim != 3:
            return None
        begins = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        x = input if batch_first else input.transpose(0, 1)
        ends: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                w_ih, w_hh, *biases = weights[place * each : (place + 1) * each]
                b_ih, b_hh = biases or (None, None)
                given, state, seen = F.linear(x, w_ih, b_ih), tuple(t[place] for t in begins), {}
                for t in range(x.shape[1])[:: 1 - 2 * direction]:
                    state = step(given[:, t], state, w_hh, b_hh)
                    seen[t] = state[0]
                outputs.append(torch.stack([seen[t] for t in range(x.shape[1])]))
                ends.append(state)
            output = torch.cat(outputs, -1)
            x = output.transpose(0, 1)
        last = (torch.stack(states) for states in zip(*ends, strict=True))
        return (x if batch_first else output, *last)

    return cell, layers


for _name, _step in {"lstm": _lstm_step, "gru": _gru_step, "rnn_tanh": _tanh_step, "rnn_relu": _relu_step}.items():
    COMPOSED[f"{_name}_cell"], COMPOSED[_name] = _of_step(_step)
