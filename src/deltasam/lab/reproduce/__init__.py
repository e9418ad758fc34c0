"""A whole table of experiments from one readable file: choose hyper-parameters, run, keep, show."""
