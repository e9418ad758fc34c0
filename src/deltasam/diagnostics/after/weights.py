"""Evaluate a model while its weight matrices hold other values, and put the weights back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltasam.core.restore import WeightStore
from deltasam.core.sharding import is_sharded
from deltasam.core.torch_internals import foreach
from deltasam.diagnostics.batches import restoring_state

Evaluate = Callable[[], Mapping[str, float]]
"""Runs a model as it is on some data, and gives its metrics."""


def matrices(owner: str, model: nn.Module, *, embeddings: bool) -> list[nn.Parameter]:
    """The weight matrices of a model: floating-point parameters of two axes or more, frozen ones too, each once.

    Biases and the parameters of norms are left out, as in practice: they are few, and a model suffers much from small
    errors in them.

    Args:
        owner: Who asks, for errors.
        model: The model.
        embeddings: Whether those of ``nn.Embedding`` are among them, also where an output layer shares them.

    Raises:
        ValueError: There is none, or they are sharded.
    """
    tables = (nn.Embedding, nn.EmbeddingBag)
    left_out = set() if embeddings else {m.weight for m in model.modules() if isinstance(m, tables)}
    found: dict[tuple[object, ...], nn.Parameter] = {}
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point() or not parameter.numel() or parameter in left_out:
            continue
        if is_sharded(parameter):
            raise ValueError(f"{owner}: the weights are sharded between processes; measure the saved model in one")
        # By memory: two parameters may share it without being one object, and noise must not be added twice.
        found.setdefault((parameter.device, parameter.data_ptr()), parameter)
    if not found:
        others = "" if embeddings else " beside embeddings; embeddings=True changes these too"
        raise ValueError(f"{owner}: the model has no weight matrix{others}")
    return list(found.values())


def evaluated(owner: str, model: nn.Module, evaluate: Evaluate) -> dict[str, float]:
    """What ``evaluate`` gives; gradients, buffers and random state are put back, so every call starts from the same.

    Raises:
        ValueError: It gives no metric.
    """
    with restoring_state(model):
        found = {name: float(value) for name, value in evaluate().items()}
    if not found:
        raise ValueError(f"{owner}: evaluate() gave no metric; return a mapping from names to numbers")
    return found


@contextmanager
def holding(params: Sequence[nn.Parameter], values: Iterable[Tensor], store: WeightStore) -> Iterator[None]:
    """Meanwhile parameters hold other values; theirs are put back from a copy, bit for bit, whatever happens.

    Written in place through ``.data``: whatever shares their memory sees it, and graphs stay usable.

    Args:
        params: The parameters.
        values: One tensor each, in any dtype; a generator may make each from its parameter when it is asked for.
        store: Keeps the copies, which are made once for calls with the same parameters.
    """
    weights = [p.data for p in params]
    saved = store.copy_of(weights)
    store.lend(weights, saved, list(zip(params, weights, strict=True)))
    try:
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
        torch.clear_autocast_cache()  # else autocast goes on using its low-precision copies of the old weights
        yield
    finally:
        store.bring_back(foreach.copy_)
