"""Trains a small model under Lightning, and the same training as a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deltasam
from deltasam.integrations.lightning import MethodCallback

BATCH, BATCHES, CLASSES = 8, 6, 3
Batch = Sequence[Tensor]


def network(dropout: float = 0.2, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
    return nn.Sequential(*layers).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * BATCHES, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x.to(dtype), torch.randint(CLASSES, (len(x),), generator=generator))


def optimizer_and_scheduler(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


class Classifier(L.LightningModule):
    """An ordinary module: it knows nothing of methods."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = optimizer_and_scheduler(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PerExample(Classifier):
    """Gives one loss per example to a method that asks."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        losses = F.cross_entropy(self.model(batch[0]), batch[1], reduction="none")
        return {"loss": losses.mean(), "example_losses": losses}


def trainer_for(spec: str, **options: Any) -> L.Trainer:
    """A quiet trainer on the CPU with the callback; options may replace anything."""
    callbacks = [MethodCallback(spec), *options.pop("callbacks", [])]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 2}
    return L.Trainer(**{**quiet, **options}, callbacks=callbacks)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def lightning_weights(
    spec: str,
    *,
    model: nn.Module | None = None,
    dataset: Any = None,
    module: Callable[[nn.Module], L.LightningModule] = Classifier,
    batch_size: int = BATCH,
    seed: int = 5,
    **options: Any,
) -> Tensor:
    """All weights, flat, after training with ``L.Trainer(**options)`` and the callback."""
    model = network() if model is None else model
    loader = DataLoader(data() if dataset is None else dataset, batch_size=batch_size)
    trainer = trainer_for(spec, **options)
    torch.manual_seed(seed)
    trainer.fit(module(model), loader)
    return flat(model)


def plain_weights(
    spec: str,
    *,
    model: nn.Module | None = None,
    dataset: Any = None,
    batch_size: int = BATCH,
    seed: int = 5,
    max_epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """The same from a loop written by hand."""
    model = network() if model is None else model
    loader = DataLoader(data() if dataset is None else dataset, batch_size=batch_size)
    optimizer, scheduler = optimizer_and_scheduler(model)
    method = deltasam.make_method(spec, model)
    method.follow(optimizer, total_steps=max_epochs * -(-len(loader) // accumulate))
    runtime = deltasam.Runtime(scaler=scaler)

    def closure(x: Tensor, y: Tensor) -> Tensor:
        with nullcontext() if autocast is None else torch.autocast("cpu", autocast, cache_enabled=False):
            return F.cross_entropy(model(x), y) / accumulate

    torch.manual_seed(seed)
    for _ in range(max_epochs):
        waiting: list[Callable[[], Tensor]] = []
        batches = list(loader)
        for i, (x, y) in enumerate(batches, 1):
            waiting.append(lambda x=x, y=y: closure(x, y))
            last = i % accumulate == 0 or i == len(batches)
            if last or not method.needs_all_micro_batches:
                method.backward(waiting, runtime=runtime)
                waiting = []
            if last:
                _step(model, optimizer, scheduler, clip, scaler)
    return flat(model)


def _step(model: nn.Module, optimizer: Any, scheduler: Any, clip: float | None, scaler: Any) -> None:
    if scaler is not None:
        scaler.unscale_(optimizer)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    scheduler.step()
    optimizer.zero_grad()
