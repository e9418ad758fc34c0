"""Questions to ask of a method on one's own model and data. Plain PyTorch; imported only when asked for."""

from deltasam.diagnostics.closeness import Closeness, Fidelity
from deltasam.diagnostics.fidelity import at_radius, default_methods, fidelity

__all__ = ["Closeness", "Fidelity", "at_radius", "default_methods", "fidelity"]
