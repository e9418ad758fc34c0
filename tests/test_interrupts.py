"""Ctrl-C at any moment, and errors of the restoring itself, leave everything as it was before the call."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import deltasam
from deltasam.core.torch_internals import foreach

# Interrupts fall between instructions of these: what deltasam does itself, and the context managers that it enters.
WATCHED = (
    str(Path(deltasam.__file__).parent),
    contextlib.__file__,
    *(str(Path(torch.__file__).parent / name) for name in ("overrides.py", "utils/_python_dispatch.py", "autograd/")),
    *(str(Path(torch.__file__).parent / name) for name in ("amp/autocast_mode.py", "_functorch/vmap.py")),
)
MOMENTS = 12
SPECS = ["sam", "friendly_sam@warmup=2", "delta_sam:weights=slopes", "per_instance_sam", "smart:mu=0", "freelb"]


class Net(nn.Module):
    """Embeddings, dropout, a checkpoint, a buffer that every forward changes, and copies under ``vmap``."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.dropout, self.norm = nn.Dropout(0.2), nn.BatchNorm1d(4) if batch_norm else nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(4, 4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input_ids: Tensor) -> Tensor:
        self.calls += 1
        h = self.table(input_ids).mean(1)
        h = checkpoint(self.inner, h, use_reentrant=False)
        h = self.norm(self.dropout(torch.tanh(h))) + torch.einsum("bi,ij->bj", h, self.scale)
        return self.head(h)


