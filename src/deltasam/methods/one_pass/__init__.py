"""Methods whose perturbation needs no gradient of the batch: one pass, at the price of plain training."""
