"""Every diagnostic on trained checkpoints and one's own data: measured, kept, drawn, and put into words.

``subject`` is a checkpoint on some rows of data, ``entries`` has one small class per diagnostic, ``diagnosis`` runs
them and keeps what they find, and ``page`` shows it.
"""

from deltasam.lab.diagnose.diagnosis import Diagnosis, count, diagnose
from deltasam.lab.diagnose.diagnostic import Diagnostic, NotMeasuredError, Number, Plot
from deltasam.lab.diagnose.entries import diagnostic_names
from deltasam.lab.diagnose.page import write_diagnosis_page
from deltasam.lab.diagnose.subject import Settings, Subject, load_subjects

__all__ = [
    "Diagnosis",
    "Diagnostic",
    "NotMeasuredError",
    "Number",
    "Plot",
    "Settings",
    "Subject",
    "count",
    "diagnose",
    "diagnostic_names",
    "load_subjects",
    "write_diagnosis_page",
]
