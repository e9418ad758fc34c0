"""Questions to ask of a method on one's own model and data. Plain PyTorch; imported only when asked for."""

from deltasam.diagnostics.after import after_training
from deltasam.diagnostics.after.change import AfterChange, ChangedWeights, plot_after
from deltasam.diagnostics.after.forgetting import Forgetting, ForgettingPoint, forgetting, plot_forgetting
from deltasam.diagnostics.after.noise import after_noise
from deltasam.diagnostics.after.pruning import after_pruning
from deltasam.diagnostics.after.rounding import after_rounding
from deltasam.diagnostics.calibration import Calibration, ReliabilityBin, calibration, plot_reliability
from deltasam.diagnostics.closeness import Closeness, Fidelity
from deltasam.diagnostics.cost import Cost, MethodCost, cost, plot_cost
from deltasam.diagnostics.example_geometry import ExampleGeometry, example_geometry, plot_examples, plot_norms
from deltasam.diagnostics.fidelity import at_radius, default_methods, fidelity, plot_fidelity
from deltasam.diagnostics.flatness.average import AverageSharpness, average_sharpness
from deltasam.diagnostics.flatness.plots import plot_m_sharpness, plot_sharpness
from deltasam.diagnostics.flatness.sharpness import Sharpness, sharpness
from deltasam.diagnostics.hessian import HessianSpectrum, hessian_spectrum, plot_spectrum
from deltasam.diagnostics.interpolation import LossPath, loss_path, plot_path
from deltasam.diagnostics.landscape import LossPlane, LossSlice, loss_plane, loss_slice, plot_plane, plot_slice

__all__ = [
    "AfterChange",
    "AverageSharpness",
    "Calibration",
    "ChangedWeights",
    "Closeness",
    "Cost",
    "ExampleGeometry",
    "Fidelity",
    "Forgetting",
    "ForgettingPoint",
    "HessianSpectrum",
    "LossPath",
    "LossPlane",
    "LossSlice",
    "MethodCost",
    "ReliabilityBin",
    "Sharpness",
    "after_noise",
    "after_pruning",
    "after_rounding",
    "after_training",
    "at_radius",
    "average_sharpness",
    "calibration",
    "cost",
    "default_methods",
    "example_geometry",
    "fidelity",
    "forgetting",
    "hessian_spectrum",
    "loss_path",
    "loss_plane",
    "loss_slice",
    "plot_after",
    "plot_cost",
    "plot_examples",
    "plot_fidelity",
    "plot_forgetting",
    "plot_m_sharpness",
    "plot_norms",
    "plot_path",
    "plot_plane",
    "plot_reliability",
    "plot_sharpness",
    "plot_slice",
    "plot_spectrum",
    "sharpness",
]
