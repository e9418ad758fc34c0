"""Per-instance SAM: every example has its own perturbation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative, one_of, whole
from deltasam.core.closure import example_losses_of, loss_of, losses_of
from deltasam.core.only import Only
from deltasam.core.passes import Closure, Passes, radius_ratio
from deltasam.core.repeats import is_of_changes, refuse_unlike
from deltasam.core.runtime import Runtime
from deltasam.method import Method, Step
from deltasam.per_example.coverage import Coverage
from deltasam.per_example.engine import Engine
from deltasam.per_example.perturbed_forward import perturbed_pass
from deltasam.per_example.recorder import NotCoveredError, Record


class PerInstanceSAM(Method, name="per_instance_sam"):
    """Mean gradient at each example's own adversarial weights: ``mean_i grad L_i(w + rho * g_i / |g_i|)``.

    ``g_i = grad L_i(w)``; also called m-sharpness. Exact, in two passes: the second runs as if every example had its
    own copy of the weights. Whether that is possible is determined as the model runs, and checked against plain PyTorch
    whenever a step does something new. A scalar loss is enough. Where examples interact in the loss (in-batch
    negatives), g_i is the gradient of the loss with respect to example i's copy. Per-example perturbations add up where
    a perturbation per batch averages out: use a smaller rho than for SAM.

    Cost: two passes, the first without gradients of the weights. A checked step (the first, steps 10, 100, ..., and
    those that do something new) takes about four times as long.

    Source: Foret et al., ICLR 2021 (arXiv 2010.01412), section 4.1 (m-sharpness); as per-instance perturbation
    in Zhou et al., Findings of EMNLP 2022 (arXiv 2112.08772). The two batched passes are this library's own.

    When: a result must not depend on the batch, on how it is split into micro-batches, or on the number of processes.
    Under data parallelism, where its first pass communicates nothing. With bfloat16 weights, where it loses less of the
    perturbation than methods that move weights.

    When not: BatchNorm in training mode, torch's recurrent layers, packed sequences: refused. Where memory is short: it
    keeps the inputs and gradients of all layers between the passes.

    Args:
        model: The model to train.
        rho: Radius of each perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        m: Number of consecutive examples that share a perturbation; divides the batch. The whole batch is SAM.
        unsupported: What to do where two passes cannot be exact: ``error``; ``loop``: one example at a time, with two
            passes over the batch for each, which needs one loss per example; or ``skip``: leave the parameters that
            cause it unperturbed.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, m is below 1, m does not divide the batch, or unsupported is
            none of the three.
        NotCoveredError: Two passes cannot be exact, and unsupported is ``error``. Names the parameters.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.005,
        m: int = 1,
        unsupported: str = "error",
        only: str | None = None,
    ) -> None:
        super().__init__(model)
        self.rho = nonnegative(type(self).__name__, "rho", rho)
        self.m = whole(type(self).__name__, "m", m)
        self.unsupported = one_of(type(self).__name__, "unsupported", unsupported, ("error", "loop", "skip"))
        self.only = only
        self.moving = Only(type(self).__name__, only)
        self._engine = self._new_engine()
        self._alone: frozenset[str] | None = None  # trained parameters for which it runs one example at a time

    def _new_engine(self) -> Engine:
        return Engine(self.model, skip=self.unsupported == "skip", only=self.moving)

    def coverage(self, closure: Closure | None = None) -> Coverage:
        """Report which rule handles each parameter, and whether exactly; prints as a table.

        Args:
            closure: Closure that is run and checked once, without side effects; None: report on the steps so far.

        Raises:
            RuntimeError: There was no step yet, and no closure is given.
        """
        if closure is not None:
            self._engine = self._new_engine()
            with suppress(NotCoveredError):
                self._engine.dry_run(Passes(self.model, closure, Runtime(), self._store), self.m)
        if self._engine.coverage is None:
            raise RuntimeError(
                "which parameters are covered shows when the model runs: give a closure, coverage(lambda: ...), or "
                "call backward() once before"
            )
        return self._engine.coverage

    @property
    def per_example(self) -> bool:
        """Always."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Parameters that are left unperturbed; or the trained parameters for which it runs one example at a time."""
        return self._engine.state_dict() if self._alone is None else {"alone": sorted(self._alone)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue without repeating the checks.

        Raises:
            ValueError: The state was saved by another method.
        """
        self.check_state(state, (), ("skipped", "checked"), ("alone",))
        alone = self.unsupported == "loop" and "alone" in state
        self._alone = frozenset(state["alone"]) if alone else None
        self._engine.load_state_dict(state)

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        with self._engine.eager(type(self).__name__):
            return super().fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        if self._alone is not None and self._alone == self._engine.trainable_names():
            losses = example_losses_of(passes.first(), f"{type(self).__name__}(unsupported='loop')").detach()
            return Step(losses.mean(), self._descend_one_by_one(passes, losses))
        output, record = self._engine.first(passes)
        losses = losses_of(output)
        self.look(passes, output, loss_of(output))
        try:
            metrics = self._descend_together(passes, losses, record)
            losses = record.losses  # of the pass that counts: with unsupported="skip" it may not be the first one
        except NotCoveredError as reason:
            # Sharded weights cannot be moved for one process alone.
            if self.unsupported != "loop" or passes.sharded or is_of_changes(reason):
                raise self._with_alternatives(reason) from None
            self.warn_once(f"{type(self).__name__} goes one example at a time: {reason}")
            del output
            with passes.at(guarded=True) as point:  # unwatched: watching may have changed what the model computes
                losses = example_losses_of(point.output, f"{type(self).__name__}(unsupported='loop')").detach()
            metrics = self._descend_one_by_one(passes, losses)
            self._alone = self._engine.trainable_names()
        return Step(losses.detach().mean(), metrics)

    def look(self, passes: Passes, output: Any, loss: Tensor) -> None:
        """Look at a pass at the weights as they are; a no-op, unless overridden.

        Args:
            passes: The passes of the micro-batch.
            output: What the closure returned.
            loss: The loss [] whose gradient is taken at perturbed weights next; its graph is kept.
        """

    def descent_loss(self, passes: Passes, output: Any, loss: Tensor) -> Tensor:
        """What is descended on [] at perturbed weights: the loss there, unless overridden."""
        return loss

    def _descend_together(self, passes: Passes, losses: Tensor, record: Record) -> dict[str, Tensor]:
        gradients = self._engine.gradients(passes, record, losses, self.m)
        norms = gradients.norms()
        factors = torch.where(norms > 0, self.rho / norms, 0.0)  # rho / inf is 0
        gradients.scale(factors)
        with perturbed_pass(passes, record, gradients) as point:
            perturbed_loss = passes.backward(self.descent_loss(passes, point.output, loss_of(point.output)))
        # No weight was moved or rounded: the radius is rho wherever the gradient is not 0.
        of_mean = norms / self.m if losses.ndim else norms
        return self._metrics(perturbed_loss, of_mean, (factors * norms).nan_to_num(0.0))

    def _descend_one_by_one(self, passes: Passes, losses: Tensor) -> dict[str, Tensor]:
        if (n := len(losses)) % self.m:
            raise ValueError(f"{type(self).__name__}(m={self.m}): m must divide the batch, which has {n} examples")
        groups = [slice(start, start + self.m) for start in range(0, n, self.m)]
        facts = [self._descend_group(passes, losses, group) for group in groups]
        perturbed, norms, radii = (torch.stack(column) for column in zip(*facts, strict=True))
        return self._metrics(perturbed.sum(), norms, radii)

    def _descend_group(self, passes: Passes, losses: Tensor, group: slice) -> tuple[Tensor, Tensor, Tensor]:
        # A separate graph for each group: a later forward may write into buffers that an earlier graph has saved.
        with passes.at(guarded=True) as point:
            again = example_losses_of(point.output, type(self).__name__)
            refuse_unlike(again.detach(), losses, passes)
            self.look(passes, point.output, again[group].sum() / len(losses))
            ascent = self.moving.grad(passes, again[group].mean())
        length = vectors.length(ascent)
        with passes.at(ascent, vectors.length_to(self.rho, length)) as point:
            perturbed = example_losses_of(point.output, type(self).__name__)[group]
            share = passes.backward(self.descent_loss(passes, point.output, perturbed.sum() / len(losses)))
            return share, length.norm, point.radius()

    def _metrics(self, perturbed_loss: Tensor, norms: Tensor, radii: Tensor) -> dict[str, Tensor]:
        return {
            "perturbed_loss": perturbed_loss,
            "ascent_norm": norms.mean(),
            "radius_ratio": radius_ratio(radii.mean(), self.rho),
            "group_grad_norms": norms,
            **({"example_norms": norms} if self.m == 1 else {}),
        }

    def _with_alternatives(self, reason: NotCoveredError) -> NotCoveredError:
        return NotCoveredError(
            f"{type(self).__name__}: {reason}\n"
            f"Ways out: freeze these parameters; unsupported='skip' leaves them unperturbed; unsupported='loop' is "
            f"exact for any model, one example at a time; or use SAM or DeltaSAM",
            specs=[f"{self.name}:unsupported={way}" for way in ("skip", "loop")],
        )
