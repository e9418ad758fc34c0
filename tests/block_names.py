"""The names that the Python blocks of the documentation use without making them.

python -m block_names      runs the block that comes through stdin, with these names
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import deltasam


class Model(nn.Module):
    """Takes a batch as a positional tensor, or as keyword arguments with labels, as in the documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.linear(x)
        return logits if labels is None else SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


class Words(Model):
    """Looks its input up in a table first, for methods that move embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return super().forward(self.table(x).mean(1), labels)


def namespace(block: str) -> dict[str, Any]:
    """The names for a block."""
    of_words = re.search(r'make_method\("(r3f|freelb|smart)"', block)
    model = Words() if of_words else Model()
    x, y = torch.randint(10, (6, 5)) if of_words else torch.randn(6, 4), torch.randint(0, 3, (6,))
    batch = {"x": x, "labels": y}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    names = {
        "deltasam": deltasam, "torch": torch, "F": F, "model": model, "batch": batch, "optimizer": optimizer,
        "x": x, "y": y, "method": deltasam.SAM(model), "scaler": torch.amp.GradScaler("cpu"),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "losses": lambda: F.cross_entropy(model(x), y, reduction="none"),
        "loader": [(x, y)] * 2 if re.search(r"for x, y|x, y = loader", block) else [batch] * 2,
    }  # fmt: skip
    return names | trainer_names(block)


def trainer_names(block: str) -> dict[str, Any]:
    """What the pages on trainers train: a tiny BERT on random texts."""
    if "train_dataset" not in block:
        return {}
    import tiny_trainers as tiny

    return {"model": tiny.model(), "model_init": tiny.new_model, "train_dataset": tiny.rows()}


@contextmanager
def training(block: str) -> Iterator[None]:
    """See that what a block shows does train: each optimizer that steps in it moves a weight, and one does step.

    Raises:
        AssertionError: It does not.
    """
    before: dict[Optimizer, list[Tensor]] = {}
    moved: dict[Optimizer, bool] = {}

    def weights(optimizer: Optimizer) -> list[Tensor]:
        return [p.detach() for group in optimizer.param_groups for p in group["params"]]

    def pre(optimizer: Optimizer, *_: Any) -> None:
        before[optimizer] = [w.clone() for w in weights(optimizer)]

    def post(optimizer: Optimizer, *_: Any) -> None:
        same = all(map(torch.equal, before.pop(optimizer), weights(optimizer)))
        moved[optimizer] = moved.get(optimizer, False) or not same

    hooks = [register_optimizer_step_pre_hook(pre), register_optimizer_step_post_hook(post)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for optimizer, did in moved.items():
        assert did, f"a loop moves no weight: lr {[group['lr'] for group in optimizer.param_groups]}"
    assert moved or "optimizer.step()" not in block, "the optimizer never steps"


if __name__ == "__main__":
    block = sys.stdin.read()
    code = 1
    try:
        names = namespace(block)
        with training(block):
            exec(compile(block, "documentation", "exec"), names)
        code = 0
    except BaseException:  # noqa: BLE001  (it is shown, and the code says it)
        traceback.print_exc()
    sys.stderr.flush()
    # Not sys.exit: a group that is taken apart from one of its own threads, when the last wrapped model goes, waits for
    # ever (PyTorch 2.13).
    os._exit(code)
