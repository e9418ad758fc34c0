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
        "guards.py",
        "        torch._foreach_copy_(weights, saved)  #",
        "        pass  #",
        "leaves_the_model",
    ),
    "weights are restored by subtraction": (
        "guards.py",
        "        torch._foreach_copy_(weights, saved)  #",
        "        weight_space.add(weights, [v for _, v in pairs], -factor)  #",
        "leaves_the_model",
    ),
    "weights are restored only when nothing fails": (
        "guards.py",
        "    finally:\n        torch._foreach_copy_(weights, saved)",
        "    except ZeroDivisionError:\n        raise\n    else:\n        torch._foreach_copy_(weights, saved)",
        "after_an_exception",
    ),
    "later passes draw new dropout masks": (
        "passes.py",
        "                self._start.restore()\n",
        "                pass\n",
        "replay_the_masks",
    ),
    "kept masks leave the random state behind": (
        "dropout_masks.py",
        "                torch.set_rng_state(mask.random_state)\n",
        "",
        "replay_the_masks",
    ),
    "kept masks are in the wrong order": (
        "dropout_masks.py",
        "self._rest = iter(masks)",
        "self._rest = iter(masks[::-1])",
        "equals_the_reference",
    ),
    "the random state is left at the start": (
        "passes.py",
        "                self._end.restore()\n",
        "                self._start.restore()\n",
        "advances_by_one_pass",
    ),
    "later passes advance BatchNorm": (
        "passes.py",
        "                self._buffers.restore()\n",
        "                pass\n",
        "leaves_the_model",
    ),
    "an error leaves BatchNorm advanced": (
        "passes.py",
        "        self._buffers_before.restore()\n",
        "",
        "after_an_exception",
    ),
    "an error leaves the random state advanced": (
        "passes.py",
        "        self._start.restore()\n        self._buffers_before",
        "        self._buffers_before",
        "after_an_exception",
    ),
    "python's random state is forgotten": (
        "guards.py",
        "            (random.setstate, (random.getstate(),)),\n",
        "",
        "replay_the_masks",
    ),
    "numpy's random state is forgotten": (
        "guards.py",
        'if "numpy" in sys.modules:\n            numpy_random',
        'if "no such module" in sys.modules:\n            numpy_random',
        "replay_the_masks",
    ),
    "a constant is added to the norm": (
        "weight_space.py",
        "radius / value if",
        "radius / (value + 1e-3) if",
        "scales_with_the_loss",
    ),
    "an infinite gradient moves the weights": (
        "weight_space.py",
        "if value > 0 else",
        "if value != 0 else",
        "infinite",
    ),
    "a zero gradient divides by zero": (
        "weight_space.py",
        "if value > 0 else 0.0",
        "if value >= 0 else 0.0",
        "zero_gradient",
    ),
    "the first gradient lands in .grad too": (
        "runtime.py",
        "        gradients = torch",
        "        loss.backward(retain_graph=True)\n        gradients = torch",
        "neutral_equals_erm",
    ),
    "the perturbation points downhill": (
        "passes.py",
        "weight_space.length_to(rho, norm)",
        "-weight_space.length_to(rho, norm)",
        "equals_the_reference",
    ),
    "the norm is of one layer only": (
        "weight_space.py",
        "for t in vector if t is not None and t.numel()]",
        "for t in vector if t is not None and t.numel()][:1]",
        "equals_the_reference",
    ),
    "ASAM scales by T once": (
        "methods/asam.py",
        "else g.mul_(t) for g, t in zip(scaled, units",
        "else g for g, t in zip(scaled, units",
        "equals_the_reference",
    ),
    "ASAM scales biases": ("methods/asam.py", 'if "weight" in name}', "}", "equals_the_reference"),
    "delta-SAM weights are not used": (
        "reweighted_ascent.py",
        "(weights * losses).mean()",
        "losses.mean()",
        "equals_the_reference",
    ),
    "delta-SAM divides by nothing": (
        "methods/delta_sam.py",
        "slope.clamp(min=SMALLEST_SLOPE * slope.mean())",
        "slope.mean()",
        "equals_the_reference",
    ),
    "delta-SAM's exact norms are not inverted": (
        "methods/delta_sam.py",
        "return reweight((norms / norms.mean()).pow(0.25), norms)",
        "return reweight(norms.sqrt(), torch.ones_like(norms))",
        "equals_the_reference",
    ),
    "delta-SAM's exact weights are not used": (
        "reweighted_ascent.py",
        "gradients.scale(weights / len(losses))",
        "gradients.scale(torch.ones_like(weights) / len(losses))",
        "equals_the_reference",
    ),
    "delta-SAM takes slopes without need": (
        "reweighted_ascent.py",
        'return self.weights in ("auto", "norms") and',
        'return self.weights == "norms" and',
        "auto_takes_norms",
    ),
    "delta-SAM is silent about slopes": (
        "reweighted_ascent.py",
        '            warn(f"{type(self).__name__} estimates slopes',
        '            lambda: warn(f"{type(self).__name__} estimates slopes',
        "auto_takes_norms",
    ),
    "delta-SAM's exact norms give way to slopes": (
        "reweighted_ascent.py",
        'if self.weights == "norms":',
        "if False:",
        "exact_norms_are_refused",
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
    "friendly SAM keeps the average of a step that failed": (
        "methods/friendly_sam.py",
        "            self._average = before  #",
        "            pass  #",
        "after_an_exception",
    ),
    "per-instance groups share a perturbation": (
        "methods/per_instance_sam.py",
        "losses[group].mean()",
        "losses.mean()",
        "equals_the_reference",
    ),
    "per-instance mean is over groups": (
        "methods/per_instance_sam.py",
        "perturbed.sum() / len(losses)",
        "perturbed.mean()",
        "neutral_equals_erm",
    ),
    "a fresh pass has the masks of the first": (
        "passes.py",
        "reseed(self.seed())",
        "self._start.restore()",
        "replay_the_masks",
    ),
    "fresh masks advance the random state": (
        "passes.py",
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
        "embeddings.py",
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
        "embeddings.py",
        "(int(real.sum()), embeddings.shape[-1])",
        "(real.numel(), embeddings.shape[-1])",
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
        "predictions.py",
        "        weights = _found_weights(loss, returned)\n",
        "        weights = torch.ones_like(logits[..., 0]) / logits[..., 0].numel()\n",
        "equals_the_reference",
    ),
    "hyper-parameters are lost in the spec": (
        "spec.py",
        "{getattr(method, k)}",
        "{hyperparameters(type(method))[k]}",
        "spec_round_trip",
    ),
    "copies carry the scratch memory": ("guards.py", "    def __reduce__(self)", "    def no_reduce(self)", "copies"),
}


