"""Questions to ask of a method on one's own model and data. Plain PyTorch; imported only when asked for."""

from deltasam.diagnostics.calibration import Calibration, ReliabilityBin, calibration, plot_reliability
from deltasam.diagnostics.closeness import Closeness, Fidelity
from deltasam.diagnostics.cost import Cost, MethodCost, cost, plot_cost
from deltasam.diagnostics.fidelity import at_radius, default_methods, fidelity
from deltasam.diagnostics.fidelity_plot import plot_fidelity
from deltasam.diagnostics.interpolation import LossPath, loss_path, plot_path
from deltasam.diagnostics.landscape import LossPlane, LossSlice, loss_plane, loss_slice, plot_plane, plot_slice

__all__ = [
    "Calibration",
    "Closeness",
    "Cost",
    "Fidelity",
    "LossPath",
    "LossPlane",
    "LossSlice",
    "MethodCost",
    "ReliabilityBin",
    "at_radius",
    "calibration",
    "cost",
    "default_methods",
    "fidelity",
    "loss_path",
    "loss_plane",
    "loss_slice",
    "plot_cost",
    "plot_fidelity",
    "plot_path",
    "plot_plane",
    "plot_reliability",
    "plot_slice",
]
