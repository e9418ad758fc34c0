"""Random programs, models and methods against an oracle that shares nothing with the library."""
