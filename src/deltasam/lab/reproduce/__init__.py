"""A whole table of experiments from one readable file: choose hyper-parameters, run, keep, show."""

from __future__ import annotations

from deltasam.lab.reproduce.experiment import Experiment
from deltasam.lab.reproduce.preset import Preset, load_preset, preset_text
from deltasam.lab.reproduce.record import Record, read_record, write_record

__all__ = ["Experiment", "Preset", "Record", "load_preset", "preset_text", "read_record", "write_record"]
