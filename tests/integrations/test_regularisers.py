"""Methods that compare predictions, or move embeddings, under the trainers: found out, not told, what to do.

Beside each training runs a loop by hand whose closure gives the logits and what each of them weighs in the loss.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import deltasam
import regularisers
import tiny_trainers as tiny
from deltasam.integrations.hf import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from tiny_language_model import gpt2, texts, tokenizer

DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}


def train(kind: type, model: nn.Module, args: Any, data: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    recorded, states = regularisers.recording(kind)
    trainer = recorded(model, args, train_dataset=data, **options)
    trainer.train()
    return trainer, states


def cut(count: int) -> dict[str, int]:
    return {"per_device_train_batch_size": tiny.EXAMPLES // count, "gradient_accumulation_steps": count}


def distance(a: nn.Module, b: nn.Module) -> float:
    return float((tiny.weights_of(a) - tiny.weights_of(b)).norm())


def four_steps(runs: list[Any], count: int) -> list[list[Any]]:
    endless = itertools.cycle(runs)
    return [[next(endless) for _ in range(count)] for _ in range(4)]


def classified(count: int, smoothing: float = 0.0, scale: float = 1.0) -> list[list[Any]]:
    rows, size = tiny.rows(), tiny.EXAMPLES // count

    def run(call: Any, batch: dict[str, Tensor]) -> deltasam.Output:
        logits = call(**batch).logits
        loss = F.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=smoothing)
        weights = torch.full((size,), scale / tiny.EXAMPLES, dtype=logits.dtype)
        return deltasam.Output(loss * scale / tiny.EXAMPLES, logits, weights)

    batches = [tiny.collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    return four_steps([lambda call, b=b: run(call, b) for b in batches], count)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", regularisers.SPECS)
def test_trainer(spec: str, count: int, tmp_path: Path) -> None:
    model = tiny.model(**DROPOUT)
    args = TrainingArguments(**tiny.settings(tmp_path, spec, **cut(count)))
    trainer, states = train(Trainer, model, args, tiny.rows())
    expected = regularisers.by_hand(tiny.model(**DROPOUT), spec, classified(count), states)
    tiny.assert_close(trainer.model, expected, 1e-10)
    plain = regularisers.by_hand(tiny.model(**DROPOUT), "erm", classified(count), states)
    assert distance(plain, expected) > 1e-4  # it is not plain training that both did


@pytest.mark.parametrize("spec", ["r_drop:alpha=2.0", "smart:alpha=2.0,step_size=0.2,sigma=0.1"])
def test_label_smoothing(spec: str, tmp_path: Path) -> None:
    """The trainer's own loss, of labels that it takes out of the batch."""
    args = TrainingArguments(**tiny.settings(tmp_path, spec, label_smoothing_factor=0.2))
    kind, steps = transformers.BertForSequenceClassification, classified(1, smoothing=0.2)
    trainer, states = train(Trainer, tiny.model(kind, **DROPOUT), args, tiny.rows())
    tiny.assert_close(trainer.model, regularisers.by_hand(tiny.model(kind, **DROPOUT), spec, steps, states), 1e-10)


@pytest.mark.parametrize("spec", regularisers.SPECS)
def test_autocast(spec: str, tmp_path: Path) -> None:
    """The model returns its logits in float32, and computes the loss from what they were before."""
    args = TrainingArguments(**tiny.settings(tmp_path, spec, bf16=True))
    kind = transformers.BertForSequenceClassification
    trainer, states = train(Trainer, tiny.model(kind, **DROPOUT).float(), args, tiny.rows())
    steps = [
        [lambda call, run=run: torch.autocast("cpu", torch.bfloat16)(run)(call) for run in runs]
        for runs in classified(1)
    ]
    expected, plain = (
        regularisers.by_hand(tiny.model(kind, **DROPOUT).float(), s, steps, states) for s in (spec, "erm")
    )
    assert distance(trainer.model, expected) < 0.1 * distance(plain, expected)


