"""One small file per diagnostic; they run in this order."""

from deltasam.lab.diagnose.diagnostic import Diagnostic

# isort: off
from deltasam.lab.diagnose.entries.sharpness import SharpnessDiagnostic
from deltasam.lab.diagnose.entries.examples import ExamplesDiagnostic
from deltasam.lab.diagnose.entries.hessian import HessianDiagnostic
from deltasam.lab.diagnose.entries.calibration import CalibrationDiagnostic
from deltasam.lab.diagnose.entries.after import AfterDiagnostic
from deltasam.lab.diagnose.entries.slice import SliceDiagnostic
from deltasam.lab.diagnose.entries.plane import PlaneDiagnostic
from deltasam.lab.diagnose.entries.path import PathDiagnostic
from deltasam.lab.diagnose.entries.fidelity import FidelityDiagnostic
from deltasam.lab.diagnose.entries.cost import CostDiagnostic
# isort: on

__all__ = [
    "AfterDiagnostic",
    "CalibrationDiagnostic",
    "CostDiagnostic",
    "ExamplesDiagnostic",
    "FidelityDiagnostic",
    "HessianDiagnostic",
    "PathDiagnostic",
    "PlaneDiagnostic",
    "SharpnessDiagnostic",
    "SliceDiagnostic",
    "diagnostic_names",
]


def diagnostic_names() -> list[str]:
    """Every diagnostic, in the order in which they run."""
    return list(Diagnostic.registry)
