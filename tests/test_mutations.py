"""Proof that the contracts bite: the code is broken on purpose, and the contract tests must turn red.

Each mutation is a copy of the package with one line changed. Those of a share run in one other process, which imports
the heavy libraries once and the broken package anew each time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

PACKAGE = Path(__file__).parents[1] / "src" / "deltasam"

# What is broken: the file, the line, what it becomes, and the contract that must turn red.
MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    "weights are not restored": (
        "core/restore.py",
        "        store.bring_back(foreach.copy_)\n",
        "        pass\n",
        "leaves_the_model",
    ),
    "weights are restored by subtraction": (
        "core/restore.py",
        "        copy(weights, saved)\n",
        "        vectors.add(weights, [s - w for w, s in zip(weights, saved)], 1.0)\n",
        "leaves_the_model",
    ),
    "later passes draw new dropout masks": (
        "core/passes.py",
        "                self._start.restore()\n",
        "                pass\n",
        "replay_the_masks",
    ),
    "kept masks leave the random state behind": (
        "core/dropout_masks.py",
        "                torch.set_rng_state(mask.random_state)\n",
        "",
        "replay_the_masks",
    ),
    "kept masks are in the wrong order": (
        "core/dropout_masks.py",
        "self._rest = iter(masks)",
        "self._rest = iter(masks[::-1])",
        "equals_the_reference",
    ),
    "the random state is left at the start": (
        "core/passes.py",
        "                self._end.restore()\n",
        "                self._start.restore()\n",
        "advances_by_one_pass",
    ),
    "later passes advance BatchNorm": (
        "core/passes.py",
        "                self._buffers.restore()\n",
        "                pass\n",
        "leaves_the_model",
    ),
    "an error leaves BatchNorm advanced": (
        "core/passes.py",
        "        self._buffers_before.restore()\n",
        "",
        "after_an_exception",
    ),
    "an error leaves the random state advanced": (
        "core/passes.py",
        "        self._start.restore()\n        self._buffers_before",
        "        self._buffers_before",
        "after_an_exception",
    ),
    "python's random state is forgotten": (
        "core/restore.py",
        "            (random.setstate, (random.getstate(),)),\n",
        "",
        "replay_the_masks",
    ),
    "numpy's random state is forgotten": (
        "core/restore.py",
        'if "numpy" in sys.modules:\n            numpy_random',
        'if "no such module" in sys.modules:\n            numpy_random',
        "replay_the_masks",
    ),
    "a constant is added to the norm": (
        "core/vectors.py",
        "radius / value if",
        "radius / (value + 1e-3) if",
        "scales_with_the_loss",
    ),
    "an infinite gradient moves the weights": (
        "core/vectors.py",
        "if value > 0 else",
        "if value != 0 else",
        "infinite",
    ),
    "a zero gradient divides by zero": (
        "core/vectors.py",
        "if value > 0 else 0.0",
        "if value >= 0 else 0.0",
        "zero_gradient",
    ),
    "the perturbation points downhill": (
        "core/passes.py",
        "vectors.length_to(rho, length)",
        "-vectors.length_to(rho, length)",
        "equals_the_reference",
    ),
    "the norm is of one layer only": (
        "core/vectors.py",
        "for t in vector if t is not None and t.numel()]",
        "for t in vector if t is not None and t.numel()][:1]",
        "equals_the_reference",
    ),
    "ASAM scales by T once": (
        "methods/asam.py",
        "        foreach.mul_(scaled, its)\n",
        "",
        "equals_the_reference",
    ),
    "ASAM scales biases": ("methods/asam.py", 'if "weight" in name}', "}", "equals_the_reference"),
    "delta-SAM weights are not used": (
        "methods/bases/reweighted.py",
        "(weights * losses).mean()",
        "losses.mean()",
        "equals_the_reference",
    ),
    "delta-SAM's curvature is not over the norm": (
        "methods/delta_sam.py",
        "seconds / norms, 0.0)",
        "seconds, 0.0)",
        "equals_the_reference",
    ),
    "delta-SAM looks along the gradients the wrong way": (
        "methods/delta_sam.py",
        "gradients.scaled(torch.where(norms > 0, self.rho / norms, 0.0))",
        "gradients.scaled(torch.where(norms > 0, -self.rho / norms, 0.0))",
        "equals_the_reference",
    ),
    "delta-SAM's curvature is not divided by the rise": (
        "methods/delta_sam.py",
        "far / expected, 0.0)",
        "far / expected.mean(), 0.0)",
        "equals_the_reference",
    ),
    "delta-SAM forgets how long a gradient is": (
        "methods/delta_sam.py",
        "LINEAR**2 + norms / norms.mean() * excess.square()",
        "LINEAR**2 + excess.square()",
        "equals_the_reference",
    ),
    "delta-SAM's exact weights are not used": (
        "methods/bases/reweighted.py",
        "gradients.scale(weights / len(losses))",
        "gradients.scale(torch.ones_like(weights) / len(losses))",
        "equals_the_reference",
    ),
    "delta-SAM takes slopes without need": (
        "methods/bases/reweighted.py",
        "wanted = self.weights in self.engine_weightings",
        'wanted = self.weights in self.engine_weightings - {"auto"}',
        "auto_takes_own",
    ),
    "delta-SAM is silent about slopes": (
        "methods/bases/reweighted.py",
        '            warn(f"{type(self).__name__} estimates slopes',
        '            lambda: warn(f"{type(self).__name__} estimates slopes',
        "auto_takes_own",
    ),
    "delta-SAM's exact norms give way to slopes": (
        "methods/bases/reweighted.py",
        'if self.weights != "auto" or is_of',
        "if is_of",
        "exact_norms_are_refused",
    ),
    "delta-SAM keeps noise": (
        "methods/delta_sam.py",
        "(1 - noise / variance)",
        "(1 - 0 * noise / variance)",
        "equals_the_reference",
    ),
    "delta-SAM takes slopes as they are": (
        "methods/delta_sam.py",
        "1 + kept_share(NOISE_OF_ONE_SLOPE, weights) * (weights - 1)",
        "weights",
        "equals_the_reference",
    ),
    "delta-SAM looks one way twice": (
        "methods/delta_sam.py",
        "torch.stack([self._second_difference(passes, losses) for _ in range(DRAWS)])",
        "torch.stack([self._second_difference(passes, losses)] * DRAWS)",
        "equals_the_reference",
    ),
    "delta-SAM looks on one side twice": (
        "methods/delta_sam.py",
        "passes.at(noise, -self.sigma)",
        "passes.at(noise, self.sigma)",
        "equals_the_reference",
    ),
    "RW-SAM prefers small gradients": (
        "methods/rw_sam.py",
        "torch.softmax(self.tilt",
        "torch.softmax(-self.tilt",
        "equals_the_reference",
    ),
    "RW-SAM looks along a Gaussian": (
        "methods/rw_sam.py",
        "[z.sign() for z in passes.noise()]",
        "passes.noise()",
        "equals_the_reference",
    ),
    "friendly SAM subtracts nothing": (
        "methods/friendly_sam.py",
        "common = average * (-self.sigma * scale)",
        "common = average * 0",
        "equals_the_reference",
    ),
    "friendly SAM keeps the first gradient": (
        "methods/friendly_sam.py",
        "alpha=(1 - self.momentum) / scale",
        "alpha=0",
        "equals_the_reference",
    ),
    "a method keeps the state of a step that failed": (
        "method.py",
        "                    last_first.callback(vars(method).update, values)\n",
        "                    pass\n",
        "after_an_exception and friendly",
    ),
    "per-instance groups share a perturbation": (
        "methods/per_instance_sam.py",
        "passes.grad(again[group].mean())",
        "passes.grad(again.mean())",
        "equals_the_reference",
    ),
    "per-instance mean is over groups": (
        "methods/per_instance_sam.py",
        "perturbed.sum() / len(losses)",
        "perturbed.mean()",
        "neutral_equals_erm",
    ),
    "a fresh pass has the masks of the first": (
        "core/passes.py",
        "reseed(self.seed())",
        "self._start.restore()",
        "replay_the_masks",
    ),
    "fresh masks advance the random state": (
        "core/passes.py",
        "        torch.set_rng_state(before)\n        return seed",
        "        return seed",
        "advances_by_one_pass",
    ),
    "R-Drop's divergence has no gradient in the first forward": (
        "methods/r_drop.py",
        "divergence = predictions.divergence(",
        "divergence = predictions.detached().divergence(",
        "equals_the_reference",
    ),
    "R-Drop adds the losses": (
        "methods/r_drop.py",
        "(loss + again) / 2 +",
        "loss + again +",
        "equals_the_reference",
    ),
    "R3F's noisy embeddings have a gradient": (
        "methods/bases/embeddings.py",
        "return torch.zeros_like(gradient)",
        "return gradient",
        "equals_the_reference",
    ),
    "FreeLB's examples share a norm": (
        "methods/freelb.py",
        "torch.linalg.vector_norm(x, dim=(-1, -2), keepdim=True)",
        "torch.linalg.vector_norm(x).view(1, 1, 1)",
        "equals_the_reference",
    ),
    "FreeLB does not project": (
        "methods/freelb.py",
        "if self.max_norm:",
        "if False:",
        "equals_the_reference",
    ),
    "noise goes on in padding": (
        "methods/bases/embeddings.py",
        "rows = drawn.to(embeddings)[place].view_as(embeddings)",
        "rows = drawn.to(embeddings).view_as(embeddings)",
        "padding_changes",
    ),
    "SMART's ascent is not scaled": (
        "methods/smart.py",
        "self.step_size * direction",
        "self.step_size * gradient",
        "equals_the_reference",
    ),
    "SMART is pulled to where it is": (
        "methods/smart.py",
        "passes.at(away)",
        "passes.at()",
        "equals_the_reference",
    ),
    "predictions all weigh the same": (
        "methods/bases/predictions.py",
        "        weights = _found_weights(loss, returned)\n",
        "        weights = torch.ones_like(logits[..., 0]) / logits[..., 0].numel()\n",
        "equals_the_reference",
    ),
    "hyper-parameters are lost in the spec": (
        "method.py",
        "{getattr(method, k)}",
        "{hyperparameters(type(method))[k]}",
        "spec_round_trip",
    ),
    "copies carry the scratch memory": (
        "core/restore.py",
        "    def __reduce__(self)",
        "    def no_reduce(self)",
        "copies",
    ),
}


# The engine of per-instance SAM: also the file of the tests.
ENGINE: dict[str, tuple[str, str, str, str, str]] = {
    "products see no perturbation": (
        "per_example/perturbed_forward.py",
        "rows = outer.contract(rows, x, product.axis, term, self._products)",
        "pass",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "copies see no perturbation": (
        "per_example/perturbed_forward.py",
        "perturbed = parameter + gradient",
        "perturbed = parameter + 0 * gradient",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "biases alone see no perturbation": (
        "per_example/perturbed_forward.py",
        "rows = rows + bias.dense",
        "rows = rows + 0 * bias.dense",
        "OneBiasTwoWeights",
        "per_example/test_uses.py",
    ),
    "groups get each other's copies": (
        "per_example/perturbed_forward.py",
        "perturbed.repeat_interleave(count // self._groups, 0)",
        "perturbed.repeat(count // self._groups, *[1] * parameter.ndim)",
        "LayerScale",
        "per_example/test_uses.py",
    ),
    "norms leave out biases": (
        "per_example/outer_products.py",
        "            ones = p.ones and q.ones\n",
        "            ones = False\n",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "perturbations leave out biases": (
        "per_example/outer_products.py",
        "products(x, term.x, ones=term.ones, factors=term.factors)",
        "products(x, term.x, factors=term.factors)",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "cross terms of tied parameters are left out": (
        "per_example/outer_products.py",
        "(1 if q is p else 2)",
        "(1 if q is p else 0)",
        "TwoLayersOneWeight",
        "per_example/test_uses.py",
    ),
    "gradients that are formed lie the wrong way": (
        "per_example/outer_products.py",
        "torch.bmm(x.mT, b) if self.axis == 0 else",
        "torch.bmm(x.mT, b) if self.axis == 1 else",
        "every_form",
        "per_example/test_uses.py",
    ),
    "padding has a gradient": (
        "per_example/example_gradients.py",
        "b = b * (x != product.ignored)[:, :, None]",
        "pass",
        "padding",
        "per_example/test_uses.py",
    ),
    "a factor of 0 does not make 0": (
        "per_example/example_gradients.py",
        "        if not self._finite:",
        "        if False:",
        "broken_example",
        "per_example/test_precision.py",
    ),
    "outer products are not dropped": (
        "per_example/parameter_gradient.py",
        "replace(t, b=t.b.masked_fill(dropped[:, None, None], 0))",
        "t",
        "dropped",
        "per_example/test_outer.py",
    ),
    "plain gradients are not dropped": (
        "per_example/parameter_gradient.py",
        "self.dense.masked_fill(dropped.view(-1, *[1] * (self.dense.ndim - 1)), 0)",
        "self.dense",
        "dropped",
        "per_example/test_outer.py",
    ),
    "totals leave out the factors": (
        "per_example/outer_products.py",
        "return b if self.factors is None else times(b, self.factors)",
        "return b",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "products leave out the factors": (
        "per_example/outer_products.py",
        "                product = product * factors[:, None, None]\n",
        "                pass\n",
        "is_exact and large",
        "per_example/test_uses.py",
    ),
    "products with and without factors are taken for the same": (
        "per_example/outer_products.py",
        "id(factors), ones, torch",
        "ones, torch",
        "what_is_contracted",
        "per_example/test_outer.py",
    ),
    "norms leave out the factors": (
        "per_example/outer_products.py",
        "square = square if factors is None else square * factors",
        "pass",
        "factor_scales",
        "per_example/test_outer.py",
    ),
    "second factors take the place of the first": (
        "per_example/outer_products.py",
        "factors=factors if self.factors is None else self.factors * factors",
        "factors=factors",
        "factor_scales",
        "per_example/test_outer.py",
    ),
    "the rows that matter are left out": (
        "per_example/outer_products.py",
        "topk(most, dim=1)",
        "topk(most, dim=1, largest=False)",
        "most_targets_are_ignored",
        "per_example/test_uses.py",
    ),
    "too few rows are kept": (
        "per_example/outer_products.py",
        "max(int(alive.sum(1).max()), 1)",
        "max(int(alive.sum(1).min()), 1)",
        "most_targets_are_ignored",
        "per_example/test_uses.py",
    ),
    "a product of older values is used": (
        "per_example/outer_products.py",
        "key = (id(p), version_of(p),",
        "key = (id(p),",
        "stale",
        "per_example/test_outer.py",
    ),
    "checkpointed regions share products": (
        "per_example/outer_products.py",
        "id(region), id(node))",
        "id(node))",
        "Checkpointed",
        "per_example/test_uses.py",
    ),
    "norms are in half precision": (
        "per_example/example_gradients.py",
        "for square in squares]).sum(0)",
        "for square in squares]).bfloat16().sum(0)",
        "float16",
        "per_example/test_precision.py",
    ),
    "the backward runs without the perturbation": (
        "per_example/tracing.py",
        "if function.backward is not None:",
        "if False:",
        "Checkpointed",
        "per_example/test_uses.py",
    ),
    "a row is made of the first copy": (
        "per_example/handlers/copies.py",
        "value.parameters, count))[own, own]",
        "value.parameters, count))[0 * own, own]",
        "RecurrentFromZeros",
        "per_example/test_uses.py",
    ),
    "every example has the whole penalty": (
        "per_example/handlers/copies.py",
        "value.copies(copies).mean(0)",
        "value.copies(copies).sum(0)",
        "penalty",
        "per_example/test_uses.py",
    ),
    "one row of ids belongs to the examples": (
        "per_example/handlers/tracer.py",
        "        return single and bool(self.given)",
        "        return False and bool(self.given)",
        "IdsOfOneRow",
        "per_example/test_uses.py",
    ),
    "what is written goes to another example": (
        "per_example/handlers/writes.py",
        "[(owners, *places)]",
        "[(owners.roll(1, 0), *places)]",
        "ScoresWritten",
        "per_example/test_uses.py",
    ),
    "the last row of a table has an id of its own": (
        "per_example/rules.py",
        "index.long() % len(input)",
        "index.long()",
        "PositionIds",
        "per_example/test_uses.py",
    ),
    "attention forgets its mask": (
        "per_example/handlers/composed.py",
        "scores if mask is None else scores + mask",
        "scores",
        "MultiheadAttention",
        "per_example/test_uses.py",
    ),
    "outputs that are written into lose their gradient": (
        "per_example/recorder.py",
        "get_gradient_edge(_written_to(y, product))",
        "get_gradient_edge(y)",
        "ActivationInPlace",
        "per_example/test_uses.py",
    ),
    "batches are dictionaries": (
        "per_example/parameter_values.py",
        "if isinstance(arguments, Mapping):",
        "if type(arguments) is dict:",
        "batch_in_anything",
        "per_example/test_uses.py",
    ),
    "uses that are put together are mixed up": (
        "per_example/parameter_gradient.py",
        "x=torch.cat([t.x for t in terms], 1)",
        "x=torch.cat([t.x for t in terms[::-1]], 1)",
        "RecurrentFromZeros",
        "per_example/test_uses.py",
    ),
    "a mask of weights is drawn per example": (
        "per_example/handlers/table.py",
        "_DROPOUT = Handling(alone=alone.dropout)",
        "_DROPOUT = Handling()",
        "DroppedWeight",
        "per_example/test_uses.py",
    ),
    "inputs made in the closure are constants": (
        "per_example/tracing.py",
        "if len(t) == len(tensors[0]) or (len(tensors[0]) == 1 and t.ndim > 1):",
        "if False:",
        "made_in_the_closure",
        "per_example/test_uses.py",
    ),
    "a hook stays": (
        "per_example/tracing.py",
        "            self._hook.remove()\n",
        "            pass\n",
        "leaves_nothing",
        "per_example/test_leaves_nothing.py",
    ),
    "a mode stays": (
        "per_example/tracing.py",
        "        super().__exit__(kind, error, trace)\n",
        "",
        "leaves_nothing",
        "per_example/test_leaves_nothing.py",
    ),
    "groups are single examples": (
        "per_example/engine.py",
        "self._checked_gradients(passes, record, loss, n // m)",
        "self._checked_gradients(passes, record, loss, n)",
        "between_one_and_all",
        "per_example/test_uses.py",
    ),
    "what shows later is not looked for": (
        "per_example/check_history.py",
        "is_looked_at(self.passes) or ",
        "",
        "tenth_step",
        "per_example/test_doubtful_uses.py",
    ),
    "values are computed again with gradients": (
        "per_example/parameter_values.py",
        "torch.set_grad_enabled(gradients)",
        "torch.set_grad_enabled(True)",
        "as_it_was",
        "per_example/test_doubtful_uses.py",
    ),
    "values are computed again in another precision": (
        "per_example/parameter_values.py",
        "torch.autocast(device, dtype, lowered, cache_enabled=False)",
        "torch.autocast(device, enabled=False)",
        "precision",
        "per_example/test_doubtful_uses.py",
    ),
    "constants may change": (
        "per_example/parameter_values.py",
        "if any(version != _version(t)",
        "if any(False",
        "cannot_follow",
        "per_example/test_doubtful_uses.py",
    ),
    "views may be written into": (
        "per_example/tracing.py",
        "if any(value.stale for value",
        "if any(False for value",
        "cannot_follow",
        "per_example/test_doubtful_uses.py",
    ),
    "all values are known to each": (
        "per_example/parameter_values.py",
        "    found = {id(t): found[id(t)] for t in tensors if id(t) in found}\n",
        "",
        "without_a_collection",
        "per_example/test_doubtful_uses.py",
    ),
    "buffers go on from pass to pass": (
        "core/passes.py",
        "                self._buffers_before.restore_written()\n",
        "",
        "same_in_every_pass",
        "test_forward_side_effects.py",
    ),
    "a grown cache is cut": (
        "core/restore.py",
        " and current.get(name) is buffer:",
        ":\n                    current[name] = buffer",
        "has_grown",
        "test_forward_side_effects.py",
    ),
    "another memory is forgotten": (
        "core/restore.py",
        "                param.data = data  #",
        "                pass  #",
        "another_memory",
        "test_forward_side_effects.py",
    ),
    "frozen parameters may be written": (
        "core/passes.py",
        "                self._refuse_writes(before)\n",
        "",
        "not_written_twice",
        "test_forward_side_effects.py",
    ),
    "an optimizer may step in the backward": (
        "core/passes.py",
        "if after != _versions(params):",
        "if False:",
        "steps_in_the_backward",
        "test_forward_side_effects.py",
    ),
    "strange gradients pass": (
        "per_example/rules.py",
        'options.get("scale_grad_by_freq")',
        'options.get("")',
        "embedding_by_frequency",
        "per_example/test_refusals.py",
    ),
    "parameters in reentrant checkpoints are taken for unused": (
        "core/torch_internals/graph.py",
        "            reentrant = True\n",
        "            pass\n",
        "reentrant",
        "test_inner_backwards.py",
    ),
    "gradient-free uses are recorded": (
        "per_example/recorder.py",
        "if self._open and y.grad_fn is None:",
        "if False:",
        "refused_by_name and custom_function",
        "per_example/test_refusals.py",
    ),
    "compiled parts run compiled under the engine": (
        "core/torch_internals/compiled.py",
        'return torch.compiler.set_stance("force_eager")',
        "return nullcontext()",
        "per_example_methods_are_exact and whole and skip",
        "test_compiled.py",
    ),
    "dropout masks are kept inside of compiled functions": (
        "core/dropout_masks.py",
        " and not torch.compiler.is_compiling()",
        "",
        "in_one_piece and a_function",
        "test_compiled.py",
    ),
    "dropout masks are kept of compiled models": (
        "core/dropout_masks.py",
        " and not is_compiled(modules)",
        "",
        "in_one_piece and in_place",
        "test_compiled.py",
    ),
    "an infinite gradient enters friendly SAM's average": (
        "methods/friendly_sam.py",
        "if math.isfinite(vectors.length(batch).value):",
        "if True:",
        "infinite_gradient",
        "test_friendly_sam.py",
    ),
    "friendly SAM's average depends on the loss scale": (
        "core/passes.py",
        "return 1.0 if scaled is one else scaled.item()",
        "return 1.0",
        "loss_scale",
        "test_friendly_sam.py",
    ),
    "friendly SAM's average is not saved": (
        "methods/friendly_sam.py",
        'return {"gradient_average": dict(self._average)}',
        'return {"gradient_average": {}}',
        "goes_on",
        "test_friendly_sam.py",
    ),
    "infinite squares are taken for infinite gradients": (
        "core/vectors.py",
        "if (not math.isfinite(value) or value < TINY) and",
        "if False and",
        "squares_that_leave",
        "test_precision.py",
    ),
    "infinite squares of examples are taken for infinite gradients": (
        "per_example/example_gradients.py",
        "if not largest.isfinite() or not largest:",
        "if True:",
        "squares_that_leave",
        "test_precision.py",
    ),
    "a static graph is not refused": (
        "core/torch_internals/graph.py",
        'name == "_DDPSinkBackward" and',
        "False and",
        "static_graph",
        "test_static_graph.py",
    ),
}
# Predictions and embeddings: likewise.
LOOKING: dict[str, tuple[str, str, str, str, str]] = {
    "two classes prove anything": (
        "methods/bases/predictions.py",
        "if x.shape[-1] <= 2:",
        "if False:",
        "refused",
        "test_predictions.py",
    ),
    "curvature proves anything": (
        "methods/bases/predictions.py",
        "and not _explains(weights, bent, p, unit, slope.detach())",
        "and False",
        "refused",
        "test_predictions.py",
    ),
    "straight losses weigh nothing": (
        "methods/bases/predictions.py",
        "(weights == 0) & flat",
        "(weights == 0)",
        "refused",
        "test_predictions.py",
    ),
    "certain predictions lose their weight": (
        "methods/bases/predictions.py",
        "-(bent * (1 - unit)).sum(-1) / ((p * unit).sum(-1) * others)",
        "(bent * unit).sum(-1) / ((p * unit).sum(-1) * (1 - (p * unit).sum(-1)))",
        "nearly_certain",
        "test_predictions.py",
    ),
    "float16 is not kept in its range": (
        "methods/bases/predictions.py",
        "if slope.dtype == torch.float16 else 0.0",
        "if False else 0.0",
        "small_weights",
        "test_predictions.py",
    ),
    "casts hide the logits": (
        "methods/bases/predictions.py",
        '"ToCopyBackward0", ',
        "",
        "before_a_cast",
        "test_predictions.py",
    ),
    "classes that are ruled out are": (
        "methods/bases/predictions.py",
        ".clamp(min=lowest)",
        "",
        "ruled_out",
        "test_predictions.py",
    ),
    "the gradient at padding counts in the length of an ascent": (
        "methods/bases/embeddings.py",
        "torch.where(real[..., None], self._value, 0)",
        "self._value",
        "by_hand",
        "test_embeddings.py",
    ),
    "padding is moved": (
        "methods/bases/embeddings.py",
        "(value * real[..., None]).detach()",
        "value.detach()",
        "padding_is_not_moved",
        "test_embeddings.py",
    ),
    "the decoder is moved too": (
        "methods/bases/embeddings.py",
        "if not inside:",
        "if False:",
        "share_one_table",
        "test_embeddings.py",
    ),
    "any ids will do": (
        "methods/bases/embeddings.py",
        "if isinstance(whole, Tensor) and whole is not ids and not",
        "if False and not",
        "cannot_be_told",
        "test_embeddings.py",
    ),
    "diagnose measures at the methods' own radii": (
        "cli/diagnose.py",
        "options.methods_at(methods, rho)",
        "[options.full_spec(spec) for spec in methods.split(',')]",
        "at_rho_unless",
        "cli/test_diagnose.py",
    ),
    "a radius that is a default goes unsaid": (
        "diagnostics/fidelity.py",
        "if rho is None else at_radius(short_spec(spec), rho)",
        "",
        "label_always",
        "diagnostics/test_fidelity.py",
    ),
    "the page leaves out that nothing was learned": (
        "lab/report/page.py",
        "learned = runs_no_better(self.results)",
        "learned = None",
        "no_better_than_one_class",
        "experiment/test_report.py",
    ),
    "a full disk is a defect": (
        "lab/train/saved_model.py",
        "(OSError, RuntimeError, SafetensorError)",
        "(OSError, RuntimeError)",
        "real_write",
        "cli/test_full_disk.py",
    ),
    "the reason of a failed checkpoint is lost": (
        "core/tensor_files.py",
        "torch.save(content, file)",
        "torch.save(content, temporary)",
        "a_real_checkpoint",
        "cli/test_full_disk.py",
    ),
    "there is always something to resume": (
        "cli/train.py",
        "if (output / CONFIG).exists():",
        "if True:",
        "before_anything",
        "cli/test_interrupt.py",
    ),
    "the average does not move": (
        "methods/smart.py",
        "lerp_(p, 1 - self.beta)",
        "lerp_(p, 0)",
        "follows",
        "test_embeddings.py",
    ),
}
# The independent check: likewise.
CHECK: dict[str, tuple[str, str, str, str, str]] = {
    "gradients are not checked": (
        "per_example/checks.py",
        "self._find_forward_mismatch(plain) or self._find_gradient_mismatch(plain)",
        "self._find_forward_mismatch(plain)",
        "refused_in_every_method and backward_inside",
        "per_example/test_check.py",
    ),
    "the forward is not checked": (
        "per_example/checks.py",
        "if self._same(self._shown, plain.shown):",
        "if True:",
        "refused_in_every_method and state",
        "per_example/test_check.py",
    ),
    "examples that interact are not seen": (
        "per_example/checks.py",
        "self._find_batch_mixing(separation) or self._find_misordered_rows",
        "self._find_misordered_rows",
        "refused_in_every_method and quantised",
        "per_example/test_check.py",
    ),
    "the gradient where weights have moved is not checked": (
        "per_example/checks.py",
        "return self._find_second_pass_mismatch(found, vectors.plus(expected, own_there, 1 / plain.times))",
        "return {}",
        "wrong_place",
        "per_example/test_check.py",
    ),
    "the norm of one example is not checked": (
        "per_example/checks.py",
        "if not close(length.norm / plain.times, self._norms[self._group], self._tolerance):",
        "if False:",
        "refused_in_every_method and looks_at_the_batch",
        "per_example/test_check.py",
    ),
    "rows laid out in another way are not seen": (
        "per_example/checks.py",
        "if use.output.node in mixes or use.shape[0] != self._n:",
        "if False:",
        "unpadded_pooled_in_the_loss",
        "per_example/test_refusals.py",
    ),
    "the model's output is taken to show nothing": (
        "per_example/checks.py",
        "if i != LOSSES and t.ndim and len(t) == self._n]",
        "if False]",
        "returns_its_loss",
        "per_example/test_doubtful_uses.py",
    ),
    "only neighbours are kept apart": (
        "per_example/separation.py",
        "for bit in range(groups.bit_length()))",
        "for bit in range(1))",
        "that_meet",
        "per_example/test_doubtful_uses.py",
    ),
    "picked rows are not looked at": (
        "per_example/row_moves.py",
        "for before, m in self._seen\n",
        "for before, m in ()\n",
        "other_counts or another_order",
        "per_example/test_check.py",
    ),
    "rows may be sorted anew in the second pass": (
        "per_example/perturbed_forward.py",
        "        perturbed.check_rows()\n",
        "",
        "sorted_by_the_weights",
        "per_example/test_check.py",
    ),
    "parameters to stir are chosen anew in each run": (
        "per_example/checks.py",
        "steps.stir(self._still,",
        "steps.stir(steps.zeros(),",
        "length_looks_like",
        "per_example/test_uses.py",
    ),
    "a backward that clips passes": (
        "per_example/checks.py",
        "_TIMES = 2.0**10",
        "_TIMES = 1.0",
        "is_not_linear",
        "per_example/test_check.py",
    ),
    "rows without gradient are looked for in no later step": (
        "per_example/engine.py",
        "frozenset(gradients.thin)",
        "frozenset()",
        "thin_uses_are_remembered",
        "per_example/test_check.py",
    ),
    "a count that hangs on a parameter is not seen": (
        "per_example/handlers/table.py",
        "_COUNT = Handling(alone=alone.refuse_count)",
        "_COUNT = Handling()",
        "branch_on_a_count or branch_on_places",
        "per_example/test_check.py",
    ),
    "uses inside of transforms are noted": (
        "per_example/tracing.py",
        "if in_functorch_transform():",
        "if False:",
        "mapped_by_the_model",
        "per_example/test_check.py",
    ),
    "what is left out need not add up": (
        "per_example/checks.py",
        "or self._find_missing_terms(plain)",
        "or {}",
        "left_out_of_a_sum",
        "per_example/test_check.py",
    ),
    "what functions are told is not noted": (
        "per_example/recorder.py",
        "        for key, value in kwargs.items():\n            told.append",
        "        for key, value in ():\n            told.append",
        "told_something_else",
        "per_example/test_check.py",
    ),
    "a shift by all rows is any shift": (
        "per_example/recorder.py",
        "(count > 1 and argument % count == 0)",
        "None",
        "told_something_else",
        "per_example/test_check.py",
    ),
    "the order of pieces is not noted": (
        "per_example/row_moves.py",
        "if numbers != list(range(len(numbers))):",
        "if False:",
        "told_something_else",
        "per_example/test_check.py",
    ),
    "hooks of FSDP are hooks": (
        "per_example/recorder.py",
        "and not _of_torch(args[1:])",
        "",
        "reduces_no_more",
        "distributed/test_gradients.py",
    ),
    "hooks are not looked at": (
        "per_example/engine.py",
        " or inner or record.hooked)",
        " or inner)",
        "hook_that_comes_later",
        "per_example/test_check.py",
    ),
    "any gradient is a proof": (
        "per_example/engine.py",
        "if verdict.conclusive:",
        "if True:",
        "is_no_proof",
        "per_example/test_refusals.py",
    ),
    "autocast is not allowed its rounding": (
        "per_example/checks.py",
        ", *record.lowered)",
        ")",
        "precision_that_it_was",
        "per_example/test_doubtful_uses.py",
    ),
    "products know no place in the graph": (
        "per_example/outer_products.py",
        "id(region), id(node))",
        "id(region))",
        "never_stale",
        "per_example/test_outer.py",
    ),
    "rows are kept by the tensor alone": (
        "per_example/perturbed_forward.py",
        "key = (x, version_of(x), x.grad_fn, torch.is_grad_enabled())",
        "key = (x,)",
        "is_exact and (UnderNoGrad or product_into)",
        "per_example/test_uses.py",
    ),
    "small weights do not move": (
        "per_example/perturbed_forward.py",
        "return self._multiply_small(product)",
        "return run()",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "small biases do not move": (
        "per_example/perturbed_forward.py",
        "self._small.get(id(bias), bias)",
        "bias",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "small weights move in low precision": (
        "per_example/perturbed_forward.py",
        "if self._is_small(product) and not _in_low_precision(product.x):",
        "if self._is_small(product):",
        "below_rounding",
        "per_example/test_precision.py",
    ),
    "a bias that is larger than its weight does not move": (
        "per_example/perturbed_forward.py",
        "return bias is None or id(bias) in self._small or self._of(bias) is None",
        "return True",
        "is_exact and large and NothingInIt",
        "per_example/test_uses.py",
    ),
    "layers of other settings are formed together": (
        "per_example/small.py",
        "of = product.axis if isinstance(product, MatmulUse) else product.key",
        "of = product.axis if isinstance(product, MatmulUse) else 0",
        "is_exact and two_norms",
        "per_example/test_check.py",
    ),
    "layers with and without a bias are formed together": (
        "per_example/small.py",
        "wanted = tuple(p is product.weight for p in parameters)",
        "wanted = ()",
        "is_exact",
        "per_example/test_uses.py",
    ),
    "parameters that are used twice are formed as if once": (
        "per_example/example_gradients.py",
        "all(counts[id(p)] == 1 for p in parameters)",
        "True",
        "is_exact",
        "per_example/test_uses.py",
    ),
    "normalised rows are those of the input": (
        "per_example/rules.py",
        "b = b * self.run(wide(self.x.detach()), None, None)",
        "b = b * wide(self.x.detach())",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "hidden uses are found by their gradient alone": (
        "per_example/checks.py",
        "return {name for key, name in self._record.names.items() if key in found}",
        "return set()",
        "hidden_use_is_found",
        "per_example/test_check.py",
    ),
    "a table that was moved is moved again": (
        "per_example/perturbed_forward.py",
        "return rows + step.to(rows.dtype).gather(",
        "return rows + weight.dense.to(rows.dtype).gather(",
        "table_that_is_looked_up_outside",
        "per_example/test_forms.py",
    ),
    "a bias is fused that is used outside of the graph": (
        "per_example/example_gradients.py",
        "b not in apart and ",
        "",
        "bias_that_is_used_outside",
        "per_example/test_forms.py",
    ),
    "memory that was written over is used": (
        "per_example/perturbed_forward.py",
        "if version_of(term.x) != self._versions[id(term)]:",
        "if False:",
        "memory_that_every_forward",
        "per_example/test_forms.py",
    ),
    "the result of another function is taken for what it computed": (
        "per_example/parameter_values.py",
        "return not self.is_parameter and self.value.requires_grad and not self.requires_grad",
        "return False",
        "closed_gate and inside",
        "per_example/test_forms.py",
    ),
    "what a layer is given as its bias is not followed": (
        "per_example/recorder.py",
        "given = [product.x, *(t for t in (product.weight, product.bias) if t is not None and not is_parameter(t))]",
        "given = [product.x]",
        "closed_gate and bias",
        "per_example/test_forms.py",
    ),
    "examples of other strides are laid out anew": (
        "per_example/handlers/products.py",
        "or affine.weight is affine.bias or not x.is_contiguous():",
        "or affine.weight is affine.bias:",
        "is_exact and strides",
        "per_example/test_forms.py",
    ),
    "a norm of 0 is one": (
        "per_example/example_gradients.py",
        "if self._finite and (most > vectors.TINY or not norms.numel()):",
        "if self._finite:",
        "any_scale",
        "per_example/test_forms.py",
    ),
    "what is known of a model is forgotten": (
        "per_example/norms.py",
        "_CHECKED.setdefault(model, Checked()) if check else None",
        "None",
        "norms_are_checked_once",
        "per_example/test_leaves_nothing.py",
    ),
    "distances leave out small tensors": (
        "core/vectors.py",
        "if together and 0 < length <= _SMALL:",
        "if 0 < length <= _SMALL:\n            continue\n        if False:",
        "distance",
        "test_weight_space.py",
    ),
    "a bias is fused with a weight that it is used without": (
        "per_example/example_gradients.py",
        "_weights_by_bias(uses).items()",
        "_weights_by_bias([u for u, _ in used]).items()",
        "is_exact and used_detached",
        "per_example/test_check.py",
    ),
    "padding of a computed table has a gradient": (
        "per_example/rules.py",
        "(input == padding_idx % len(weight))[..., None]",
        "(input < 0)[..., None]",
        "is_exact and padding_of",
        "per_example/test_check.py",
    ),
    "dropout in place is forgotten": (
        "per_example/handlers/alone.py",
        "times = torch.Tensor.mul_ if inplace else torch.mul",
        "times = torch.mul",
        "is_exact and dropout_in_place",
        "per_example/test_check.py",
    ),
    "branches on values are not seen": (
        "per_example/handlers/table.py",
        '"__bool__", ',
        "",
        "refused_in_every_method and branch",
        "per_example/test_check.py",
    ),
    "memory may be written": (
        "per_example/handlers/writes.py",
        "if any(_memory(p) == memory",
        "if any(False",
        "refused_in_every_method and written",
        "per_example/test_check.py",
    ),
    "noise of a parameter's shape hangs on it": (
        "per_example/handlers/table.py",
        "_rows(Handling(first=_constant), NEW)",
        "_rows(Handling(), NEW)",
        "is_exact and noise",
        "per_example/test_check.py",
    ),
}
# What hides from a gradient, what a closure may not do, and what an interrupt leaves behind: likewise.
CORE: dict[str, tuple[str, str, str, str, str]] = {
    "delta-SAM's exact norms are inverted": (
        "methods/delta_sam.py",
        "return of_mean_1(norms.sqrt())",
        "return of_mean_1(norms.rsqrt())",
        "weights_go_by_the_roots",
        "test_delta_sam.py",
    ),
    "delta-SAM's slopes are the end's and not half of it": (
        "methods/delta_sam.py",
        "(rates / expected - 1).abs() / 2",
        "(rates / expected - 1).abs()",
        "scalar_loss_curvature",
        "test_delta_sam.py",
    ),
    "delta-SAM takes differences of losses in half precision": (
        "methods/delta_sam.py",
        " and not record.is_coarse:",
        ":",
        "in_half_precision",
        "test_delta_sam.py",
    ),
    "delta-SAM takes rounding for curvature": (
        "methods/delta_sam.py",
        " & ~(far <= rounding)",
        "",
        "rounding_is_no_curvature",
        "test_delta_sam.py",
    ),
    "delta-SAM takes the rounding of a loss that is nearly 0 for curvature": (
        "methods/delta_sam.py",
        "record.losses.abs().clamp(min=1)",
        "record.losses.abs()",
        "nearly_0",
        "test_delta_sam.py",
    ),
    "delta-SAM does not see half precision within a closure": (
        "per_example/recorder.py",
        "*(use.dtype for use in self.uses), ",
        "",
        "within_the_closure",
        "test_delta_sam.py",
    ),
    "delta-SAM leaves the engine for a step in which rows move": (
        "methods/delta_sam.py",
        "            excess = self._excess(passes, record, gradients, norms)\n        except NotCoveredError",
        "            excess = self._excess(passes, record, gradients, norms)\n        except ZeroDivisionError",
        "where_rows_move",
        "test_delta_sam.py",
    ),
    "what a check found of losses holds for all": (
        "per_example/engine.py",
        "if known := self._checked.behaviours.get(record.behaviour):",
        "if known := next(iter(self._checked.behaviours.values()), None):",
        "losses_that_meet",
        "test_delta_sam.py",
    ),
    "the floor leaves out equal weights": (
        "diagnostics/floor.py",
        "[equal, self._start.to(losses)]",
        "[self._start.to(losses)]",
        "than_equal_weights",
        "diagnostics/test_floor.py",
    ),
    "one process of several leaves the engine": (
        "methods/bases/reweighted.py",
        "of_this_process = self._covered and not passes.alone",
        "of_this_process = False",
        "one_process_of_several",
        "test_delta_sam.py",
    ),
    "delta-SAM forgets the loss scale": (
        "methods/delta_sam.py",
        "expected = expected / passes.loss_scale()",
        "expected = expected * 1.0",
        "loss_scale_changes",
        "test_delta_sam.py",
    ),
    "delta-SAM takes losses that meet for single ones": (
        "methods/delta_sam.py",
        "record.losses.ndim and record.losses_apart and",
        "record.losses.ndim and",
        "losses_that_meet",
        "test_delta_sam.py",
    ),
    "the floor climbs": (
        "diagnostics/floor.py",
        "weights * (slope - weights @ slope)",
        "-weights * (slope - weights @ slope)",
        "on_a_grid",
        "diagnostics/test_floor.py",
    ),
    "the floor forgets where to start": (
        "diagnostics/floor.py",
        "[equal] if self._start is None else",
        "[equal] if True else",
        "starts_from",
        "diagnostics/test_floor.py",
    ),
    "a closure need not repeat itself": (
        "methods/bases/batch_perturbation.py",
        "if is_looked_at(self._steps):",
        "if False:",
        "what_changes_is_refused or tenth_step",
        "test_repeats.py",
    ),
    "one by one, a closure need not repeat itself": (
        "methods/per_instance_sam.py",
        "            refuse_unlike(again.detach(), losses, passes)\n",
        "",
        "one_example_after_the_other",
        "test_repeats.py",
    ),
    "a forward may write into trained weights": (
        "core/passes.py",
        "                self._refuse_writes(before)\n",
        "",
        "constrains_weights or written_twice",
        "test_forward_side_effects.py",
    ),
    "what a forward writes into weights is written again": (
        "core/passes.py",
        "guarded |= self._writes_weights",
        "guarded |= False",
        "constrains_weights",
        "test_forward_side_effects.py",
    ),
    "what inner backwards write is lost": (
        "core/passes.py",
        "gradients = vectors.plus(gradients, [found.get(id(t)) for t in targets])",
        "pass",
        "backward_of_their_own and sam-",
        "test_inner_backwards.py",
    ),
    "what inner backwards write stays in .grad": (
        "core/torch_internals/backwards.py",
        "        set_grads(tensors, before)\n",
        "        pass\n",
        "backward_of_their_own and sam-",
        "test_inner_backwards.py",
    ),
    "detached leaves are no inputs": (
        "core/passes.py",
        "if id(leaf) not in known] if of_parameters else []",
        "if False]",
        "cached_losses and embeddings",
        "test_inner_backwards.py",
    ),
    "a loss that is a leaf has none": (
        "core/torch_internals/graph.py",
        "return Graph((loss,), reentrant=False)",
        "return Graph((), reentrant=False)",
        "cached_losses and loss",
        "test_inner_backwards.py",
    ),
    "reentrant checkpoints are run by autograd.grad": (
        "core/torch_internals/graph.py",
        'name == "CheckpointFunctionBackward"',
        'name == ""',
        "reentrant_checkpoints",
        "test_reentrant.py",
    ),
    "hooks after a leaf's gradient do not run": (
        "core/passes.py",
        "graph.reentrant or any(map(runs_after_gradient, others))",
        "graph.reentrant",
        "cached_losses and afterwards",
        "test_inner_backwards.py",
    ),
    "an optimizer may step in an inner backward": (
        "core/passes.py",
        "if before != _versions(self.params):",
        "if False:",
        "steps_in_an_inner_backward",
        "test_inner_backwards.py",
    ),
    "a closure may run a backward": (
        "core/passes.py",
        "if before != (after := _written(self.params)):",
        "if (after := before) is None:",
        "a_backward_in_the_closure",
        "test_inner_backwards.py",
    ),
    "a closure may not clear gradients": (
        "core/passes.py",
        "if any(g is not None and bool(",
        "if any(g is None or True or bool(",
        "may_clear_the_gradients",
        "test_inner_backwards.py",
    ),
    "plain training of another model is no error": (
        "core/passes.py",
        "unchanged = before == _written(self.params) and not self.sharded",
        "unchanged = False",
        "says_which_model and erm",
        "test_inner_backwards.py",
    ),
    "an ascent along another model's gradient is no error": (
        "core/passes.py",
        "            raise self._independent()\n        return gradients",
        "            pass\n        return gradients",
        "before_the_second_pass",
        "test_inner_backwards.py",
    ),
    "a gradient of 0 is not mentioned": (
        "core/passes.py",
        "self.moves_nothing = rho > 0 and",
        "self.moves_nothing = False and",
        "said_once",
        "test_inner_backwards.py",
    ),
    "inner backwards are reduced over processes": (
        "core/torch_internals/backwards.py",
        "if not alone() or any(",
        "if False and any(",
        "inner_backwards_are_refused",
        "test_static_graph.py",
    ),
    "weights come back only if the call succeeds": (
        "core/restore.py",
        "    finally:\n        with unseen():\n            store",
        "    except ZeroDivisionError:\n        raise\n    else:\n        if True:\n            store",
        "before_anything_else_is_undone",
        "test_surroundings.py",
    ),
    "a copy that failed is not made again": (
        "method.py",
        "last_first.callback(self._store.bring_back, copy_one_by_one)",
        "pass",
        "an_error_in_the_restoring_copy and sam",
        "test_interrupts.py",
    ),
    "an interrupt while an error is undone stays": (
        "method.py",
        "with undone, undone:",
        "with undone:",
        "while_another_error_is_undone",
        "test_interrupts.py",
    ),
    "what an interrupt left on stays on": (
        "method.py",
        "                last_first.callback(surroundings.restore)\n",
        "",
        "left_on_in_the_closure and sam",
        "test_interrupts.py",
    ),
    "suspended context managers end later": (
        "core/surroundings.py",
        "frame.clear()",
        "pass",
        "left_suspended",
        "test_surroundings.py",
    ),
    "function modes stay": (
        "core/torch_internals/modes.py",
        "if _get_current_function_mode_stack() != self._function_modes:",
        "if False:",
        "left_on",
        "test_surroundings.py",
    ),
    "vmap goes on": (
        "core/torch_internals/modes.py",
        "for _ in range(_levels() - self._levels):",
        "for _ in range(0):",
        "left_on",
        "test_surroundings.py",
    ),
    "hooks stay": (
        "core/surroundings.py",
        "        self._remove_hooks()\n",
        "",
        "hooks_that_were_added",
        "test_surroundings.py",
    ),
    "the compiler stays off": (
        "core/surroundings.py",
        "        set_stance(self._stance)\n",
        "",
        "the_compiler",
        "test_surroundings.py",
    ),
}
# The same for the trainers.
TRAINERS: dict[str, tuple[str, str, str, str, str]] = {
    "a spec draws a random number": (
        "spec.py",
        "nn.LayerNorm(1)).spec",
        "nn.Linear(1, 1)).spec",
        "draws_no_random_number",
        "test_specs.py",
    ),
    "packed rows are taken for examples": (
        "core/packed.py",
        "positions.diff(dim=1) <= 0",
        "positions.diff(dim=1) < -9",
        "test_packed",
        "test_packed.py",
    ),
    "padding is taken for another example": (
        "core/packed.py",
        "again & real[:, 1:] & real[:, :-1]",
        "again",
        "test_not_packed",
        "test_packed.py",
    ),
    "trainers do not look at the rows": (
        "integrations/hf.py",
        "if self.method is not None and self.method.per_example:\n            refuse_packed",
        "if False:\n            refuse_packed",
        "packed_rows and hand",
        "integrations/test_hf.py",
    ),
    "later passes count": (
        "integrations/hf.py",
        "if in_later_pass() else []",
        "if False else []",
        "counts_of_its_own",
        "integrations/test_hf.py",
    ),
    "the optimizer may train anything": (
        "integrations/trained_parameters.py",
        "    if others:",
        "    if False:",
        "does_not_hold",
        "integrations/test_hf.py",
    ),
    "a text is an example": (
        "integrations/trl.py",
        "InHalves(model) if _by_pairs(self) else model",
        "model",
        "rewards_equal and per_instance",
        "integrations/test_trl_pairs.py",
    ),
    "both texts of a pair are the chosen one": (
        "integrations/halves.py",
        "value.chunk(2)[which]",
        "value.chunk(2)[0]",
        "one_row_per_pair",
        "integrations/test_trl_pairs.py",
    ),
    "the reference is called with texts": (
        "integrations/trl.py",
        "return InHalves(self.model)(**kwargs)",
        "return self.model(**kwargs)",
        "reference_is_in_the_model",
        "integrations/test_trl_pairs.py",
    ),
    "losses keep their parameters": (
        "integrations/sentence_transformers.py",
        "if own else super().trained_module()",
        "if False else super().trained_module()",
        "parameters_of_a_loss",
        "integrations/test_sentence_transformers.py",
    ),
}
# Data files: likewise.
FILES: dict[str, tuple[str, str, str, str, str]] = {
    "exponents are numbers": (
        "lab/data/labels.py",
        "    if not with_point or not all(_WHOLE.fullmatch(text.strip()) for text in texts):\n        return texts\n",
        "    if all(isinstance(value, int) for value in values):\n        return texts\n"
        "    if all(float(text).is_integer() for text in texts):\n        return [str(int(float(t))) for t in texts]\n",
        "look_like_numbers",
        "data/test_labels.py",
    ),
    "whole numbers are floats on the way": (
        "lab/data/labels.py",
        "    return [_integer(text) for text in texts]\n",
        "    return [str(int(float(text))) for text in texts]\n",
        "beyond_the_exact_floats",
        "data/test_labels.py",
    ),
    "two spellings become one class": (
        "lab/data/labels.py",
        "    _check_spellings(table, column, values)\n",
        "",
        "two_spellings or no_two_labels",
        "data/test_labels.py",
    ),
    "large floats are labels": (
        "lab/data/labels.py",
        "abs(value) >= _EXACT",
        "False",
        "several_integers",
        "data/test_labels.py",
    ),
    "evaluation labels are read on their own": (
        "lab/data/assemble.py",
        "    return read_classes_like(table, column, names, indexed=indexed)\n",
        "    return read_classes(table, column)\n",
        "as_the_training_labels",
        "data/test_labels.py",
    ),
    "names are taken for indices": (
        "lab/data/labels.py",
        "        by_index = {}\n",
        "        pass\n    labels = [by_index.get(label, label) for label in labels]\n",
        "could_be_indices or class_names",
        "data/test_labels.py",
    ),
    "class names in metadata are not read": (
        "lab/data/tables.py",
        '"row", _class_names(name, table.schema))',
        '"row")',
        "class_names",
        "data/test_labels.py",
    ),
    "long texts are refused": (
        "lab/data/delimited.py",
        "before = csv.field_size_limit(_LONGEST)",
        "before = csv.field_size_limit()",
        "any_length",
        "data/test_tables.py",
    ),
    "long texts are allowed for good": (
        "lab/data/delimited.py",
        "            csv.field_size_limit(before)\n",
        "            pass\n",
        "any_length or limit_of_the_process",
        "data/test_tables.py",
    ),
    "a blank before a quotation mark is text": (
        "lab/data/delimited.py",
        "    _check_blanks(source, records, places)\n",
        "",
        "blank_before",
        "data/test_tables.py",
    ),
    "a wrong suffix is believed": (
        "lab/data/tables.py",
        "if suffix is not None and (kind",
        "if False and (kind",
        "wrong_suffix",
        "data/test_tables.py",
    ),
    "one text is on both sides": (
        "lab/data/assemble.py",
        "split_rows(train.name, groups, evaluation, said(rows))",
        "split_rows(train.name, groups, evaluation, rows['row'])",
        "repeated_texts_keep or pairs_repeat",
        "data/test_split.py",
    ),
    "one text is on both sides of a search": (
        "lab/data/dataset.py",
        "split_rows(self.name, groups, held_out, said(self.train[:]), option",
        "split_rows(self.name, groups, held_out, range(len(groups)), option",
        "set_aside_for_selection",
        "data/test_split.py",
    ),
    "a class loses its only text": (
        "lab/data/split.py",
        "units = [unit for unit in units if all(left[group] > 1 for group in unit.groups)]",
        "units = list(units)",
        "of_one_text or cannot_be_parted",
        "data/test_split.py",
    ),
    "a large text fills the evaluation split": (
        "lab/data/split.py",
        "if len(unit.rows) <= share[unit.group]]",
        "if True]",
        "more_rows_than_the_share",
        "data/test_split.py",
    ),
    "known rows are not counted": (
        "lab/data/dataset.py",
        "sum(row in trained for split",
        "sum(row not in trained for split",
        "trained_on_are_counted",
        "data/test_split.py",
    ),
}
TABLES = (ENGINE, LOOKING, CHECK, CORE, TRAINERS, FILES)
ALL = {name: (*m, "test_contracts.py") for name, m in MUTATIONS.items()}
for _table in TABLES:
    ALL |= _table

RUNNER = """
import json, os, sys
import pytest, torch, transformers, peft
transformers.BertForSequenceClassification, transformers.GPT2LMHeadModel
tests, copies = sys.argv[1], json.loads(sys.argv[2])
found = sys.path[:]
for name, folder, contracts, file in copies:
    for module, there in list(sys.modules.items()):
        if module.split(".")[0] in ("deltasam", "tests") or str(getattr(there, "__file__", "")).startswith(tests):
            del sys.modules[module]
    sys.path[:] = [folder, *found]
    sys.stdout.flush()
    devnull, keep = os.open(os.devnull, os.O_WRONLY), os.dup(1)
    os.dup2(devnull, 1)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", contracts, f"{tests}/{file}"])
    os.dup2(keep, 1)
    import deltasam
    if not deltasam.__file__.startswith(folder):
        raise SystemExit(f"{name}: the copy was not the one tested, but {deltasam.__file__}")
    print("RESULT", json.dumps([name, int(code)]), flush=True)
