"""One training run: one method, one seed, start to end.

A run is a function of data, configuration, method and seed. Where it stands is the number of steps it has
recorded: the batch, the epoch, the best evaluation and whether to stop all follow from the records, so a
checkpoint holds no second account of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from deltasam import make_method
from deltasam.core.closure import Output
from deltasam.diagnostics.examples import ExampleRecorder
from deltasam.diagnostics.examples.csv_file import to_csv
from deltasam.diagnostics.peak_memory import PeakMemory
from deltasam.errors import UserError
from deltasam.lab.data.dataset import SELECTED, Data
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.batches import shuffled
from deltasam.lab.train.config import TrainConfig, check_same_options
from deltasam.lab.train.device import own_device
from deltasam.lab.train.distributed import SilentPasses, average_gradients, start_as_main
from deltasam.lab.train.example_records import extremes
from deltasam.lab.train.kept_states import digest
from deltasam.lab.train.random_state import (
    deterministic_algorithms,
    random_state,
    restore_random_state,
    seed_everything,
)
from deltasam.lab.train.results import EvaluationRecord, RunResult, StepRecord, seconds_per_step
from deltasam.lab.train.tasks import make_task
from deltasam.lab.train.tasks.first_pass import FirstPass
from deltasam.lab.train.variant import full_spec, split_variant


class Run:
    """A run that goes forward one step at a time.

    For one seed every method sees the same data order, initial head and dropout masks. Several processes share
    the rows of each step; dropout masks then differ from one process to the next.

    Args:
        data: Training and evaluation data.
        config: How to train.
        method: Spec of the method, ``sam:rho=0.05``, maybe with training options of its own, ``erm+epochs=12``.
        seed: Of the head, the data order and dropout.
        trial: Whether it will take no step: what takes long before the first one is left out.

    Raises:
        UserError: The model cannot be loaded or does not fit the configuration.
    """

    def __init__(self, data: Data, config: TrainConfig, method: str, seed: int, *, trial: bool = False) -> None:
        spec, own = split_variant(method)
        config = dataclasses.replace(config, **own)
        self.data, self.config, self.seed = data, config, seed
        self.device = own_device(config.device)
        self._memory, self._peak = PeakMemory(self.device), 0.0
        seed_everything(seed)
        self.task = make_task(data, config, self.device)
        if not trial:
            self.task.prepare()
        self.model = self.task.model
        self.method = make_method(spec, self.model)
        self.variant = full_spec(method)
        self.steps_per_epoch = math.ceil(len(self.task) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.optimizer, self.scheduler = make_optimizer(self.model, config, self.total_steps)
        self.method.follow(self.optimizer, total_steps=self.total_steps)
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.examples = ExampleRecorder(len(self.task))
        self._refuse_other_runs()
        start_as_main(self.model)
        # Again: what a method draws while it is made must not shift the dropout masks.
        seed_everything(seed + _SEEDS_APART * processes.rank())

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step ended an epoch."""
        return bool(self.steps) and len(self.steps) % self.steps_per_epoch == 0

    @property
    def evaluation_due(self) -> bool:
        """Whether the model is to be measured now: after every so many epochs, and when training ends."""
        done, every = len(self.steps) // self.steps_per_epoch, self.config.evaluate_every
        ended = len(self.steps) >= self.total_steps or self.diverged
        return ended or (self.at_epoch_end and every > 0 and done % every == 0)

    @property
    def diverged(self) -> bool:
        """Whether a loss, in training or evaluation, was not finite."""
        losses = [s.loss for s in self.steps[-1:]] + [e.metrics["loss"] for e in self.evaluations[-1:]]
        return not all(map(math.isfinite, losses))

    @property
    def best(self) -> EvaluationRecord | None:
        """The first evaluation with the largest metric that chooses; NaN is never best."""
        return _best(self.evaluations, self.data.chosen_by)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, the run diverged, or patience ran out."""
        return len(self.steps) >= self.total_steps or self.diverged or self._out_of_patience()

    @functools.cached_property
    def frozen_digest(self) -> str:
        """Digest of the parameters that are not trained."""
        return digest(self._frozen.values())

    def step(self) -> StepRecord:
        """Train on the next batch.

        Raises:
            UserError: The method cannot work on such a batch.
        """
        started = time.perf_counter()
        number = len(self.steps)
        rows = self.rows(number)
        mine = processes.part(rows)
        # Without a row of its own a process goes through one of the others', which counts nothing.
        seen = mine or rows[:1]
        share = len(mine) * processes.count() / len(rows)
        first = FirstPass(self.task)
        try:
            step = self.method.backward(self.closure(seen, share, first.note), runtime=SilentPasses())
        except ValueError as error:
            raise UserError(f"{self.method.spec}: {error}") from error
        average_gradients(self.model)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self._update()
        self._prefetch(number + 1)
        facts = self._record(step.metrics, rows, first.of_examples(step.metrics, len(mine), share), share)
        seconds = time.perf_counter() - started  # after the numbers were read: they wait for the device
        epoch = (number + 1) / self.steps_per_epoch
        self.steps.append(
            StepRecord(step=number + 1, epoch=epoch, seconds=seconds, learning_rate=learning_rate, **facts)
        )
        return self.steps[-1]

    def rows(self, step: int) -> list[int]:
        """The training rows of a step, counted from 0; it may lie beyond the last."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.config.batch_size
        order = shuffled(len(self.task), self.seed, epoch)
        return order[start : start + self.config.batch_size]

    def closure(
        self, rows: list[int], share: float = 1.0, watch: Callable[[Output], None] | None = None
    ) -> Callable[[], Output]:
        """One forward on some training rows: one loss per example [rows].

        Args:
            rows: Counted from 0.
            share: Weight of each row: where processes have unequal numbers of rows, it makes the mean of their
                means the mean over all rows.
            watch: Shown each output before that.
        """

        def forward() -> Output:
            output = self.task.output(rows)
            if watch is not None:
                watch(output)
            return output if share == 1 else output.times(share)

        return forward

    def evaluate(self) -> EvaluationRecord:
        """Measure the model as it is on the evaluation data; all NaN once the run has diverged."""
        metrics = self.task.evaluate()
        if self.diverged:
            metrics = dict.fromkeys(metrics, math.nan)
        epoch = len(self.steps) / self.steps_per_epoch
        record = EvaluationRecord(step=len(self.steps), epoch=epoch, metrics=metrics)
        if self.data.chosen_by != self.data.metric:
            chosen = (_best([*self.evaluations, record], self.data.chosen_by) or record).metrics
            at_chosen = {f"{name}{SELECTED}": chosen[name] for name in metrics}
            record = dataclasses.replace(record, metrics={**metrics, **at_chosen})
        self.evaluations.append(record)
        return record

    def result(self) -> RunResult:
        """What the run leaves behind, once it has been evaluated."""
        table = self.examples.frame(self.data.describe(), classes=self.task.classes)
        return RunResult(
            method=self.variant,
            seed=self.seed,
            metric=self.data.metric,
            metrics=self.evaluations[-1].metrics,
            seconds_per_step=seconds_per_step(self.steps),
            peak_memory_mib=self._peak_mib(),
            reported=self.data.reported,
            one_class=self.task.one_class,
            steps=self.steps,
            evaluations=self.evaluations,
            examples=extremes(table),
            weights=table["mean_weight"].dropna().tolist() if "mean_weight" in table else [],
            detection=self.examples.detection(table["flipped"].tolist()) if "flipped" in table else {},
            table=to_csv(table),
        )

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of this run: a checkpoint fits only a run with the same."""
        own = {"method": self.variant, "seed": self.seed, "data": self.data.fingerprint}
        return {**own, **dataclasses.asdict(self.config), "processes": processes.count()}

    def state_dict(self) -> dict[str, Any]:
        """Everything ``load_state_dict`` needs, on every process, to go on as if the run had never stopped.

        Of parameters that are not trained there is a digest only: a fresh run loads them with the model.
        """
        frozen = self._frozen
        return {
            "model": {name: value for name, value in self.model.state_dict().items() if name not in frozen},
            "frozen": self.frozen_digest,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "random": processes.gather(random_state(self.device)),
            "steps": [dataclasses.asdict(s) for s in self.steps],
            "evaluations": [dataclasses.asdict(e) for e in self.evaluations],
            "examples": self.examples.state_dict(),
            "peak_memory_mib": self._peak_mib(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        before = {name: value for name, value in self.model.state_dict().items() if name in self._frozen}
        self.model.load_state_dict({**before, **state["model"]})  # old checkpoints hold the frozen ones too
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.method.load_state_dict(state["method"])
        self.steps = [StepRecord(**s) for s in state["steps"]]
        self.evaluations = [EvaluationRecord(**e) for e in state["evaluations"]]
        self.examples.load_state_dict(state["examples"])
        self._peak = state["peak_memory_mib"] or 0.0
        restore_random_state(state["random"][processes.rank()], self.device)

    @functools.cached_property
    def _frozen(self) -> dict[str, Tensor]:
        """The parameters that are not trained, by every name they have."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if not parameter.requires_grad}

    def _refuse_other_runs(self) -> None:
        if processes.count() > 1:
            remedy = "start every process with the same options and the same data"
            first, *others = processes.gather(self.identity())
            for other in others:
                check_same_options(first, other, "the run of process 0", remedy)

    def _record(
        self, metrics: dict[str, Tensor], rows: list[int], mine: dict[str, Tensor], share: float
    ) -> dict[str, float]:
        """The facts of a step, means over the processes; what each knows of its own examples is noted."""
        own = {name: _number(metrics, name) for name in _FACTS}
        own["radius_ratio"] *= share  # the others are in units of the loss and have it already
        facts, parts = zip(*processes.gather((own, mine)), strict=True)
        known = [name for name in mine if all(name in part for part in parts)]
        self.examples.add(rows, **{name: torch.cat([part[name] for part in parts]) for name in known})
        return {name: sum(f[name] for f in facts) / len(facts) for name in _FACTS}

    def _prefetch(self, step: int) -> None:
        """Prepare the rows of a step while a GPU is busy with the one before."""
        if self.device.startswith("cuda") and step < self.total_steps:
            rows = self.rows(step)
            self.task.prefetch(processes.part(rows) or rows[:1])

    def _update(self) -> None:
        clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _out_of_patience(self) -> bool:
        since_best = sum(e.step > (self.best.step if self.best else 0) for e in self.evaluations)
        return 0 < self.config.patience <= since_best

    def _peak_mib(self) -> float | None:
        known = [mib for mib in processes.gather(self._memory.mib()) if mib is not None]
        return max([*known, self._peak]) if known else None