# The engine of per-instance SAM: also the file of the tests.
ENGINE: dict[str, tuple[str, str, str, str, str]] = {
    "products see no perturbation": (
        "per_example/perturbed.py",
        "rows = outer.contract(rows, x, product.axis, term, self._products)",
        "pass",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "copies see no perturbation": (
        "per_example/perturbed.py",
        "perturbed = parameter + gradient",
        "perturbed = parameter + 0 * gradient",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "biases alone see no perturbation": (
        "per_example/perturbed.py",
        "rows = rows + bias.dense",
        "rows = rows + 0 * bias.dense",
        "OneBiasTwoWeights",
        "per_example/test_uses.py",
    ),
    "groups get each other's copies": (
        "per_example/perturbed.py",
        "perturbed.repeat_interleave(count // self._groups, 0)",
        "perturbed.repeat(count // self._groups, *[1] * parameter.ndim)",
        "LayerScale",
        "per_example/test_uses.py",
    ),
    "norms leave out biases": (
        "per_example/outer.py",
        "            ones = p.ones and q.ones\n",
        "            ones = False\n",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "perturbations leave out biases": (
        "per_example/outer.py",
        "products(x, term.x, ones=term.ones, factors=term.factors)",
        "products(x, term.x, factors=term.factors)",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "cross terms of tied parameters are left out": (
        "per_example/outer.py",
        "(1 if q is p else 2)",
        "(1 if q is p else 0)",
        "TwoLayersOneWeight",
        "per_example/test_uses.py",
    ),
    "gradients that are formed lie the wrong way": (
        "per_example/outer.py",
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
        "        if dropped.any():\n",
        "        if False:\n",
        "broken_example",
        "per_example/test_precision.py",
    ),
    "outer products are not dropped": (
        "per_example/gradient.py",
        "replace(t, b=t.b.masked_fill(dropped[:, None, None], 0))",
        "t",
        "dropped",
        "per_example/test_outer.py",
    ),
    "plain gradients are not dropped": (
        "per_example/gradient.py",
        "self.dense.masked_fill(dropped.view(-1, *[1] * (self.dense.ndim - 1)), 0)",
        "self.dense",
        "dropped",
        "per_example/test_outer.py",
    ),
    "totals leave out the factors": (
        "per_example/outer.py",
        "return b if self.factors is None else times(b, self.factors)",
        "return b",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "products leave out the factors": (
        "per_example/outer.py",
        "                product = product * factors[:, None, None]\n",
        "                pass\n",
        "equals_the_reference",
        "test_contracts.py",
    ),
    "products with and without factors are taken for the same": (
        "per_example/outer.py",
        "ones, of_factors, torch",
        "ones, torch",
        "what_is_contracted",
        "per_example/test_outer.py",
    ),
    "norms leave out the factors": (
        "per_example/outer.py",
        "square = square if factors is None else square * factors",
        "pass",
        "factor_scales",
        "per_example/test_outer.py",
    ),
    "second factors take the place of the first": (
        "per_example/outer.py",
        "factors=factors if self.factors is None else self.factors * factors",
        "factors=factors",
        "factor_scales",
        "per_example/test_outer.py",
    ),
    "the rows that matter are left out": (
        "per_example/outer.py",
        "topk(most, dim=1)",
        "topk(most, dim=1, largest=False)",
        "most_targets_are_ignored",
        "per_example/test_uses.py",
    ),
    "too few rows are kept": (
        "per_example/outer.py",
        "max(int(alive.sum(1).max()), 1)",
        "max(int(alive.sum(1).min()), 1)",
        "most_targets_are_ignored",
        "per_example/test_uses.py",
    ),
    "a product of older values is used": (
        "per_example/outer.py",
        "x.dtype, x._version",
        "x.dtype",
        "stale",
        "per_example/test_outer.py",
    ),
    "checkpointed regions share products": (
        "per_example/outer.py",
        "id(region[0]) if region else None",
        "None",
        "Checkpointed",
        "per_example/test_uses.py",
    ),
    "norms are in half precision": (
        "per_example/example_gradients.py",
        "gradient.square_norm(products) for",
        "gradient.square_norm(products).bfloat16() for",
        "float16",
        "per_example/test_precision.py",
    ),
    "the backward runs without the perturbation": (
        "per_example/uses.py",
        "if func in BACKWARDS:",
        "if func in ():",
        "Checkpointed",
        "per_example/test_uses.py",
    ),
    "a row is made of the first copy": (
        "per_example/uses.py",
        "value.parameters})[own, own]",
        "value.parameters})[0 * own, own]",
        "RecurrentFromZeros",
        "per_example/test_uses.py",
    ),
    "every example has the whole penalty": (
        "per_example/uses.py",
        "value.copies(copies).mean(0)",
        "value.copies(copies).sum(0)",
        "penalty",
        "per_example/test_uses.py",
    ),
    "one row of ids belongs to the examples": (
        "per_example/uses.py",
        "        return single and bool(self._given)",
        "        return False and bool(self._given)",
        "IdsOfOneRow",
        "per_example/test_uses.py",
    ),
    "what is written goes to another example": (
        "per_example/writes.py",
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
        "per_example/composed.py",
        "scores if mask is None else scores + mask",
        "scores",
        "MultiheadAttention",
        "per_example/test_uses.py",
    ),
    "outputs that are written into lose their gradient": (
        "per_example/record.py",
        "get_gradient_edge(_written_to(y, product))",
        "get_gradient_edge(y)",
        "ActivationInPlace",
        "per_example/test_uses.py",
    ),
    "batches are dictionaries": (
        "per_example/shared.py",
        "if isinstance(arguments, Mapping):",
        "if type(arguments) is dict:",
        "batch_in_anything",
        "per_example/test_uses.py",
    ),
    "uses that are put together are mixed up": (
        "per_example/gradient.py",
        "x=torch.cat([t.x for t in terms], 1)",
        "x=torch.cat([t.x for t in terms[::-1]], 1)",
        "RecurrentFromZeros",
        "per_example/test_uses.py",
    ),
    "a mask of weights is drawn per example": (
        "per_example/uses.py",
        "if name in _DROPOUT and found",
        "if name in () and found",
        "DroppedWeight",
        "per_example/test_uses.py",
    ),
    "inputs made in the closure are constants": (
        "per_example/uses.py",
        "if len(t) == len(tensors[0]) or (len(tensors[0]) == 1 and t.ndim > 1):",
        "if False:",
        "made_in_the_closure",
        "per_example/test_uses.py",
    ),
    "a hook stays": (
        "per_example/uses.py",
        "            self._hook.remove()\n",
        "            pass\n",
        "leaves_nothing",
        "per_example/test_leaves_nothing.py",
    ),
    "a mode stays": (
        "per_example/uses.py",
        "        super().__exit__(*error)\n",
        "",
        "leaves_nothing",
        "per_example/test_leaves_nothing.py",
    ),
    "groups are single examples": (
        "per_example/engine.py",
        "by_output, n // m)",
        "by_output, n)",
        "between_one_and_all",
        "per_example/test_uses.py",
    ),
    "gradients are not checked": (
        "per_example/engine.py",
        "            if wrong := unexplained(record.parameters, expected, gradients.totals(parameters), record.uses):",
        "            if wrong := {}:",
        "hidden",
        "per_example/test_refusals.py",
    ),
    "examples that meet are not seen": (
        "per_example/engine.py",
        "if check and n > 1:",
        "if False:",
        "refused_by_name and time_major_pooled",
        "per_example/test_refusals.py",
    ),
    "rows laid out in another way are not seen": (
        "per_example/check.py",
        "if apart is False or (apart is None and i in doubtful):",
        "if False:",
        "unpadded_pooled_in_the_loss",
        "per_example/test_refusals.py",
    ),
    "the model's output is taken to show nothing": (
        "per_example/record.py",
        "if place.shape[0] == examples]",
        "if False]",
        "returns_its_loss",
        "per_example/test_doubtful_uses.py",
    ),
    "only neighbours are kept apart": (
        "per_example/check.py",
        "range((examples - 1).bit_length())",
        "range(1)",
        "that_meet",
        "per_example/test_doubtful_uses.py",
    ),
    "another mode is not looked at": (
        "per_example/engine.py",
        " or self._training() != self._modes",
        "",
        "another_mode",
        "per_example/test_doubtful_uses.py",
    ),
    "what shows later is not looked for": (
        "per_example/engine.py",
        "(again or ",
        "(",
        "begins_closed",
        "per_example/test_doubtful_uses.py",
    ),
    "values are computed again with gradients": (
        "per_example/shared.py",
        "torch.set_grad_enabled(gradients)",
        "torch.set_grad_enabled(True)",
        "as_it_was",
        "per_example/test_doubtful_uses.py",
    ),
    "values are computed again in another precision": (
        "per_example/shared.py",
        "torch.autocast(device, dtype, lowered, cache_enabled=False)",
        "torch.autocast(device, enabled=False)",
        "precision",
        "per_example/test_doubtful_uses.py",
    ),
    "constants may change": (
        "per_example/shared.py",
        "if any(version != _version(t)",
        "if any(False",
        "cannot_follow",
        "per_example/test_doubtful_uses.py",
    ),
    "views may be written into": (
        "per_example/uses.py",
        "any(value.stale and",
        "any(False and",
        "cannot_follow",
        "per_example/test_doubtful_uses.py",
    ),
    "all values are known to each": (
        "per_example/shared.py",
        "    found = {id(t): found[id(t)] for t in tensors if id(t) in found}\n",
        "",
        "without_a_collection",
        "per_example/test_doubtful_uses.py",
    ),
    "buffers go on from pass to pass": (
        "passes.py",
        "                self._buffers_before.restore_written()\n",
        "",
        "same_in_every_pass",
        "test_forward_side_effects.py",
    ),
    "a grown cache is cut": (
        "guards.py",
        " and current.get(name) is buffer:",
        ":\n                    current[name] = buffer",
        "has_grown",
        "test_forward_side_effects.py",
    ),
    "another memory is forgotten": (
        "guards.py",
        "                param.data = data  #",
        "                pass  #",
        "another_memory",
        "test_forward_side_effects.py",
    ),
    "frozen parameters may be written": (
        "passes.py",
        "                self._refuse_writes(before)\n",
        "",
        "not_written_twice",
        "test_forward_side_effects.py",
    ),
    "an optimizer may step in the backward": (
        "passes.py",
        "if after != _versions(params):",
        "if False:",
        "steps_in_the_backward",
        "test_forward_side_effects.py",
    ),
    "a new layout is not checked": (
        "per_example/engine.py",
        " or (self._check and layout not in self._layouts),",
        ",",
        "looked_at_again",
        "per_example/test_refusals.py",
    ),
    "any gradient is a proof": (
        "per_example/engine.py",
        "if n > 1 and 0 < weight_space.norm(expected) < math.inf:",
        "if n > 1:",
        "is_no_proof",
        "per_example/test_refusals.py",
    ),
    "an infinite gradient is no gradient of the uses": (
        "per_example/check.py",
        "if not total.isfinite():",
        "if False:",
        "starts_too_large",
        "per_example/test_precision.py",
    ),
    "a parameter with gradient 0 is not checked": (
        "per_example/check.py",
        "if hidden or not",
        "if not",
        "zero_today",
        "per_example/test_refusals.py",
    ),
    "autocast is not allowed its rounding": (
        "per_example/check.py",
        "id(p) in coarse or p.dtype in HALVES",
        "p.dtype in HALVES",
        "test_autocast",
        "per_example/test_precision.py",
    ),
    "strange gradients pass": (
        "per_example/rules.py",
        'options.get("scale_grad_by_freq")',
        'options.get("")',
        "embedding_by_frequency",
        "per_example/test_refusals.py",
    ),
    "parameters in reentrant checkpoints are taken for unused": (
        "graph.py",
        '    "CheckpointFunctionBackward": _reentrant_checkpoint,',
        "",
        "reentrant",
        "per_example/test_refusals.py",
    ),
    "what is skipped is perturbed": (
        "per_example/record.py",
        "tuple(p for p in use.parameters if id(p) not in gone)",
        "use.parameters",
        "leaves_these_unperturbed",
        "per_example/test_refusals.py",
    ),
    "gradient-free uses are recorded": (
        "per_example/record.py",
        "if self._open and y.grad_fn is not None:",
        "if self._open:",
        "refused_by_name and custom_function",
        "per_example/test_refusals.py",
    ),
    "compiled parts run compiled under the engine": (
        "compiled.py",
        'return torch.compiler.set_stance("force_eager")',
        "return nullcontext()",
        "per_example_methods_are_exact and whole and skip",
        "test_compiled.py",
    ),
    "dropout masks are kept inside of compiled functions": (
        "dropout_masks.py",
        " and not torch.compiler.is_compiling()",
        "",
        "in_one_piece and a_function",
        "test_compiled.py",
    ),
    "dropout masks are kept of compiled models": (
        "dropout_masks.py",
        " and not is_compiled(model)",
        "",
        "in_one_piece and in_place",
        "test_compiled.py",
    ),
    "an infinite gradient enters friendly SAM's average": (
        "methods/friendly_sam.py",
        "if weight_space.norm(batch).isfinite():",
        "if True:",
        "infinite_gradient",
        "test_friendly_sam.py",
    ),
    "friendly SAM's average depends on the loss scale": (
        "passes.py",
        "return self._runtime.scaled(torch.ones((), device=self.params[0].device)).item()",
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
        "weight_space.py",
        "if not result.isfinite() and",
        "if False and",
        "squares_that_leave",
        "test_precision.py",
    ),
    "infinite squares of examples are taken for infinite gradients": (
        "per_example/example_gradients.py",
        "if not largest.isfinite():",
        "if True:",
        "squares_that_leave",
        "test_precision.py",
    ),
    "a static graph is not refused": (
        "graph.py",
        '    "_DDPSinkBackward": _data_parallel_sink,',
        "",
        "static_graph",
        "test_static_graph.py",
    ),
}
# Predictions and embeddings: likewise.
LOOKING: dict[str, tuple[str, str, str, str, str]] = {
    "two classes prove anything": (
        "predictions.py",
        "if x.shape[-1] <= 2:",
        "if False:",
        "refused",
        "test_predictions.py",
    ),
    "curvature proves anything": (
        "predictions.py",
        "and not _explains(weights, bent, p, unit, slope.detach())",
        "and False",
        "refused",
        "test_predictions.py",
    ),
    "straight losses weigh nothing": (
        "predictions.py",
        "(weights == 0) & flat",
        "(weights == 0)",
        "refused",
        "test_predictions.py",
    ),
    "certain predictions lose their weight": (
        "predictions.py",
        "-(bent * (1 - unit)).sum(-1) / ((p * unit).sum(-1) * others)",
        "(bent * unit).sum(-1) / ((p * unit).sum(-1) * (1 - (p * unit).sum(-1)))",
        "nearly_certain",
        "test_predictions.py",
    ),
    "float16 is not kept in its range": (
        "predictions.py",
        "if slope.dtype == torch.float16 else 0.0",
        "if False else 0.0",
        "small_weights",
        "test_predictions.py",
    ),
    "casts hide the logits": ("predictions.py", '"ToCopyBackward0", ', "", "before_a_cast", "test_predictions.py"),
    "classes that are ruled out are": (
        "predictions.py",
        ".clamp(min=lowest)",
        "",
        "ruled_out",
        "test_predictions.py",
    ),
    "padding is moved": (
        "embeddings.py",
        "(value * real[..., None]).detach()",
        "value.detach()",
        "padding_is_not_moved",
        "test_embeddings.py",
    ),
    "the decoder is moved too": (
        "embeddings.py",
        "if not inside:",
        "if False:",
        "share_one_table",
        "test_embeddings.py",
    ),
    "any ids will do": (
        "embeddings.py",
        "if isinstance(whole, Tensor) and not",
        "if False and not",
        "cannot_be_told",
        "test_embeddings.py",
    ),
    "the average does not move": (
        "methods/smart.py",
        "lerp_(p, 1 - self.beta)",
        "lerp_(p, 0)",
        "follows",
        "test_embeddings.py",
    ),
}
ALL = {**{name: (*m, "test_contracts.py") for name, m in MUTATIONS.items()}, **ENGINE, **LOOKING}

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
        path.write_text(source.replace(old, new))
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
