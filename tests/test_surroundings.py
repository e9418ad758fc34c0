"""What modes, hooks and suspended context managers were left behind is put back, whatever they are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from deltasam.core.restore import WeightStore, copy_one_by_one, moved
from deltasam.core.surroundings import Surroundings, UndoneOnError, finish_suspended
from deltasam.core.torch_internals import foreach


class Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def around() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "torch functions": torch._C._is_torch_function_enabled(),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "cache": torch.is_autocast_cache_enabled(),
        "nesting": torch.autocast_increment_nesting() + torch.autocast_decrement_nesting(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "levels": torch._C._functorch.get_interpreter_stack(),
    }


LEFT = {
    "no_grad": lambda: torch.no_grad().__enter__(),
    "torch functions off": lambda: torch._C.DisableTorchFunction().__enter__(),
    "a function mode": lambda: Function().__enter__(),
    "a dispatch mode": lambda: Dispatch().__enter__(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False).__enter__(),
    "saved tensors": lambda: saved_tensors_hooks(lambda t: t, lambda t: t).__enter__(),
    "vmap": lambda: torch._C._functorch._vmap_increment_nesting(3, "error"),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("inside", [False, True])
def test_what_was_left_on_is_off_again(what: str, inside: bool) -> None:
    outside = around()
    with Function() if inside else torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=inside):
        before = around()
        surroundings = Surroundings(nn.Linear(2, 2))
        LEFT[what]()
        assert around() != before
        for _ in range(2):  # as often as one likes
            surroundings.restore()
            assert around() == before
    assert around() == outside


def test_what_was_taken_away_is_back() -> None:
    with Function() as function, Dispatch() as dispatch:
        surroundings = Surroundings(nn.Linear(2, 2))
        torch._C._pop_torch_dispatch_stack(None)
        torch._C._pop_torch_function_stack()
        assert not _get_current_dispatch_mode_stack()
        surroundings.restore()
        assert _get_current_function_mode_stack() == [function]
        assert _get_current_dispatch_mode_stack() == [dispatch]


def test_hooks_that_were_added_are_gone_and_others_are_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.uses_hooks = True  # an attribute of its own, with a name like those of PyTorch
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("before"))
    surroundings = Surroundings(model)
    model[0].register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True, always_call=True)
    model.register_forward_pre_hook(lambda *_, **__: calls.append("after"), with_kwargs=True)
    surroundings.restore()
    model(torch.ones(1, 2))
    assert calls == ["before"]
    assert not any(vars(m)[name] for m in model.modules() for name in vars(m) if "_with_kwargs" in name)


def test_the_compiler_does_what_it_did() -> None:
    import torch._dynamo

    surroundings = Surroundings(nn.Linear(2, 2))
    before = torch._dynamo.eval_frame._stance
    torch.compiler.set_stance("force_eager")  # takes effect at once, and would be left by its __exit__
    assert torch._dynamo.eval_frame._stance is not before
    surroundings.restore()
    assert torch._dynamo.eval_frame._stance is before


def test_undoing_twice_survives_an_interrupt_in_the_first() -> None:
    calls: list[type[BaseException]] = []

    def undo(error: BaseException) -> None:
        calls.append(type(error))
        if len(calls) == 1:
            raise KeyboardInterrupt

    undone = UndoneOnError(undo)
    with pytest.raises(KeyboardInterrupt), undone, undone:
        raise ZeroDivisionError
    assert calls == [ZeroDivisionError, KeyboardInterrupt]
    with undone, undone:
        pass
    assert len(calls) == 2


def test_an_interrupt_stays_one_if_what_it_left_fails() -> None:
    def leave_badly() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    undone = UndoneOnError(lambda _: None)
    with pytest.raises(KeyboardInterrupt), undone, undone:
        leave_badly()


def test_an_interrupt_that_was_dealt_with_stays_so() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        undone = UndoneOnError(lambda _: None)
        with contextlib.suppress(RuntimeError), undone:
            raise RuntimeError from None


def test_what_an_interrupt_left_suspended_ends_at_once() -> None:
    """An interrupt inside ``contextlib`` itself: the traceback alone keeps the generator, which would go on later."""
    ended: list[str] = []

    @contextmanager
    def manager() -> Iterator[None]:
        try:
            yield
        finally:
            ended.append("end")

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        if "contextlib" in frame.f_code.co_filename and frame.f_code.co_name == "__exit__":
            raise KeyboardInterrupt
        return None

    before = sys.gettrace()
    try:
        with manager():
            sys.settrace(interrupt)
    except KeyboardInterrupt as error:
        assert not ended
        finish_suspended(error)
        assert ended == ["end"]
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_frames_of_an_ordinary_error_are_kept(error: type[BaseException]) -> None:
    try:
        torch.nn.functional.cross_entropy(Failing(error), torch.ones(1))  # type: ignore[arg-type]
    except (ZeroDivisionError, KeyboardInterrupt) as raised:
        finish_suspended(raised)
        frame = raised.__traceback__.tb_next.tb_frame  # type: ignore[union-attr]
        assert bool(frame.f_locals) == (error is ZeroDivisionError)


class Failing:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    @property
    def __torch_function__(self) -> Any:
        return self._raise

    def _raise(self, *_: Any, **__: Any) -> Tensor:
        raise self.error


def test_moved_weights_are_back_before_anything_else_is_undone() -> None:
    weight, store = nn.Parameter(torch.randn(3)), WeightStore()
    before = weight.detach().clone()
    with pytest.raises(ZeroDivisionError), moved([weight], [torch.ones(3)], 0.1, store):
        raise ZeroDivisionError
    assert torch.equal(weight, before)
    weight.data = torch.zeros(3)
    store.bring_back(copy_one_by_one)  # and not once more
    assert torch.equal(weight, torch.zeros(3))


def test_moved_weights_are_back_when_the_copy_has_failed(monkeypatch: Any) -> None:
    weight, store = nn.Parameter(torch.randn(3)), WeightStore()
    before, data = weight.detach().clone(), weight.data_ptr()
    copy = foreach.copy_

    def failing(to: Any, values: Any) -> Any:
        if to[0].data_ptr() == data:
            raise torch.OutOfMemoryError
        return copy(to, values)

    monkeypatch.setattr(foreach, "copy_", failing)
    with pytest.raises(torch.OutOfMemoryError), moved([weight], [torch.ones(3)], 0.1, store):
        pass
    assert not torch.equal(weight, before)
    store.bring_back(copy_one_by_one)
    assert torch.equal(weight, before)
