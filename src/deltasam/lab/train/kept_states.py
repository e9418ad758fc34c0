"""Train the last layers of a model on cached hidden states of the layers below."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deltasam.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATES = "hidden states of the lower layers"
"""Their name among the tensors of a batch; no model has an input of that name."""

SPLITS = 4
"""Number of splits whose states are cached for other runs of this process: training and evaluation rows of a seed."""

BYTES = 2**28
"""States of more splits are cached, of other seeds, while all together take no more than that."""

ROWS = 32
"""Rows per forward; fixed, so that a split's hidden states do not depend on the batch size of a run."""

Inputs = dict[str, Tensor]


class LowerLayers:
    """The layers of a model below the last few, and everything before them: frozen, and in evaluation mode.

    In a forward pass they return given hidden states instead of computing. The model stays complete for ``state_dict``
    and ``save_pretrained``.

    Args:
        model: The model; its last layers, and everything after them, stay trainable.
        trained: Number of trained layers.
        forward: Calls the model with some inputs.
        example: Inputs for a trial run.

    Attributes:
        digest: Of the frozen weights, on which the states depend.

    Raises:
        UserError: There are fewer layers, or the model is not a sequence of layers that pass on one tensor.
    """

    def __init__(
        self, model: PreTrainedModel, trained: int, forward: Callable[[Inputs], Tensor], example: Inputs
    ) -> None:
        layers = _layers_of(model, trained)
        self._forward, self._last = forward, layers[-trained - 1]
        self._given: Tensor | None = None
        training = model.training
        model.eval()
        frozen, below, as_tuple = self._look(model, example)
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.digest = digest(frozen)

        def keep_in_evaluation_mode(*_: object) -> None:  # model.train() must not affect these
            for module in below:
                module.training = False

        model.register_forward_pre_hook(keep_in_evaluation_mode)
        for layer in layers[: -trained - 1]:
            layer.forward = self._unless_given(layer.forward, lambda hidden: hidden, as_tuple)
        self._last.forward = self._unless_given(self._last.forward, lambda _: self._given, as_tuple)
        self._check(example)
        model.train(training)

    @contextmanager
    def giving(self, states: Tensor) -> Iterator[None]:
        """Context in which the lower layers return these hidden states [rows, tokens, width]."""
        self._given = states
        try:
            yield
        finally:
            self._given = None

    def states_of(self, batches: Sequence[Inputs], key: str) -> list[Tensor]:
        """The hidden states of every row [its tokens, width], on the CPU; on disk if memory is too small.

        Args:
            batches: The inputs of all rows, in order.
            key: Identifies the rows; states of an equal key and equal weights are computed once.
        """
        key = f"{self.digest} {key}"
        if key not in _KEPT:
            _KEPT[key] = _shared(key, lambda: self._computed(batches))
            while len(_KEPT) > SPLITS and sum(block.nbytes for block in _KEPT.values()) > BYTES:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        return list(_KEPT[key].split(_lengths(batches)))

    def _computed(self, batches: Sequence[Inputs]) -> Tensor:
        """The hidden states [tokens of all rows, width]."""
        block, done = torch.empty(0), 0
        for inputs in batches:
            states = self._run(inputs)[inputs["attention_mask"].bool()].cpu()
            if not done:
                block = _room(sum(_lengths(batches)), states)
            block[done : done + len(states)] = states
            done += len(states)
        return block

    def _run(self, inputs: Inputs) -> Tensor:
        """The hidden states [rows, tokens, width] that the lower layers compute."""
        found: list[Tensor] = []
        hook = self._last.register_forward_hook(lambda _m, _i, output: found.append(_tensor(output)))
        try:
            with torch.no_grad():
                self._forward(inputs)
        finally:
            hook.remove()
        return found[0]

    def _look(self, model: nn.Module, example: Inputs) -> tuple[list[nn.Parameter], list[nn.Module], bool]:
        """The parameters the states depend on, the modules called before, and whether layers return tuples."""
        finished: list[nn.Module] = []
        outputs: list[Any] = []

        def note(module: nn.Module, _: object, output: object) -> None:
            if not outputs:
                finished.append(module)
                if module is self._last:
                    outputs.append(output)

        hooks = [module.register_forward_hook(note) for module in model.modules()]
        try:
            self._forward(example)
        finally:
            for hook in hooks:
                hook.remove()
        trained = [p for p in model.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(_tensor(outputs[0]).float().sum(), trained, allow_unused=True)
        frozen = [p for p, slope in zip(trained, slopes, strict=True) if slope is not None]
        return frozen, finished, isinstance(outputs[0], tuple)

    def _unless_given(
        self, forward: Callable[..., Any], instead: Callable[[Any], Any], as_tuple: bool
    ) -> Callable[..., Any]:
        def called(*args: object, **kwargs: object) -> Any:
            if self._given is None:
                return forward(*args, **kwargs)
            output = instead(args[0] if args else kwargs["hidden_states"])
            return (output,) if as_tuple else output

        return called

    def _check(self, example: Inputs) -> None:
        """Check that cached and computed states give the same output: lower states may be used elsewhere too."""
        with torch.no_grad():
            expected, states = self._forward(example), self._run(example)
            with self.giving(states):
                found = self._forward(example)
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            raise UserError(
                "--train-layers: this model uses what its lower layers give elsewhere too, not only in the layer "
                "above; leave the option out"
            )


_KEPT: OrderedDict[str, Tensor] = OrderedDict()
_FOLDERS: list[Path] = []


@contextmanager
def shared_in(folder: Path) -> Iterator[None]:
    """Context in which hidden states are computed once for all processes that name the same folder.

    They must have the same number of threads, on which the last bits may depend. The states are read where they lie,
    from the file: they take memory once, and not once per process.

    Args:
        folder: Gets a file per split; whoever made it removes it.
    """
    _FOLDERS.append(folder)
    try:
        yield
    finally:
        _FOLDERS.pop()


def _shared(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` gives, from the file of a process that was here before, if there is one."""
    if not _FOLDERS:
        return compute()
    path = _FOLDERS[-1] / f"{hashlib.sha256(key.encode()).hexdigest()}.pt"
    with _alone(path.with_suffix(".lock")):
        if (block := _read(path)) is not None:
            return block
        block, partial = compute(), path.with_suffix(f".{os.getpid()}")
        try:
            torch.save(block, partial)
            partial.replace(path)
        except (OSError, RuntimeError):  # such as a full disk, of which PyTorch tells with the latter
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return block
        found = _read(path)
        return block if found is None else found


def _read(path: Path) -> Tensor | None:
    try:
        block: Tensor = torch.load(path, mmap=True, weights_only=True)  # private: nothing written goes to the file
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None
    return block


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Context that one process at a time is in; on systems without such locks several may be, and compute the same."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        file = path.open("w")
    except OSError:  # the folder is gone
        yield
        return
    with file:  # closing it, or the end of the process, opens the lock
        with suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def padded(states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Hidden states of rows [its tokens, width] placed where a mask [rows, tokens] has real tokens, 0 elsewhere."""
    made = states[0].new_zeros(*mask.shape, states[0].shape[-1])
    made[mask.bool()] = torch.cat(list(states))
    return made


def _layers_of(model: PreTrainedModel, trained: int) -> nn.ModuleList:
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise UserError(f"--train-layers {trained}: {type(model).__name__} is no sequence of layers; leave it out")
    if trained >= len(found[0]):
        raise UserError(f"--train-layers {trained}: the model has {len(found[0])}; give fewer, or 0 to train all")
    return found[0]


def _tensor(output: object) -> Tensor:
    output = output[0] if isinstance(output, tuple) and len(output) == 1 else output
    if not isinstance(output, Tensor):
        raise UserError("--train-layers: the layers of this model pass on more than one tensor; leave the option out")
    return output


def _lengths(batches: Sequence[Inputs]) -> list[int]:
    return [n for inputs in batches for n in inputs["attention_mask"].sum(1).tolist()]


def digest(parameters: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of some tensors."""
    found = hashlib.sha256()
    for parameter in parameters:
        found.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _room(tokens: int, like: Tensor) -> Tensor:
    """Storage for that many tokens' states: in memory, or in an unnamed file if that would take over half of it."""
    shape = (tokens, like.shape[-1])
    size = tokens * like.shape[-1] * like.element_size()
    if size < _free_memory() / 2:
        return like.new_empty(shape)
    with tempfile.TemporaryFile() as file:  # the memory mapping keeps it alive
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=size)).view(like.dtype).view(shape)


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")  # unknown on this system
