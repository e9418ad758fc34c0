"""Which parameters the per-example engine handles, by which rule, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from deltasam.per_example.recorder import Use


@dataclass(frozen=True)
class Covered:
    """One trainable parameter.

    Attributes:
        parameter: Its name.
        rule: ``product``, ``lookup`` or ``copies``, joined by ``+`` where it is used in several ways; ``unused``.
        exact: Whether its per-example gradient is exact.
        why: What stands against it; empty where it is exact.
    """

    parameter: str
    rule: str
    exact: bool
    why: str = ""


class Coverage(tuple[Covered, ...]):
    """One row per trainable parameter; prints as a table."""

    __slots__ = ()

    @property
    def exact(self) -> bool:
        """Whether every parameter is covered exactly."""
        return all(row.exact for row in self)

    def __str__(self) -> str:
        rows = [(r.parameter, r.rule, "yes" if r.exact else "no", r.why) for r in self]
        table = [("parameter", "rule", "exact", "why not"), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        lines = ["  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3])) for row in table]
        return "\n".join(line.rstrip() for line in lines)


def coverage_of(model: nn.Module, uses: Sequence[Use], used: Mapping[int, str], reasons: Mapping[str, str]) -> Coverage:
    """The coverage that a record shows.

    Args:
        model: Whose trainable parameters are listed.
        uses: Those that were recorded.
        used: The names of the parameters in them, by id.
        reasons: Why parameters are not covered, by name; the name of a module that holds none stands for all.
    """
    kinds: dict[str, set[str]] = {name: set() for name, p in model.named_parameters() if p.requires_grad}
    for use in uses:
        for p in use.parameters:
            if used[id(p)] in kinds:
                kinds[used[id(p)]].add(use.kind)
    of_all = "; ".join(f"{name}: {why}" for name, why in reasons.items() if name not in kinds)
    why = {name: reasons.get(name, of_all) for name in kinds}
    return Coverage(
        Covered(name, " + ".join(sorted(kinds[name])) or "unused", not why[name], why[name]) for name in kinds
    )
