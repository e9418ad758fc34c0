"""One small file per diagnostic; they run in this order."""

# isort: off
from deltasam.diagnosis.entries.sharpness import SharpnessDiagnostic
from deltasam.diagnosis.entries.examples import ExamplesDiagnostic
from deltasam.diagnosis.entries.hessian import HessianDiagnostic
from deltasam.diagnosis.entries.calibration import CalibrationDiagnostic
from deltasam.diagnosis.entries.after import AfterDiagnostic
from deltasam.diagnosis.entries.slice import SliceDiagnostic
from deltasam.diagnosis.entries.plane import PlaneDiagnostic
from deltasam.diagnosis.entries.path import PathDiagnostic
from deltasam.diagnosis.entries.fidelity import FidelityDiagnostic
from deltasam.diagnosis.entries.cost import CostDiagnostic
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
]