def train_run(run: Run, *, on_step: Callable[[Run], None], on_evaluation: Callable[[Run], None]) -> RunResult:
    """Carry a run to its end, evaluating when it is due.

    Args:
        run: Fresh, or resumed from a checkpoint.
        on_step: Called after every step (and its evaluation): progress, checkpoints.
        on_evaluation: Called after every evaluation: keep the best model.
    """
    with deterministic_algorithms():
        while not run.finished:
            run.step()
            if run.evaluation_due:
                run.evaluate()
                on_evaluation(run)
            on_step(run)
    run.method.training_ended()
    return run.result()


def _best(evaluations: Sequence[EvaluationRecord], metric: str) -> EvaluationRecord | None:
    valid = [e for e in evaluations if not math.isnan(e.metrics[metric])]
    return max(valid, key=lambda e: e.metrics[metric], default=None)


_SEEDS_APART = 1_000_003  # of one process from the next: as far as no one counts seeds
_FACTS = ("loss", "perturbed_loss", "ascent_norm", "radius_ratio")


def _number(metrics: dict[str, Tensor], name: str) -> float:
    return float(metrics[name]) if name in metrics else math.nan


MAX_GRAD_NORM = 1.0
"""Gradients longer than this are scaled down to it before each step."""


def make_optimizer(model: nn.Module, config: TrainConfig, total_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """The optimizer and its schedule. It decays matrices only: biases and the scales of norms have one dimension."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: 26 ms and not 143 for the 22 million weights of MiniLM on one CPU core.
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    warmup_steps = round(config.warmup * total_steps)

    def factor(step: int) -> float:  # as transformers' linear schedule, whose import takes more than a second
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return optimizer, LambdaLR(optimizer, factor)
