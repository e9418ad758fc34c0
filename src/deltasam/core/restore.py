"""Save random state, buffers and weights, and restore them bit for bit."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.collectives import alone
from deltasam.core.sharding import is_sharded, local
from deltasam.core.torch_internals import foreach
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.modules import own_buffers
from deltasam.core.torch_internals.tensors import set_version, version_of

_BLOCK = 1 << 20


class RandomState:
    """Snapshot of the state of every generator a forward pass may draw from.

    PyTorch on the CPU and on the model's devices, Python's ``random``, and NumPy's global generator where
    NumPy is loaded. The user's own ``torch.Generator`` objects are not known here and are not replayed.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self._restorers: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (torch.set_rng_state, (torch.get_rng_state(),)),
            (random.setstate, (random.getstate(),)),
        ]
        for device in devices:
            module: Any = torch.get_device_module(device)
            where = () if device.type == "mps" else (device,)
            self._restorers.append((module.set_rng_state, (module.get_rng_state(*where), *where)))
        if "numpy" in sys.modules:
            numpy_random = sys.modules["numpy"].random
            self._restorers.append((numpy_random.set_state, (numpy_random.get_state(),)))

    def restore(self) -> None:
        """Restore the state of every generator."""
        for setter, arguments in self._restorers:
            setter(*arguments)


def reseed(seed: int) -> None:
    """Seed every generator that ``RandomState`` covers."""
    torch.manual_seed(seed)  # seeds all devices too
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def accelerators(params: Iterable[nn.Parameter]) -> set[torch.device]:
    """The devices other than the CPU that parameters compute on: each has its own random state.

    Sharded parameters may be kept on the CPU (offloading), and are on their mesh's device in a forward.
    """
    params = list(params)
    devices = {p.device for p in params if p.device.type not in ("cpu", "meta")}
    for kind in {p.device_mesh.device_type for p in params if is_sharded(p)} - {d.type for d in devices} - {"cpu"}:
        devices.add(torch.device(kind, torch.get_device_module(kind).current_device()))
    return devices