class Setting:
    """A model, a method and a batch of it."""

    def __init__(self, spec: str) -> None:
        torch.manual_seed(0)
        self.model = Net(batch_norm="loop" in spec)
        self.method = deltasam.make_method(spec, self.model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.method.follow(optimizer, total_steps=10)
        optimizer.step()
        self.ids, self.labels = torch.randint(9, (4, 3)), torch.tensor([0, 1, 0, 1])
        self.fails = False
        self.grads = [torch.ones_like(p) if n < 2 else None for n, p in enumerate(self.model.parameters())]
        self.begin()

    def begin(self) -> None:
        """Start over: the same random numbers, buffers, gradients, and state of the method."""
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        for p, grad in zip(self.model.parameters(), self.grads, strict=True):
            p.grad = grad
        for buffer in self.model.buffers():
            buffer.zero_()
        if hasattr(self, "saved"):
            self.method.load_state_dict(self.saved)

    def closure(self) -> Tensor:
        if self.fails and deltasam.in_later_pass():
            raise ZeroDivisionError
        return F.cross_entropy(self.model(self.ids), self.labels, reduction="none").float()

    def state(self) -> dict[str, Any]:
        modules = dict(self.model.named_modules())
        inner = vars(self.method).get("method", self.method)
        return {
            "weights": {n: (p.data_ptr(), p.tolist()) for n, p in self.model.named_parameters()},
            "grads": [id(p.grad) if p.grad is not None else None for p in self.model.parameters()],
            "hooks": {n: [len(h) for k, h in vars(m).items() if "_hooks" in k] for n, m in modules.items()},
            "method": (repr(self.method.state_dict()), self.method.spec, {k: getattr(inner, k) for k in inner.neutral}),
            "grad mode": torch.is_grad_enabled(),
            "modes": (_get_current_function_mode_stack(), _get_current_dispatch_mode_stack()),
            "torch functions": torch._C._is_torch_function_enabled(),
            "levels": torch._C._functorch.get_interpreter_stack(),
            "autocast": (
                torch.is_autocast_enabled("cpu"),
                torch.get_autocast_dtype("cpu"),
                torch.is_autocast_cache_enabled(),
                torch.autocast_increment_nesting() + torch.autocast_decrement_nesting(),
            ),
            "later": deltasam.in_later_pass(),
        }

    def trace(self) -> dict[str, Any]:
        """What one plain pass changes."""
        python, numpy = random.getstate(), np.random.get_state()[1].tolist()
        buffers = {n: (id(b), b.tolist()) for n, b in self.model.named_buffers()}
        return {"random": (torch.get_rng_state().tolist(), python, numpy), "buffers": buffers}


class Interrupts:
    """Raises KeyboardInterrupt at one of the instructions that are run inside; notes them where it does not.

    Args:
        at: At which; None: at none.
    """

    def __init__(self, at: int | None = None) -> None:
        self.count, self._at = 0, at
        self.moments: dict[Any, list[int]] = {}

    def __enter__(self) -> Interrupts:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        frame.f_trace_opcodes = True
        if event in ("line", "opcode"):
            self.count += 1
            if self._at is None:
                self.moments.setdefault((frame.f_code, frame.f_lasti), []).append(self.count)
            if self.count == self._at:
                raise KeyboardInterrupt
        return self._trace


class Watching(TorchFunctionMode):
    """A mode of the user's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def surroundings(kind: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if kind == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if kind == "mode":
            stack.enter_context(Watching())
        yield


def moments(counted: Interrupts, how_many: int, *, last: int | None = None) -> list[int]:
    """Some moments, each at another instruction, whether that is run once or a thousand times."""
    draw = random.Random(how_many)
    first = 0 if last is None else counted.count - last
    places = [kept for found in counted.moments.values() if (kept := [at for at in found if at > first])]
    return [draw.choice(found) for found in draw.sample(places, min(how_many, len(places)))]


def check(spec: str, *, fails: bool, kind: str, chosen: Callable[[Interrupts], list[int]]) -> int:
    """Interrupt one call at chosen moments; how many these were."""
    setting = Setting(spec)
    with surroundings(kind):
        setting.method.backward(setting.closure)  # what is imported or checked once
        setting.fails, setting.saved = fails, setting.method.state_dict()
        setting.begin()
        state, start = setting.state(), setting.trace()
        with Interrupts() as counted, contextlib.suppress(ZeroDivisionError):
            setting.method.backward(setting.closure)
        end = setting.trace()  # also the state of an interrupt that comes when all is done
        at_moments = chosen(counted)
        for at in at_moments:
            setting.begin()
            with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError), Interrupts(at):
                setting.method.backward(setting.closure)
            done = setting.trace() == end
            after = setting.state() | ({} if done else setting.trace())
            for key in after:
                if not (done and key in ("grads", "method")):
                    assert after[key] == (state | start)[key], (spec, at, key)
        before = setting.state() | setting.trace()
        gc.collect()  # what an interrupt had left suspended would run now
        assert setting.state() | setting.trace() == before
        setting.fails = False
        setting.method.backward(setting.closure)  # and goes on
    return len(at_moments)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_at_any_moment(spec: str) -> None:
    kind = {"per_instance_sam": "autocast", "sam": "mode"}.get(spec, "")
    assert check(spec, fails=False, kind=kind, chosen=lambda counted: moments(counted, MOMENTS)) == MOMENTS


@pytest.mark.parametrize("spec", ["sam", "per_instance_sam", "delta_sam:weights=slopes"])
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_while_another_error_is_undone(spec: str) -> None:
    check(spec, fails=True, kind="", chosen=lambda counted: moments(counted, MOMENTS, last=3000))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.filterwarnings("ignore")
def test_what_was_left_on_in_the_closure_is_off_again(spec: str) -> None:
    setting = Setting(spec)

    def closure() -> Tensor:
        losses = setting.closure()
        if deltasam.in_later_pass():
            for manager in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Watching()):
                manager.__enter__()
            setting.model.head.register_forward_hook(lambda *_: None)
            raise KeyboardInterrupt
        return losses

    before = setting.state() | setting.trace()
    with pytest.raises(KeyboardInterrupt):
        setting.method.backward(closure)
    assert setting.state() | setting.trace() == before


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.filterwarnings("ignore")
def test_an_error_in_the_restoring_copy(spec: str, error: type[BaseException], monkeypatch: Any) -> None:
    setting = Setting(spec)
    copy, restores = foreach.copy_, []

    def failing(to: Any, values: Any, *rest: Any) -> Any:
        if sys._getframe(1).f_code.co_name == "bring_back":
            restores.append(0)
            raise error
        return copy(to, values, *rest)

    monkeypatch.setattr(foreach, "copy_", failing)
    before, trace = setting.state(), setting.trace()
    if spec in ("smart:mu=0", "freelb"):
        setting.method.backward(setting.closure)  # moves no weight
        assert not restores
        return
    with pytest.raises(error):
        setting.method.backward(setting.closure)
    assert restores == [0]
    assert setting.state() == before
    assert setting.trace() == trace
