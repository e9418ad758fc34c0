"""What checks have found of a model so far, and when the next one is due."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltasam.core.closeness import is_looked_at

Fingerprint = tuple[object, ...]
"""Of what a pass did, in words and numbers: equal for passes that a check of one of them holds for."""


@dataclass(frozen=True)
class Behaviour:
    """What a check found of passes that do the same.

    Attributes:
        thin: Which of their uses have mostly rows without a gradient.
        losses_apart: Whether the loss of one example depends on no other.
    """

    thin: frozenset[int]
    losses_apart: bool


@dataclass
class Checked:
    """What is known of a model from the passes that were checked.

    Attributes:
        passes: How many there were, checked or not.
        trained: The names of the parameters that were trained in the last one.
        behaviours: What was found exact.
        losses_apart: Whether the loss of one example depends on no other in the last pass.
    """

    passes: int = 0
    trained: frozenset[str] = frozenset()
    behaviours: dict[tuple[object, ...], Behaviour] = field(default_factory=dict)
    losses_apart: bool = True

    def is_due(self, behaviour: Fingerprint) -> bool:
        """Whether the last pass, which did this, is to be checked."""
        return is_looked_at(self.passes) or behaviour not in self.behaviours