class Buffers:
    """Snapshot of the buffers of modules (BatchNorm statistics, caches)."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # The dictionary itself is kept, not `named_buffers()`: a forward pass may put a new tensor under a name.
        self._saved = [
            (own, {k: (b, None if b is None else b.detach().clone()) for k, b in own.items()})
            for module in modules
            if (own := own_buffers(module))
        ]
        # In every forward DDP broadcasts the first process's buffers into those of all, which counts as a write.
        buffers = [] if alone() else [b for _, saved in self._saved for b, _ in saved.values() if type(b) is Tensor]
        self._versions = [(b, version_of(b)) for b in buffers if not b.is_inference()]

    def restore_written(self) -> None:
        """Restore the values of buffers that were written in place, so that a forward repeats the first one.

        A buffer that was replaced by another tensor is left: a cache that has grown, and is recorded elsewhere as such.
        """
        for current, saved in self._saved:
            for name, (buffer, value) in saved.items():
                if buffer is not None and value is not None and current.get(name) is buffer:
                    buffer.data.copy_(value)  # .data: a graph that saved the buffer stays usable

    def restore(self) -> None:
        """Restore every buffer: the same tensor under the same name with the same values."""
        for current, saved in self._saved:
            current.clear()
            current.update((name, buffer) for name, (buffer, _) in saved.items())
        self.restore_written()
        for buffer, version in self._versions:  # autograd checks versions; the values are again those the graph saved
            if version_of(buffer) != version:
                set_version(buffer, version)


class WeightStore:
    """Memory for copies of the weights, reused from step to step.

    Allocating a block of the model's size costs several times more than the copy itself on the CPU (page faults).
    The memory is never pickled or copied with the method that owns it.
    """

    def __init__(self) -> None:
        self._saved: list[Tensor] = []
        self._noise: dict[int, Tensor] = {}
        self._copied: list[int] = []
        self._away: tuple[list[Tensor], list[Tensor], list[tuple[nn.Parameter, Tensor]]] | None = None

    def lend(
        self, weights: list[Tensor], saved: list[Tensor], whole: Sequence[tuple[nn.Parameter, Tensor]] = ()
    ) -> None:
        """Register weights that are about to be moved, and their copies.

        Args:
            weights: The tensors that will be written into.
            saved: Copies of them.
            whole: Parameters paired with the tensors that hold their values, where a forward could replace these.
        """
        self._away = weights, saved, list(whole)

    def bring_back(self, copy: Callable[[list[Tensor], list[Tensor]], Any]) -> None:
        """Restore the values of moved weights; may be called again if it was interrupted.

        Args:
            copy: Function that copies the second list of tensors into the first.
        """
        if self._away is None:
            return
        weights, saved, whole = self._away
        copy(weights, saved)
        for param, data in whole:
            if param.data_ptr() != data.data_ptr():
                param.data = data  # the forward replaced its storage: weight.data = ...
        torch.clear_autocast_cache()
        self._away = None

    def forget(self) -> None:
        """Invalidate the copies: the weights may have changed."""
        self._copied = []

    def copy_of(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Copies of the parameters, valid until the next call; several calls with the same parameters copy once."""
        places = [p.data_ptr() for p in params]
        if places != self._copied:
            self._saved, self._copied = _memory_like(params, self._saved), []
            foreach.copy_(self._saved, list(params))
            self._copied = places
        return self._saved

    def gaussian(self, params: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Standard normal noise of the parameters' shapes; valid until the next call.

        Each block of 2^20 weights reads one table of Gaussians from a random offset, since drawing a number for every
        weight costs as much as a forward pass. Any two weights are independent except with probability 1e-6.

        Args:
            params: Tensors whose shapes and devices the noise gets.
            generator: A generator on the CPU.
        """
        table = torch.randn(_BLOCK, generator=generator, device="cpu").repeat(2)  # twice: a block may start anywhere
        tables = {device: table.to(device) for device in {p.device for p in params}}
        return [self._read(p, i, tables[p.device], generator) for i, p in enumerate(params)]

    def _read(self, param: Tensor, index: int, table: Tensor, generator: torch.Generator) -> Tensor:
        if not param.numel():
            return table[:0].view(param.shape)
        sizes = [min(_BLOCK, param.numel() - start) for start in range(0, param.numel(), _BLOCK)]
        starts = torch.randint(_BLOCK, (len(sizes),), generator=generator, device="cpu").tolist()
        if len(sizes) == 1:
            return table[starts[0] : starts[0] + sizes[0]].view(param.shape)  # a view: no copy
        self._noise[index] = noise = _memory_like([param], [self._noise.get(index, table)])[0]
        for block, start in zip(noise.view(-1).split(_BLOCK), starts, strict=True):
            block.copy_(table[start : start + len(block)])
        return noise

    def __reduce__(self) -> tuple[type[WeightStore], tuple[()]]:
        return WeightStore, ()


@contextmanager
def moved(
    params: Sequence[nn.Parameter],
    vector: vectors.Vector,
    factor: float,
    store: WeightStore,
    *,
    guarded: bool = False,
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Move weights by ``factor * vector`` inside the context, and restore them from a copy on any exit.

    They are moved in place, so that everything that shares their memory sees it (flattened, sharded and tied weights),
    and through ``.data``, so that the graph of an earlier pass stays usable once they are restored.

    Args:
        params: The weights.
        vector: One tensor per weight, or None where a weight does not move.
        factor: Scale of the vector.
        store: Keeps the copies.
        guarded: Whether weights that do not move are restored as well, in case something writes into them.

    Yields:
        The moved weights and the copies they will be restored from.
    """
    steps = [local(v) if v is not None and factor else None for v in vector]
    pairs = [(local(p.data), v) for p, v in zip(params, steps, strict=True) if v is not None or guarded]
    if not pairs:
        yield [], []
        return
    weights = [p for p, _ in pairs]
    with unseen():  # a function mode that traces the pass must not see this copy
        saved = store.copy_of(weights)
    store.lend(weights, saved, [(p, p.data) for p in params if not is_sharded(p)])
    try:
        with unseen():
            vectors.add(weights, [v for _, v in pairs], factor)
        del pairs, steps, vector  # frees the vector's memory before the pass, if the caller holds no reference
        torch.clear_autocast_cache()  # else autocast would keep using its low-precision copies of the old weights
        yield weights, saved
    finally:
        with unseen():
            store.bring_back(foreach.copy_)


def copy_one_by_one(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """As ``foreach.copy_``, for use after an error that may have come from there (out of memory)."""
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


def _memory_like(params: Sequence[Tensor], memory: list[Tensor]) -> list[Tensor]:
    fits = len(memory) == len(params) and all(
        m.shape == p.shape and m.dtype == p.dtype and m.device == p.device for m, p in zip(memory, params, strict=True)
    )
    return memory if fits else [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in params]
