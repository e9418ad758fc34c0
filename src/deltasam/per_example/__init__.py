"""Per-example gradients from ordinary batched passes, without ever forming one.

A layer's share of example i's gradient is a product of what went into the layer and the gradient of what came
out. Both are there after one forward and a backward to the layer outputs only. ``rules`` has the mathematics of
each kind of layer, ``record`` gathers inputs and output gradients, ``shift`` runs a pass in which every example
has weights of its own.
"""
