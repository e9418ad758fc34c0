"""Which parameters a perturbation moves: ``only=norm``."""

from __future__ import annotations

import re

from torch import Tensor, nn

from deltasam.core.passes import Passes
from deltasam.core.structure import Structure
from deltasam.core.vectors import Vector

# By name, but not inside a block (`layers.3.fc.weight`).
_HEAD = re.compile(r"^([^\d.][^.]*\.)*(lm_head|classifier|score|qa_outputs|head|fc)\.")
_ADAPTER = re.compile(r"lora_|adapter|prompt_encoder|ia3_")
_SHOWN = 4


class Only:
    """The trained parameters that a method moves.

    Args:
        owner: Name of the method, for error messages.
        which: ``norm``: those of normalisation layers; ``head``: those of the output layer (the output embeddings, what
            is called a head, or else the last layer); ``adapters``: those of adapters (LoRA and others); a class of
            layers, ``LayerNorm``; or a regular expression, searched in the names of the parameters. None: all.

    Raises:
        ValueError: It is not a regular expression.
    """

    def __init__(self, owner: str, which: str | None) -> None:
        self.which = which
        self._owner = owner
        self._known: tuple[tuple[str, ...], frozenset[str]] | None = None
        try:
            self._pattern = re.compile(which or "")
        except re.error as error:
            raise ValueError(f"{owner}(only={which!r}): not a regular expression: {error}") from None

    def names(self, structure: Structure) -> frozenset[str]:
        """Names of the parameters that move.

        Raises:
            ValueError: There is none.
        """
        trained = tuple(structure.trained)
        if self.which is None:
            return frozenset(trained)
        if self._known is None or self._known[0] != trained:
            self._known = trained, self._search(structure)
        return self._known[1]

    def _search(self, structure: Structure) -> frozenset[str]:
        held: dict[int, list[tuple[str, nn.Module]]] = {}  # a tied parameter is held under several names
        for prefix, module in structure.model.named_modules(remove_duplicate=False):
            for key, p in module.named_parameters(prefix, recurse=False):
                held.setdefault(id(p), []).append((key, module))
        output = getattr(structure.model, "get_output_embeddings", lambda: None)()
        found = frozenset(
            name
            for name, p in structure.trained.items()
            if any(self._matches(key, module, output) for key, module in held.get(id(p), ()))
        )
        if not found and self.which == "head":  # of a model whose layers are numbered: the last of them
            last = [key for key, p in structure.model.named_parameters() if p.requires_grad][-1:]
            prefix = last[0].rpartition(".")[0] if last else ""
            found = frozenset(name for name in structure.trained if name.rpartition(".")[0] == prefix)
        if not found:
            some = ", ".join(list(structure.trained)[:_SHOWN])
            raise ValueError(
                f"{self._owner}(only={self.which!r}) moves no parameter: none that is trained belongs to it, of "
                f"{some} and so on; give norm, head, adapters, a class of layers (Linear), or a regular expression on "
                f"these names"
            )
        return found

    def _matches(self, name: str, module: nn.Module, output: object) -> bool:
        if self.which == "norm":
            return "Norm" in type(module).__name__
        if self.which == "head":
            return module is output or bool(_HEAD.search(name))
        if self.which == "adapters":
            return bool(_ADAPTER.search(name))
        return type(module).__name__ == self.which or bool(self._pattern.search(name))

    def restricted(self, passes: Passes, vector: Vector) -> list[Tensor | None]:
        """A vector, with None for the parameters that do not move."""
        if self.which is None:
            return list(vector)
        names = self.names(passes.structure)
        return [v if name in names else None for name, v in zip(passes.structure.trained, vector, strict=True)]

    def grad(self, passes: Passes, loss: Tensor) -> list[Tensor | None]:
        """The gradient of a loss [] with respect to the parameters that move; the backward ends at the first of them.

        Raises:
            ValueError: The loss depends on none of the parameters.
        """
        if self.which is None or passes.sharded:  # sharded gradients come from a whole backward
            return self.restricted(passes, passes.grad(loss))
        names = self.names(passes.structure)
        found = iter(passes.grad(loss, [p for name, p in passes.structure.trained.items() if name in names]))
        return [next(found) if name in names else None for name in passes.structure.trained]
