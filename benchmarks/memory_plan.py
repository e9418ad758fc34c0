"""What a step of each method needs in memory beside plain training, found without the memory.

The step itself is run, on tensors without numbers (``FakeTensorMode``), and the bytes of all tensors that are alive
are counted as they come and go. So the plan follows the code: what a layer keeps, in which form, and until when. Where
the code asks for a number, it is told what an ordinary step would find: gradients that are finite, rows that are not
mostly 0. A step that is checked needs more than that, and is not what is counted here.

What kernels take for themselves while they run is not seen, nor are the gaps between blocks of an allocator.
"""

from __future__ import annotations

import copy
import json
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import GradientEdge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import deltasam
from deltasam import weight_space
from deltasam.core.closure import losses_of
from deltasam.core.passes import Passes
from deltasam.core.restore import WeightStore
from deltasam.core.runtime import Runtime
from deltasam.per_example.engine import Engine
from place import Place, Task

GIB = 2**30
METHODS = ("erm", "sam", "delta_sam:weights=norms", "per_instance_sam")
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131072}
_BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-0.5b": {
        **_LLAMA, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 20, "num_attention_heads": 20,
        "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True,
    },
    "llama-1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "llama-7b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "bert-base": _BERT,
    "bert-large": {
        **_BERT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is to be trained.

    Attributes:
        config: Of a model of transformers.
        examples: In a batch.
        tokens: Of each example.
        lora: The rank of adapters on every linear layer; 0: all weights are trained.
        weights: The type of the weights.
        precision: ``bf16``: the losses are computed under autocast.
        checkpointing: Whether layers are run again in the backward.
    """

    config: Any
    examples: int
    tokens: int
    lora: int = 0
    weights: torch.dtype = torch.float32
    precision: str = "fp32"
    checkpointing: bool = False

    def task(self) -> Task:
        """The model with random weights and without dropout, and one loss per example."""
        return partial(_made, self)


@dataclass
class Needs:
    """Of one method.

    Attributes:
        peak: The most bytes that are alive in a later step: weights, gradients and activations.
        phases: The most in each phase of it.
        state: Bytes of what AdamW keeps beside: two numbers for each weight that is trained.
    """

    peak: int
    phases: dict[str, int]
    state: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.peak + self.state


@dataclass
class Kept:
    """What the engine keeps of layers that are alike.

    Attributes:
        count: How many there are.
        inputs: Bytes of what went in; of what several layers share, the first has it.
        gradients: Bytes of the gradients with respect to what came out.
        forms: In which gradients of single examples are held, and how often.
        held: Bytes of these, from the norms until the second pass.
    """

    count: int = 0
    inputs: int = 0
    gradients: int = 0
    forms: dict[str, int] = field(default_factory=dict)
    held: int = 0


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, from what operations give out.

    Args:
        known: Tensors that are there from the beginning.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self.phases: dict[str, int] = {}
        self._phase = "between"
        self._seen: Any = WeakIdKeyDictionary()
        self._whether_any: Any = WeakIdKeyDictionary()
        for tensor in known:
            self._see(tensor)

    @property
    def peak(self) -> int:
        """The most since ``start``."""
        return max(self.phases.values())

    def start(self) -> None:
        """Forget the peaks so far."""
        self.phases = {self._phase: self.bytes}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is run inside has a peak of its own."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return self._number(args[0])
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        if name == "any":
            self._whether_any[result.untyped_storage()] = True
        return result

    def _number(self, of: Tensor) -> bool | float | int:
        """What an ordinary step finds: all are finite, none is to be dropped, norms and sums are 1."""
        if of.dtype == torch.bool:
            return of.untyped_storage() not in self._whether_any
        return 1.0 if of.is_floating_point() else 1

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = True
            self.bytes += size
            weakref.finalize(storage, self._gone, size)
        self.phases[self._phase] = max(self.phases.get(self._phase, 0), self.bytes)

    def _gone(self, size: int) -> None:
        self.bytes -= size


class _Watched(Runtime):
    """Plain PyTorch, whose backwards are phases."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    def backward(self, loss: Tensor) -> None:
        with self._live.phase("backward"):
            super().backward(loss)

    def grad(
        self, loss: Tensor, wrt: Sequence[Tensor] | Sequence[GradientEdge], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        with self._live.phase("first backward"):
            return super().grad(loss, wrt, retain_graph=retain_graph)


def needs(spec: str, model: nn.Module, losses: Callable[[], Tensor]) -> Needs:
    """What a method needs on a model and its losses, real or pretended.

    Args:
        spec: Of the method.
        model: Its gradients are gone afterwards.
        losses: One forward.
    """
    model.zero_grad()
    method = deltasam.make_method(spec, model)
    method.follow(torch.optim.SGD([p for p in model.parameters() if p.requires_grad]))
    _without_checks(method)
    live = Live([*model.parameters(), *model.buffers()])

    def forward() -> Any:
        with live.phase("second forward" if deltasam.in_later_pass() else "first forward"):
            return losses()

    with live:
        for _ in range(2):  # in the first step stores are made that the second finds
            model.zero_grad()
            live.start()
            method.backward(forward, runtime=_Watched(live))
    model.zero_grad()
    state = sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Needs(live.peak, live.phases, state)


def planned(setting: Setting, methods: Sequence[str] = METHODS) -> dict[str, Needs]:
    """What methods need, without taking it."""
    with pretending():
        model, losses = pretended(setting)
        return {spec: needs(spec, model, losses) for spec in methods}


def kept(setting: Setting) -> dict[str, Kept]:
    """What the engine keeps of each kind of layer, by the names of their parameters; without taking it."""
    with pretending():
        model, losses = pretended(setting)
        engine = Engine(model, check=False)
        rows: dict[str, Kept] = {}
        with Live():
            passes = Passes(model, losses, Runtime(), WeightStore())
            output, record = engine.first(passes)
            uses, names = record.uses, record.names
            seen: Any = WeakIdKeyDictionary()
            for use in uses:
                row = rows.setdefault(_kind(names[id(use.parameters[0])]), Kept())
                row.count += 1
                row.gradients += use.shape.numel() * use.dtype.itemsize
                if use.product is not None and (storage := use.product.x.untyped_storage()) not in seen:
                    seen[storage] = True
                    row.inputs += storage.nbytes()
            gradients = engine.gradients(passes, record, losses_of(output), 1)
            for key, gradient in gradients.of.items():
                row = rows.setdefault(_kind(names[key]), Kept())
                form = "Gram" if gradient.dense is None else "dense"
                row.forms[form] = row.forms.get(form, 0) + 1
                row.held += sum(t.b.untyped_storage().nbytes() for t in gradient.outers)
                row.held += 0 if gradient.dense is None else gradient.dense.untyped_storage().nbytes()
    return rows


@contextmanager
def pretending() -> Iterator[None]:
    """Tensors have no numbers in here, and take no memory."""

    def place(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()

    from transformers.utils import import_utils

    # Products of rows are kept by where the rows are; distances are taken in few launches, as on an accelerator; and
    # transformers makes masks of its own for tensors without numbers.
    patches = (
        mock.patch.object(Tensor, "data_ptr", place),
        mock.patch.object(weight_space, "_CHUNK_ON_CPU", weight_space._CHUNK),
        mock.patch.object(import_utils, "is_fake_tensor", return_value=False, create=True),
    )
    with ExitStack() as stack:
        for context in (FakeTensorMode(), *patches):
            stack.enter_context(context)
        yield


def pretended(setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model without numbers, and its losses."""
    with torch.device("meta"):
        model, _ = setting.task()()
    made: dict[int, tuple[Tensor, Tensor]] = {}  # both, so that no other takes its id
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = (_without_numbers(tensor), tensor)
                    tensors[name] = made[id(tensor)][0]
    return model, _losses(setting, model)


def largest_batch(setting: Setting, spec: str, room: float, known: Needs | None = None) -> int:
    """How many examples of so many tokens fit; 0 where not one does.

    Args:
        setting: With any number of them.
        spec: Of the method.
        room: Bytes, for everything: the optimizer's state too.
        known: What is needed with that number.
    """
    totals = {} if known is None else {setting.examples: known.total}

    def over(examples: int) -> float:
        if examples not in totals:
            totals[examples] = planned(replace(setting, examples=examples), [spec])[spec].total
        return totals[examples] - room

    if over(1) > 0:
        return 0
    low, high = 1, max(setting.examples, 2)
    while over(high) <= 0:  # what is needed grows nearly linearly: look where the line says
        slope = (over(high) - over(low)) / (high - low)
        low, high = high, max(high + 1, math.ceil(high - over(high) / slope + 0.01))
    while high - low > 1:
        crossing = low + math.floor((high - low) * over(low) / (over(low) - over(high)))
        middle = min(max(crossing, low + 1), high - 1)
        low, high = (low, middle) if over(middle) > 0 else (middle, high)
    return low


def config_of(name: str) -> Any:
    """The configuration of a model of transformers.

    Args:
        name: One of ``CONFIGS``, a folder with a ``config.json``, or such a file.
    """
    from transformers import AutoConfig

    if name in CONFIGS:
        return AutoConfig.for_model(**CONFIGS[name])
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise SystemExit(f"--plan {name}: neither a file nor a folder with a config.json, nor {', '.join(CONFIGS)}")
    return AutoConfig.for_model(**json.loads(path.read_text(encoding="utf-8")))


def report(console: Console, title: str, setting: Setting, room: float) -> None:
    """Print everything.

    Args:
        console: Where.
        title: What the model is called.
        setting: What is trained.
        room: GiB of memory for which the largest batch is sought.
    """
    batch = f"{setting.examples} examples x {setting.tokens} tokens"
    layers = Table(title=f"{title}, {batch}: what per_instance_sam keeps, GiB", title_justify="left")
    for column in ("layers", "number", "inputs", "output gradients", "form", "held to the second pass"):
        layers.add_column(column, justify="left" if column in ("layers", "form") else "right")
    for name, row in sorted(kept(setting).items(), key=lambda item: -item[1].inputs - item[1].held):
        form = ", ".join(row.forms) or "with its weight"
        sizes = [_gib(size) for size in (row.inputs, row.gradients)]
        layers.add_row(name, str(row.count), *sizes, form, _gib(row.held))
    console.print(layers)
    table = Table(title="a later step, GiB", title_justify="left")
    phases = ("first forward", "first backward", "between", "second forward", "backward")
    for column in ("method", "peak", "beyond erm", *phases, "with AdamW", f"examples in {room:g} GiB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    found = planned(setting)
    for spec, need in found.items():
        beyond = _gib(need.peak - found["erm"].peak)
        in_phases = (_gib(need.phases[p]) if p in need.phases else "" for p in phases)
        fitting = str(largest_batch(setting, spec, room * GIB, need))
        table.add_row(spec, _gib(need.peak), beyond, *in_phases, _gib(need.total), fitting)
    console.print(table)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _made(setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classes = AutoModelForCausalLM if _writes(setting.config) else AutoModelForSequenceClassification
    config = copy.deepcopy(setting.config)
    for name in [name for name in vars(config) if "drop" in name]:
        if isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.weights)  # adapters have the type of the weights too
    try:
        model: nn.Module = classes.from_config(config, dtype=setting.weights).train()
        if setting.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if setting.lora:
            from peft import LoraConfig, get_peft_model

            adapters = LoraConfig(r=setting.lora, target_modules="all-linear")
            model = get_peft_model(model, adapters, autocast_adapter_dtype=False).train()
    finally:
        torch.set_default_dtype(before)
    return model, _losses(setting, model)


def _losses(setting: Setting, model: nn.Module) -> Callable[[], Tensor]:
    ids = torch.randint(1, setting.config.vocab_size, (setting.examples, setting.tokens), device="cpu")
    autocast = Place("cpu", setting.precision).autocast

    def of_tokens() -> Tensor:
        with autocast():
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    def of_classes() -> Tensor:
        with autocast():
            return F.cross_entropy(model(ids).logits.float(), ids[:, 0] % 2, reduction="none")

    return of_tokens if _writes(setting.config) else of_classes


def _writes(config: Any) -> bool:
    return any(re.search("CausalLM|LMHeadModel", name) for name in config.architectures or ())


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _without_checks(method: deltasam.Method) -> None:
    for engine in vars(method).values():
        if isinstance(engine, Engine):
            engine._check = False
