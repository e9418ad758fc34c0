"""One loss per example out of a trainer: right, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import tiny_trainers as tiny
from deltasam.integrations import hf
from deltasam.integrations.trainer_losses import example_losses

N, T = tiny.EXAMPLES, tiny.TOKENS
DECODER = {"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}


@dataclass
class Task:
    """A model, a batch, and the loss of some rows alone: the sum over what counts in them, and how many that are."""

    model: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    alone: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """From logits and labels."""
    causal: bool = False


def tokens(labels: Tensor | None = None, seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {"input_ids": torch.randint(1, 30, (N, T), generator=g), "attention_mask": torch.ones(N, T).long()}
    return {**batch, "labels": labels if labels is not None else ragged(g)}


def ragged(g: torch.Generator, classes: int = 30) -> Tensor:
    """Labels of tokens, of which a different number counts in each row."""
    labels = torch.randint(0, classes, (N, T), generator=g)
    counted = torch.tensor([T, 2, 5, 3])
    return labels.where(torch.arange(T) < counted[:, None], torch.tensor(-100))


def bert(kind: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, kind)(tiny.bert_config(**options))


def gpt2() -> nn.Module:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**DECODER, **dropout))


def classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels))


def squares(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return F.mse_loss(logits.view_as(labels), labels, reduction="sum"), torch.tensor(labels.numel())


def binary(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), torch.tensor(labels.numel())


def each_token(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), (labels != -100).sum()


def next_token(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return each_token(logits[:, :-1], labels[:, 1:])


g = torch.Generator().manual_seed(7)
TASKS = {
    "classification": Task(
        bert("BertForSequenceClassification"), tokens(torch.randint(0, 3, (N,), generator=g)), classes
    ),
    "regression": Task(
        bert("BertForSequenceClassification", num_labels=1), tokens(torch.randn(N, generator=g)), squares
    ),
    "several_scores": Task(
        bert("BertForSequenceClassification", problem_type="regression"),
        tokens(torch.randn(N, 3, generator=g)),
        squares,
    ),
    "multi_label": Task(
        bert("BertForSequenceClassification", problem_type="multi_label_classification"),
        tokens(torch.randint(0, 2, (N, 3), generator=g).float()),
        binary,
    ),
    "token_classification": Task(bert("BertForTokenClassification"), tokens(ragged(g, 3)), each_token),
    "masked_lm": Task(bert("BertForMaskedLM"), tokens(), each_token),
    "causal_lm": Task(gpt2, tokens(), next_token, causal=True),
    "t5": Task(
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
        tokens() | {"decoder_input_ids": tokens(seed=5)["input_ids"]},
        each_token,
    ),
}


def trainer_for(task: Task, folder: Path, kind: type = hf.Trainer, **options: Any) -> Any:
    torch.manual_seed(0)
    model = task.model().eval()
    arguments = hf.Seq2SeqTrainingArguments if kind is hf.Seq2SeqTrainer else hf.TrainingArguments
    args = arguments(**tiny.settings(folder, "delta_sam:rho=0.1,weights=slopes", **options))
    data = [{key: value[i] for key, value in task.batch.items()} for i in range(N)]
    return kind(model, args, train_dataset=data)


def given(trainer: Any, batch: dict[str, Tensor], items: Any = None, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The trainer's loss, and the losses of the examples."""
    trainer.current_gradient_accumulation_steps = steps
    output = trainer._closure(trainer.model, batch, items)()
    return output.loss, output.example_losses()


def expected(task: Task, model: nn.Module) -> tuple[Tensor, Tensor]:
    """What each row alone adds to the sum [n], and how much counts in all."""
    sums, counts = [], []
    for i in range(N):
        rows = {key: value[i : i + 1] for key, value in task.batch.items()}
        total, count = task.alone(model(**rows).logits, rows["labels"])
        sums.append(total)
        counts.append(count)
    return torch.stack(sums), torch.stack(counts).sum()


@pytest.mark.parametrize("name", TASKS)
def test_each_loss_is_that_of_the_example_alone(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    trainer = trainer_for(task, tmp_path, hf.Seq2SeqTrainer if name == "t5" else hf.Trainer)
    loss, losses = given(trainer, task.batch)
    sums, count = expected(task, trainer.model)
    torch.testing.assert_close(losses, N * sums / count, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TASKS)
def test_with_accumulation(name: str, tmp_path: Path) -> None:
    """The trainer divides by what counts in all micro-batches, or by their number, as the model has it."""
    task = TASKS[name]
    trainer = trainer_for(task, tmp_path, hf.Seq2SeqTrainer if name == "t5" else hf.Trainer)
    items = trainer._get_num_items_in_batch([task.batch, tokens(seed=4) | {"labels": task.batch["labels"]}], "cpu")
    loss, losses = given(trainer, task.batch, items, steps=2)
    sums, _ = expected(task, trainer.model)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses / losses.sum(), sums / sums.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["classification", "token_classification", "causal_lm", "t5"])
