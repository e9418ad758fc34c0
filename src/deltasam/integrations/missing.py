"""The error for a missing library that an integration needs."""

from __future__ import annotations


def missing(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error to raise instead of ``error``: it names the extra of deltasam that installs the library."""
    return ModuleNotFoundError(
        f"deltasam.integrations.{extra.replace('-', '_')} needs the library {error.name!r}, which is not installed; "
        f"pip install 'deltasam[{extra}]'",
        name=error.name,
    )
