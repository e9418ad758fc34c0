"""Modules, parameters and buffers of a model, collected in one traversal: a step needs them a dozen times."""

from __future__ import annotations

from torch import Tensor, nn

from deltasam.core.sharding import sharded_modules
from deltasam.core.torch_internals.modules import own_buffers, own_modules, own_parameters


class Structure:
    """Snapshot of the modules and parameters of a model, each once, in PyTorch's order.

    Attributes:
        model: The model.
        modules: Modules by name; the model itself is "".
        parameters: Parameters by name.
        trained: Parameters that require a gradient, by name.
        buffers: Buffers of all modules.
        sharded: The modules that FSDP2 shards across processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.buffers: list[Tensor] = []
        seen: set[int] = set()
        waiting: list[tuple[str, nn.Module]] = [("", model)]
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            self.modules[name] = module
            prefix = f"{name}." if name else ""
            if own := own_parameters(module):
                for key, p in own.items():
                    if p is not None and id(p) not in seen:
                        seen.add(id(p))
                        self.parameters[prefix + key] = p
            if buffers := own_buffers(module):
                self.buffers += [b for b in buffers.values() if b is not None]
            if inner := own_modules(module):
                children = [(prefix + key, child) for key, child in inner.items() if child is not None]
                children.reverse()
                waiting += children
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.sharded = sharded_modules(self.modules.values())
