"""Exact per-example gradients from ordinary batched passes, without ever forming one.

A layer's share of example i's gradient is a product of what went into the layer and the gradient of what came out.
Both are there after one forward and a backward to the layers' outputs only. In a second forward every example then has
weights of its own: the outputs are moved, not the weights.

``uses`` sees how a model uses its parameters, as it runs; ``rules`` knows the functions worth knowing; ``record``
notes the first forward; ``example_gradients`` is what it tells, ``small`` its part for narrow layers; ``perturbed`` is
the second forward; ``engine`` puts them together and ``check`` does not believe them.
"""
