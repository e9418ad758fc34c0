"""Train one run, compare many, and say what the comparison shows."""
