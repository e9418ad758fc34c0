"""What a model consists of, from one walk through it: a step asks for it a dozen times."""

from __future__ import annotations

from torch import nn

from deltasam.sharded import sharded_modules


class Structure:
    """The modules and parameters of a model as they are when this is made, each once, in the order of PyTorch.

    Attributes:
        model: The model.
        modules: By name; the model itself is "".
        parameters: By name.
        sharded: The modules that FSDP2 has cut up between processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        waiting: list[tuple[str, nn.Module]] = [("", model)]
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            self.modules[name] = module
            prefix = f"{name}." if name else ""
            for key, p in module._parameters.items():
                if p is not None and id(p) not in seen:
                    seen.add(id(p))
                    self.parameters[prefix + key] = p
            children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
            waiting.extend(reversed(children))
        self.sharded = sharded_modules(self.modules.values())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained now, by name."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}
