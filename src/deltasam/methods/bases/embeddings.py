"""An offset of a model's input embeddings, for unmodified models.

The output of the module that maps token ids to vectors is replaced by a forward hook: scaling, tying, positions and
token types apply to it as usual. The model must look its embeddings up once per forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Start = Callable[[Tensor, Tensor], Tensor]
"""Maps embeddings [n, T, d] and a mask of the positions that are not padding [n, T] to an offset [n, T, d]."""


class EmbeddingOffset:
    """An offset [n, T, d] of the input embeddings in every forward that runs inside ``with offset.added()``.

    Args:
        model: The model whose embeddings are offset.
        start: Creates the offset when the embeddings are first looked up.
        detach: Whether the embeddings themselves get no gradient.
    """

    def __init__(self, model: nn.Module, start: Start, *, detach: bool = False) -> None:
        self._scope, self._table = _input_embeddings(model)
        self._start, self._detach = start, detach
        self._value: Tensor | None = None
        self._real: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The offset [n, T, d]: a leaf of the graph, 0 at padding."""
        self.check()
        return self._value  # type: ignore[return-value]

    def check(self) -> None:
        """Check, after a forward, that it looked the embeddings up.

        Raises:
            ValueError: It did not.
        """
        if self._value is None:
            raise ValueError(
                f"the input embeddings of {type(self._scope).__name__} were not read in the closure's forward; call "
                f"the model itself, with input_ids and not inputs_embeds"
            )

    def set_(self, value: Tensor) -> None:
        """Replace the offset for the following passes; padding stays as it is.

        Args:
            value: [n, T, d].
        """
        real = torch.ones_like(self.value[..., 0]) if self._real is None else self._real
        self._value = (value * real[..., None]).detach().requires_grad_()

    @contextmanager
    def added(self) -> Iterator[None]:
        """Add the offset to the embeddings in every forward inside the context.

        Raises:
            ValueError: The embeddings are not those of token ids, or are looked up several times.
        """
        inside: list[dict[str, Any]] = []
        reads: list[Tensor] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            inside.append({**bound, **bound.get("kwargs", {})})

        def leave(*_: object) -> None:
            inside.pop()

        def read(_: nn.Module, args: Any, embeddings: Tensor) -> Tensor | None:
            if not inside:  # a lookup of the decoder, which shares the table with its encoder
                return None
            reads.append(embeddings)
            return self._moved(args[0], embeddings, inside[-1], len(reads))

        hooks = [
            self._scope.register_forward_pre_hook(enter, with_kwargs=True),
            self._scope.register_forward_hook(leave, always_call=True),
            self._table.register_forward_hook(read),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _moved(self, ids: Tensor, embeddings: Tensor, given: dict[str, Any], reads: int) -> Tensor:
        real = _real_positions(ids, given)
        if reads > 1:
            raise ValueError(
                f"{type(self._scope).__name__} reads its input embeddings several times in one closure, so which to "
                f"perturb cannot be determined; use a closure with one forward"
            )
        if self._value is None:
            wide = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
            self._real = real
            self._value = self._start(wide, real).requires_grad_()
        if self._value.shape != embeddings.shape:
            shapes = f"{list(self._value.shape)} and {list(embeddings.shape)}"
            raise ValueError(f"two passes on one batch read embeddings of shapes {shapes}")
        offset = torch.where(real[..., None], self._value, 0)  # padding gets no gradient either
        return (_blocked(embeddings) if self._detach else embeddings) + offset.to(embeddings.dtype)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def _blocked(x: Tensor) -> Tensor:
    """Identity with gradient 0. Not detached: DDP would consider the parameters before it unused."""
    blocked: Tensor = _Block.apply(x)
    return blocked


def sample_noise(
    sampler: Callable[..., Tensor], embeddings: Tensor, real: Tensor, generator: torch.Generator
) -> Tensor:
    """Noise [n, T, d] at the positions that are not padding; independent of the amount of padding.

    Args:
        sampler: ``torch.rand`` or ``torch.randn``.
        embeddings: Embeddings [n, T, d] whose shape, dtype and device the noise gets.
        real: Mask of the positions that are not padding [n, T].
        generator: A generator on the CPU.
    """
    numbers, width = embeddings.numel(), embeddings.shape[-1]
    # PyTorch draws normal numbers in blocks of 16: in whole blocks, a number does not depend on how many are drawn.
    drawn = sampler((-(-numbers // 16) * 16,), generator=generator, device="cpu")[:numbers].view(-1, width)
    place = (real.flatten().cumsum(0) - 1).clamp(min=0)  # index of each real position; avoids a device sync
    rows = drawn.to(embeddings)[place].view_as(embeddings)
    return torch.where(real[..., None], rows, 0.0)


def normalized_direction(gradient: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient divided by its norm; 0 where the norm is 0 or not finite.

    Args:
        gradient: Gradient [n, T, d].
        norm: Computes the norms to divide by. It is given gradients of magnitude 1, so that no square over- or
            underflows.
    """
    size = gradient.abs().amax((-1, -2), keepdim=True)
    level = torch.where((size > 0) & size.isfinite(), gradient / size, 0.0)
    length = norm(level)
    return torch.where(length > 0, level / length, 0.0)


def _real_positions(ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Mask of the positions that are not padding [n, T]."""
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"the input embeddings were given {ids.dtype} of shape {list(ids.shape)}; only embeddings of token ids "
            f"[n, T] can be perturbed"
        )
    whole, mask = given.get("input_ids"), given.get("attention_mask")
    if isinstance(whole, Tensor) and whole is not ids and not torch.equal(whole.reshape(-1, whole.shape[-1]), ids):
        raise ValueError(
            "the input embeddings were given other ids than the model, so padding cannot be determined; only models "
            "that look up their input_ids unchanged can be perturbed"
        )
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape[-1] != ids.shape[-1] or mask.numel() != ids.numel():
        raise ValueError("the attention_mask must have one entry per token, [n, T], to mark padding")
    return mask.reshape(ids.shape) != 0


def _input_embeddings(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module whose forward counts as the model's, and its module that looks token ids up.

    Raises:
        ValueError: There is no such module, or more than one.
    """
    for module in model.modules():
        table = _of_transformer(module)
        if table is not None:
            return table
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if len(tables) == 1:
        return model, tables[0]
    raise ValueError(
        f"which input embeddings of {type(model).__name__} to perturb cannot be determined: it has {len(tables)} "
        f"nn.Embedding modules; give the model a method get_input_embeddings() that returns its token embedding, or "
        f"use a method that perturbs weights"
    )


def _of_transformer(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    if not callable(getattr(module, "get_input_embeddings", None)):
        return None
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        module = module.get_encoder()  # type: ignore[operator]
    try:
        table = module.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    return (module, table) if isinstance(table, nn.Module) else None