"""


def _copy(factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "deltasam", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


SHARES = 2
"""Into how many parts the mutations are cut: a worker does a whole one (see --dist loadgroup in the Makefile)."""


def share(number: int) -> dict[str, tuple[str, str, str, str, str]]:
    return dict(list(ALL.items())[number::SHARES])


def each(things: Callable[[int], Iterable[str]]) -> list[ParameterSet]:
    return [
        pytest.param(number, thing, marks=pytest.mark.xdist_group(f"mutations-{number}"), id=thing)
        for number in range(SHARES)
        for thing in things(number)
    ]


def _outcomes(factory: pytest.TempPathFactory, number: int) -> dict[str, int]:
    """The exit code of the contract tests for every mutation of a share, and for an unchanged copy."""
    mutations = share(number)
    plain = str(_copy(factory))
    copies = [(f, plain, " or ".join(sorted({f"({m[3]})" for m in mutations.values() if m[4] == f})), f)
              for f in files(number)]  # fmt: skip
    for name, (file, old, new, contract, tests_of_it) in mutations.items():
        path = (folder := _copy(factory)) / "deltasam" / file
        source = path.read_text()
        if source.count(old) != 1:
            raise LookupError(f"{name}: the line to break is {source.count(old)} times in {file}; update this test")
        path.write_text(broken := source.replace(old, new))
        compile(broken, f"{file} with the mutation {name!r}", "exec")  # else its error would be that of all others
        copies.append((name, str(folder), contract, tests_of_it))
    tests = Path(__file__).parent
    command = [sys.executable, "-c", RUNNER, str(tests), json.dumps(copies)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent, check=False)
    results = [json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    if run.returncode:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-2000:])
    return dict(results)


def _done_once(number: int) -> Any:
    """The fixture of a share. (One fixture with the share as its parameter would be made anew for each test.)"""
    return pytest.fixture(scope="session", name=f"outcomes_{number}")(
        lambda tmp_path_factory: _outcomes(tmp_path_factory, number)
    )


outcomes_0, outcomes_1 = map(_done_once, range(SHARES))


def files(number: int) -> list[str]:
    """The test files that a share's mutations turn red."""
    return sorted({m[4] for m in share(number).values()})


@pytest.mark.parametrize(("number", "file"), each(files))
def test_the_code_as_it_is_passes(request: pytest.FixtureRequest, number: int, file: str) -> None:
    assert request.getfixturevalue(f"outcomes_{number}")[file] == 0


@pytest.mark.parametrize(("number", "name"), each(share))
def test_every_mutation_is_caught(request: pytest.FixtureRequest, number: int, name: str) -> None:
    assert request.getfixturevalue(f"outcomes_{number}")[name] == 1, "the tests passed on broken code"
