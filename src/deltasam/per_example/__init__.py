"""Exact per-example gradients from ordinary batched passes, without ever forming one.

A layer's share of example i's gradient is a product of what went into the layer and the gradient of what came out.
Both are there after one forward and a backward to the layers' outputs only. In a second forward every example then has
weights of its own: the outputs are moved, not the weights.

From the bottom up: ``rules`` says which functions are products of the examples with parameters; ``tracing`` sees how a
model uses its parameters as it runs, and ``handlers`` what is done with each function; ``recorder`` notes the first
forward; ``example_gradients`` is what that tells, made of ``outer_products`` and ``parameter_gradient``, with ``small``
for narrow layers; ``perturbed_forward`` is the second forward; ``engine`` puts them together, and ``checks`` does not
believe them.
"""
