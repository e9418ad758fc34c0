"""Pages of the Python interface: what modules export, each name by mkdocstrings."""

from __future__ import annotations

import pkgutil

import deltasam.diagnostics.examples
from deltasam import diagnostics, integrations

OWN_METHODS = [
    "core.passes.Passes",
    "core.closure",
    "core.checks",
    "core.vectors",
    "methods.bases.batch_perturbation",
    "methods.bases.reweighted",
    "methods.bases.regularizer",
    "reference",
    "schedules",
]
"""What methods of one's own are made of; below ``deltasam``."""
_ALL_OF_IT = "    options:\n      show_root_full_path: true\n"


def pages() -> dict[str, str]:
    """One page for each part of the interface."""
    methods = [cls.__name__ for _, cls in sorted(deltasam.Method.registry.items())]
    others = [name for name in deltasam.__all__ if name not in {*methods, "weight_space"}]
    return {
        "reference/deltasam.md": f"# deltasam\n\n{_text(deltasam)}\n\n"
        f"## The interface\n\n{_names('deltasam', others)}\n## The methods\n\n{_names('deltasam', methods)}",
        "reference/diagnostics.md": f"# deltasam.diagnostics\n\n{_text(diagnostics)}\n\n"
        f"{_names('deltasam.diagnostics', diagnostics.__all__)}\n"
        f"## deltasam.diagnostics.examples\n\n{_text(diagnostics.examples)}\n\n"
        f"{_names('deltasam.diagnostics.examples', diagnostics.examples.__all__)}",
        "reference/integrations.md": "# deltasam.integrations\n\nOne module for each stack; import the one you use. "
        "[Trainers](../how-to/trainers.md) shows them at work.\n\n"
        + "\n".join(f"::: deltasam.integrations.{name}\n{_ALL_OF_IT}" for name in _stacks()),
        "reference/own_methods.md": "# For methods of your own\n\nWhat [a method in one file](../extend/method.md) is "
        "made of. `deltasam.weight_space` is `deltasam.core.vectors`.\n\n"
        + "\n".join(f"::: deltasam.{name}\n{_ALL_OF_IT}" for name in OWN_METHODS),
    }


def _stacks() -> list[str]:
    """The modules of the integrations that one imports from."""
    inner = {"halves", "missing", "plain_lm_head", "trained_parameters", "trainer_losses"}
    return sorted(module.name for module in pkgutil.iter_modules(integrations.__path__) if module.name not in inner)


def _names(module: str, names: list[str]) -> str:
    return "\n".join(f"::: {module}.{name}\n    options:\n      heading_level: 3\n" for name in names)


def _text(module: object) -> str:
    return (module.__doc__ or "").strip()
