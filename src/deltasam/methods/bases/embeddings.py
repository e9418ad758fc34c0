"""An offset of a model's input embeddings, for models as they are.

What the module returns that turns token ids into vectors is replaced as it leaves that module: scaled and tied
embeddings, positions and types are added to it as always. The model must read it once in a forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Start = Callable[[Tensor, Tensor], Tensor]
"""From embeddings [n, T, d] and which positions are real [n, T] to an offset [n, T, d]."""


class EmbeddingOffset:
    """An offset [n, T, d] of the input embeddings in every forward that runs inside ``with offset.added()``.

    Args:
        model: Whose embeddings.
        start: Makes the offset when the embeddings are first seen.
        detach: The embeddings themselves get no gradient.
    """

    def __init__(self, model: nn.Module, start: Start, *, detach: bool = False) -> None:
        self._scope, self._table = _input_embeddings(model)
        self._start, self._detach = start, detach
        self._value: Tensor | None = None
        self._real: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The offset: a leaf of the graph, 0 at padding."""
        self.check()
        return self._value  # type: ignore[return-value]

    def check(self) -> None:
        """To be called after a forward.

        Raises:
            ValueError: It has not read the embeddings.
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
        """Inside, the embeddings have the offset.

        Raises:
            ValueError: They are not those of token ids, or are read several times.
        """
        inside: list[dict[str, Any]] = []
        reads: list[Tensor] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            inside.append({**bound, **bound.get("kwargs", {})})

        def leave(*_: Any) -> None:
            inside.pop()

        def read(_: nn.Module, args: Any, embeddings: Tensor) -> Tensor | None:
            if not inside:  # a decoder's, which shares the table with its encoder
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
                f"{type(self._scope).__name__} reads its input embeddings several times in one closure, so it cannot "
                f"be told which to perturb; use a closure with one forward"
            )
        if self._value is None:
            wide = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
            self._real = real
            self._value = self._start(wide, real).requires_grad_()
        if self._value.shape != embeddings.shape:
            shapes = f"{list(self._value.shape)} and {list(embeddings.shape)}"
            raise ValueError(f"two passes on one batch read embeddings of shapes {shapes}")
        offset = torch.where(real[..., None], self._value, 0)  # nor is a gradient at padding one of the offset
        return (_blocked(embeddings) if self._detach else embeddings) + offset.to(embeddings.dtype)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def _blocked(x: Tensor) -> Tensor:
    """The same with gradient 0, and not detached: DDP would take the parameters before it for unused."""
    blocked: Tensor = _Block.apply(x)
    return blocked


def sample_noise(
    sampler: Callable[..., Tensor], embeddings: Tensor, real: Tensor, generator: torch.Generator
) -> Tensor:
    """Noise [n, T, d] at the real positions; it does not depend on how much padding there is.

    Args:
        sampler: ``torch.rand`` or ``torch.randn``.
        embeddings: The noise is like these.
        real: Where it is drawn [n, T].
        generator: A generator on the CPU.
    """
    numbers, width = embeddings.numel(), embeddings.shape[-1]
    # PyTorch draws normal numbers sixteen at a time: with whole sixteens the first ones are the same, however many.
    drawn = sampler((-(-numbers // 16) * 16,), generator=generator, device="cpu")[:numbers].view(-1, width)
    place = (real.flatten().cumsum(0) - 1).clamp(min=0)  # of each real position among them; no count is waited for
    rows = drawn.to(embeddings)[place].view_as(embeddings)
    return torch.where(real[..., None], rows, 0.0)


def normalized_direction(gradient: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient over its norm; 0 where that is 0 or not finite.

    Args:
        gradient: [n, T, d].
        norm: Its norms, to be divided by. Sees gradients of size 1, so that no square leaves the range of numbers.
    """
    size = gradient.abs().amax((-1, -2), keepdim=True)
    level = torch.where((size > 0) & size.isfinite(), gradient / size, 0.0)
    length = norm(level)
    return torch.where(length > 0, level / length, 0.0)


def _real_positions(ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Which positions are no padding [n, T]."""
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"the input embeddings were given {ids.dtype} of shape {list(ids.shape)}; only those of token ids [n, T] "
            f"can be perturbed"
        )
    whole, mask = given.get("input_ids"), given.get("attention_mask")
    if isinstance(whole, Tensor) and whole is not ids and not torch.equal(whole.reshape(-1, whole.shape[-1]), ids):
        raise ValueError(
            "the input embeddings were given other ids than the model, so it cannot be told what is padding; only "
            "models that look their input_ids up as they are can be perturbed"
        )
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape[-1] != ids.shape[-1] or mask.numel() != ids.numel():
        raise ValueError("the attention_mask must have one entry for every token, [n, T], to tell what is padding")
    return mask.reshape(ids.shape) != 0


def _input_embeddings(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module whose forward counts as the model's, and the one that looks token ids up in it.

    Raises:
        ValueError: There is none, or more than one.
    """
    for module in model.modules():
        table = _of_transformer(module)
        if table is not None:
            return table
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if len(tables) == 1:
        return model, tables[0]
    raise ValueError(
        f"which input embeddings of {type(model).__name__} to perturb cannot be told: it has {len(tables)} "
        f"nn.Embedding modules; give it a function get_input_embeddings() that returns the one of its tokens, or use a "
        f"method that perturbs weights"
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