def test_regression(tmp_path: Path) -> None:
    rows = [{**row, "labels": row["labels"].double()} for row in tiny.rows()]
    kind, spec = transformers.BertForSequenceClassification, "r_drop:alpha=2.0"
    args = TrainingArguments(**tiny.settings(tmp_path, spec))
    trainer, states = train(Trainer, tiny.model(kind, num_labels=1, **DROPOUT), args, rows)

    def run(call: Any, batch: dict[str, Tensor]) -> deltasam.Output:
        scores = call(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, 0]
        return deltasam.Output((scores - batch["labels"]).square(), scores, torch.full((4,), 0.25, dtype=scores.dtype))

    batches = [tiny.collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    steps = four_steps([lambda call, b=b: run(call, b) for b in batches], 1)
    expected = regularisers.by_hand(tiny.model(kind, num_labels=1, **DROPOUT), spec, steps, states)
    tiny.assert_close(trainer.model, expected, 1e-10)


def bart() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.WORDS, "d_model": 16, "max_position_embeddings": 16, "scale_embedding": True}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **tokens, dropout=0.3)).double()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", regularisers.SPECS)
def test_sequence_to_sequence(spec: str, count: int, tmp_path: Path) -> None:
    """BART does not take the count of a step's tokens: each of a micro-batch counts the same."""
    rows = []
    for i, row in enumerate(tiny.rows()):
        labels = row["input_ids"].clone()
        labels[2 + i % 4 :] = -100
        rows.append({**row, "labels": labels})
    args = Seq2SeqTrainingArguments(**tiny.settings(tmp_path, spec, **cut(count)))
    trainer, states = train(Seq2SeqTrainer, bart(), args, rows)

    def run(call: Any, batch: dict[str, Tensor], count: int) -> deltasam.Output:
        logits, labels = call(**batch).logits, batch["labels"]
        items = int((labels != -100).sum()) * count
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum") / items
        return deltasam.Output(loss, logits, (labels != -100).to(logits.dtype) / items)

    size, steps = tiny.EXAMPLES // count, []
    for start in itertools.islice(itertools.cycle(range(0, len(rows), tiny.EXAMPLES)), 4):
        parts = [tiny.collate(rows[i : i + size]) for i in range(start, start + tiny.EXAMPLES, size)]
        steps.append([lambda call, part=part: run(call, part, count) for part in parts])
    tiny.assert_close(trainer.model, regularisers.by_hand(bart(), spec, steps, states), 1e-6)  # its loss is in float32


@pytest.mark.parametrize("spec", [*regularisers.SPECS[:4], "r_drop"])
def test_fine_tuning_of_language_models(spec: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from deltasam.integrations.trl import SFTConfig, SFTTrainer

    def dropping() -> nn.Module:
        model = gpt2()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        return model

    assert issubclass(SFTTrainer, trl.SFTTrainer)
    options = {"bf16": False, "gradient_checkpointing": False, "max_length": 16}
    args = SFTConfig(**tiny.settings(tmp_path, spec, **options))
    data = datasets.Dataset.from_dict({"input_ids": texts()})
    trainer, states = train(SFTTrainer, dropping(), args, data, processing_class=tokenizer())

    def run(call: Any, part: list[list[int]]) -> deltasam.Output:
        longest, items = max(map(len, part)), sum(map(len, part))  # it counts the first token too
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in part]).double()
        logits = call(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(part), -1)
        weights = mask[:, 1:] / items
        return deltasam.Output((losses * weights).sum(), logits, weights)

    parts = [texts()[i : i + 4] for i in range(0, 12, 4)]
    steps = four_steps([lambda call, part=part: run(call, part) for part in parts], 1)
    tiny.assert_close(trainer.model, regularisers.by_hand(dropping(), spec, steps, states), 1e-6)


def lightning_module(returns: Any) -> Any:
    import lightning.pytorch as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny.model(transformers.BertForSequenceClassification, **DROPOUT)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            states.append(torch.get_rng_state())
            return returns(self.model(**batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    states: list[Tensor] = []
    return Module().train(), states


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", regularisers.SPECS)
def test_lightning(spec: str) -> None:
    """The training_step returns the logits beside the loss."""
    pytest.importorskip("lightning")
    from stacks.lightning_training import trainer_for

    module, states = lightning_module(lambda output: {"loss": output.loss, "logits": output.logits})
    loader = torch.utils.data.DataLoader(tiny.rows(8), batch_size=2)
    trainer_for(spec, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.5).fit(module, loader)
    expected = tiny.model(transformers.BertForSequenceClassification, **DROPOUT)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    method = deltasam.make_method(spec, expected)
    method.follow(optimizer, total_steps=2)
    passes = len(states) // 4
    for i in range(4):
        batch = tiny.collate(tiny.rows(8)[2 * i : 2 * i + 2])

        def run(batch: dict[str, Tensor] = batch) -> deltasam.Output:
            logits = expected(**batch).logits
            loss = F.cross_entropy(logits, batch["labels"]) / 2
            return deltasam.Output(loss, logits, torch.full((2,), 0.25, dtype=logits.dtype))

        torch.set_rng_state(states[i * passes] if "@" not in spec else states[[0, 2, 4, 5][i]])
        method.backward(run)
        if i % 2:
            torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    tiny.assert_close(module.model, expected, 1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_lightning_without_logits() -> None:
    pytest.importorskip("lightning")
    from stacks.lightning_training import trainer_for

    module, _ = lightning_module(lambda output: output.loss)
    loader = torch.utils.data.DataLoader(tiny.rows(4), batch_size=2)
    with pytest.raises(ValueError, match="RDrop compares predictions, but the closure returned no logits"):
        trainer_for("r_drop", max_epochs=1).fit(module, loader)
