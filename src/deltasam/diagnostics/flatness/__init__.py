"""How much the loss rises around the weights: the worst case, the average, and in groups of examples."""