def test_label_smoothing(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    trainer = trainer_for(task, tmp_path, label_smoothing_factor=0.2)
    loss, losses = given(trainer, task.batch)
    alone = []
    for i in range(N):
        rows = {key: value[i : i + 1] for key, value in task.batch.items()}
        logits = trainer.model(**rows).logits
        smoothed = trainer.label_smoother({"logits": logits}, rows["labels"], shift_labels=task.causal)
        alone.append(smoothed * task.alone(logits, rows["labels"])[1])
    torch.testing.assert_close(losses, N * torch.stack(alone) / expected(task, trainer.model)[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("half", ["autocast", "pure"])
def test_in_bfloat16(name: str, half: str, tmp_path: Path) -> None:
    task = TASKS[name]
    kind = hf.Seq2SeqTrainer if name == "t5" else hf.Trainer
    trainer = trainer_for(task, tmp_path, kind, bf16=half == "autocast")
    batch = task.batch
    if half == "pure":
        trainer.model.to(torch.bfloat16)
        if batch["labels"].is_floating_point():
            batch = {**batch, "labels": batch["labels"].bfloat16()}
    else:
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
    loss, losses = given(trainer, batch)
    torch.testing.assert_close(losses.float().mean(), loss.float(), rtol=2e-2, atol=1e-3)
    trainer.model.float()
    sums, count = expected(task, trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
    torch.testing.assert_close(losses.float(), N * sums / count, rtol=5e-2, atol=2e-2)


def test_a_loss_of_ones_own_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    def focal(output: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        losses = F.cross_entropy(output.logits, labels, reduction="none")
        return ((1 - torch.exp(-losses)) ** 2 * losses).mean()

    task = TASKS["classification"]
    trainer = trainer_for(task, tmp_path)
    trainer.compute_loss_func = focal
    with pytest.raises(ValueError, match=r"override example_losses in your trainer, or use a method.*per_instance_sam"):
        trainer.train()


def test_example_losses_overridden(tmp_path: Path) -> None:
    class Focal(hf.Trainer):
        def example_losses(self, output: Any, labels: Any, loss: Tensor, num_items_in_batch: Any) -> Tensor:
            losses = F.cross_entropy(output.logits, labels, reduction="none")
            return (1 - torch.exp(-losses)) ** 2 * losses

    task = TASKS["classification"]
    trainer = trainer_for(task, tmp_path, Focal)
    trainer.compute_loss_func = lambda output, labels, num_items_in_batch: (
        (1 - torch.exp(-F.cross_entropy(output.logits, labels, reduction="none"))) ** 2
        * F.cross_entropy(output.logits, labels, reduction="none")
    ).mean()
    trainer.train()
    assert all(entry["perturbed_loss"] > entry["loss"] for entry in trainer.state.log_history[:4])


def test_no_labels_is_an_error(tmp_path: Path) -> None:
    """The loss of a model that answers questions has no labels of that name."""
    task = Task(bert("BertForQuestionAnswering", num_labels=2), tokens(), classes)
    trainer = trainer_for(task, tmp_path)
    batch = {k: v for k, v in task.batch.items() if k != "labels"}
    positions = torch.tensor([1, 2, 3, 4])
    with pytest.raises(ValueError, match="override example_losses"):
        given(trainer, {**batch, "start_positions": positions, "end_positions": positions})


def test_a_model_that_runs_twice_is_an_error(tmp_path: Path) -> None:
    class Twice(hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Tensor:
            return sum(F.cross_entropy(model(**inputs).logits, inputs["labels"]) for _ in range(2)) / 2

    trainer = trainer_for(TASKS["classification"], tmp_path, Twice)
    with pytest.raises(ValueError, match="the model ran 2 times for one loss"):
        given(trainer, TASKS["classification"].batch)


# False matches


def asked(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    return example_losses(SimpleNamespace(logits=logits), labels, loss, items=None, smoothing=0.0, scales=[1.0])


def test_two_ways_that_agree_in_the_number_are_told_apart_by_the_gradient() -> None:
    """A head of zeros: the loss of every token is log(words), whichever is to be predicted."""
    logits = torch.zeros(N, T, 5, requires_grad=True)
    labels = torch.randint(0, 5, (N, T), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = -100
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    aligned = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(shifted, aligned)
    counts = (labels != -100).sum(1)
    after_first = (labels[:, 1:] != -100).sum(1)
    for_aligned, for_shifted = asked(logits, labels, aligned), asked(logits, labels, shifted)
    torch.testing.assert_close(for_aligned, N * counts / counts.sum() * aligned)
    torch.testing.assert_close(for_shifted, N * after_first / after_first.sum() * shifted)


def test_another_loss_of_the_same_number_is_an_error() -> None:
    logits = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    real = F.cross_entropy(logits, labels)
    other = logits.square().mean()
    with pytest.raises(ValueError, match="override example_losses"):
        asked(logits, labels, other * (real / other).detach())
    torch.testing.assert_close(asked(logits, labels, real).mean(), real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_that_is_almost_the_same_is_an_error(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(N, 3, dtype=dtype), torch.tensor([0, 1, 2, 0])
    loss = F.cross_entropy(logits, labels)
    asked(logits, labels, loss)
    with pytest.raises(ValueError, match="override example_losses"):
        asked(logits, labels, loss * (1 + 1e-4))


def test_what_cannot_be_told_apart_is_an_error() -> None:
    """Without a graph both the tokens and the following tokens would do, and they weight the examples differently."""
    labels = torch.full((N, T), 2)
    labels[0, :4] = -100
    logits = torch.zeros(N, T, 5)
    with pytest.raises(ValueError, match="override example_losses"):
        asked(logits, labels, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_infinite_loss_is_no_error(bad: float) -> None:
    """A loss scaler sees it and skips the step, as in plain training."""
    logits, labels = torch.full((N, 3), bad), torch.tensor([0, 1, 2, 0])
    assert not asked(logits, labels, F.cross_entropy(logits, labels)).isfinite().any()


def test_a_batch_in_which_nothing_counts_is_as_in_the_trainer() -> None:
    logits, labels = torch.randn(N, T, 5), torch.full((N, T), -100)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert loss.isnan()
    assert asked(logits, labels, loss).isnan().all()
