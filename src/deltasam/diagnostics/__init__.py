"""Questions to ask of a method on one's own model and data. Plain PyTorch; imported only when asked for."""

from deltasam.diagnostics.average_sharpness import AverageSharpness, average_sharpness
from deltasam.diagnostics.closeness import Closeness, Fidelity
from deltasam.diagnostics.example_geometry import ExampleGeometry, example_geometry
from deltasam.diagnostics.example_plots import plot_examples, plot_norms
from deltasam.diagnostics.fidelity import at_radius, default_methods, fidelity
from deltasam.diagnostics.hessian import HessianSpectrum, hessian_spectrum
from deltasam.diagnostics.sharpness import Sharpness, sharpness
from deltasam.diagnostics.sharpness_plots import plot_m_sharpness, plot_sharpness
from deltasam.diagnostics.spectrum_plot import plot_spectrum

__all__ = [
    "AverageSharpness",
    "Closeness",
    "ExampleGeometry",
    "Fidelity",
    "HessianSpectrum",
    "Sharpness",
    "at_radius",
    "average_sharpness",
    "default_methods",
    "example_geometry",
    "fidelity",
    "hessian_spectrum",
    "plot_examples",
    "plot_m_sharpness",
    "plot_norms",
    "plot_sharpness",
    "plot_spectrum",
    "sharpness",
]
