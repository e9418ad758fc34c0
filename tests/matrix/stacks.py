"""The stacks that run in one process: each trains the task with a method, in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deltasam
from deltasam import reference
from matrix import task
from matrix.task import MAX_NORM, ROWS, STEPS, Task

PLAIN = Task()
HALVES = Task(batches=task.batches(2))
# Trainers give their mean loss.
MEANS = Task(batches=task.batches(2), by_slopes=True)


@dataclass(frozen=True)
class Stack:
    """A way to train.

    Attributes:
        name: As the table shows it.
        train: Trains with the method of a spec, in a folder for scratch; returns the trained weights.
        task: What the loop by hand trains.
        tolerance: Largest error; that of float64 unless the stack rounds.
    """

    name: str
    train: Callable[[str, Path], reference.Weights]
    task: Task = PLAIN
    tolerance: float = 1e-9


STACKS: dict[str, Stack] = {}


def stack(name: str, **options: Any) -> Callable[[Callable[[str, Path], reference.Weights]], Any]:
    """Register a function that trains."""

    def register(train: Callable[[str, Path], reference.Weights]) -> Any:
        STACKS[name] = Stack(name, train, **options)
        return train

    return register


def loop(
    spec: str,
    model: nn.Module,
    *,
    micro: int = 1,
    autocast: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    call: nn.Module | None = None,
) -> reference.Weights:
    """A plain loop."""
    method = deltasam.make_method(spec, model)
    optimizer, scheduler = task.optimizer_of(model)
    method.follow(optimizer, total_steps=STEPS)

    def closure(batch: task.Batch) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return task.losses(model if call is None else call, batch) / micro

        return run

    for parts in task.batches(micro):
        closures = [closure(batch) for batch in parts]
        for given in [closures] if method.needs_all_micro_batches else closures:
            method.backward(given, runtime=deltasam.Runtime(scaler=scaler))
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return task.trained_weights(model)


def float32() -> nn.Module:
    return task.make_model(torch.float32)


def bfloat16() -> nn.Module:
    return task.make_model(torch.bfloat16)


def autocast_losses(call: Any, batch: task.Batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return task.losses(call, batch)


@stack("plain loop")
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, task.make_model())


@stack("gradient accumulation", task=HALVES)
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, task.make_model(), micro=2)


@stack("autocast bfloat16", task=Task(float32, autocast_losses, by_slopes=True), tolerance=0.02)
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, float32(), autocast=True)


@stack("GradScaler", task=Task(float32), tolerance=5e-4)  # slopes are small differences of float32 losses
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, float32(), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12))


@stack("pure bfloat16", task=Task(bfloat16, by_slopes=True), tolerance=0.04)
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, bfloat16())


def checkpointed() -> nn.Module:
    model: Any = task.make_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


@stack("gradient checkpointing")
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, checkpointed())


def with_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = task.make_model()
    config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"], init_lora_weights=False)
    torch.manual_seed(2)
    return get_peft_model(model, config).double()


@stack("PEFT LoRA", task=Task(with_lora))
def _(spec: str, folder: Path) -> reference.Weights:
    return loop(spec, with_lora())


@stack("torch.compile (aot_eager)")
def _(spec: str, folder: Path) -> reference.Weights:
    model = task.make_model()
    torch._dynamo.reset()
    return loop(spec, model, call=torch.compile(model, backend="aot_eager"))  # type: ignore[arg-type]


@stack("Accelerate", task=Task(batches=task.batches(2), divided=False))
def _(spec: str, folder: Path) -> reference.Weights:
    from accelerate import Accelerator

    from deltasam.integrations.accelerate import AccelerateRuntime

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = task.make_model()
    optimizer, scheduler = task.optimizer_of(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    method = deltasam.make_method(spec, model)
    method.follow(optimizer, total_steps=STEPS)
    runtime, waiting = AccelerateRuntime(accelerator), []
    for batch in [batch for parts in task.batches(2) for batch in parts]:
        with accelerator.accumulate(model):
            waiting.append(lambda batch=batch: task.losses(model, batch))
            if accelerator.sync_gradients or not method.needs_all_micro_batches:
                method.backward(waiting, runtime=runtime)
                waiting = []
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            if accelerator.sync_gradients:
                scheduler.step()
            optimizer.zero_grad()
    return task.trained_weights(model)


ADAM = {"optim": "adamw_torch", "adam_epsilon": task.ADAM_EPS, "weight_decay": 0.0}


def trainer_options(folder: Path, micro: int = 1) -> dict[str, Any]:
    """Arguments of a Hugging Face trainer that make it train as the loop by hand does."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS // micro,
        "gradient_accumulation_steps": micro,
        "num_train_epochs": 1,
        "learning_rate": task.ADAM_LR if task.adaptive() else task.LR,
        "lr_scheduler_type": "linear",
        **(ADAM if task.adaptive() else {"optim": "sgd", "optim_args": f"momentum={task.MOMENTUM}"}),
        "max_grad_norm": MAX_NORM,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 100,
        "dataloader_pin_memory": False,
    }


def hugging_face(spec: str, folder: Path, micro: int) -> reference.Weights:
    from deltasam.integrations.hf import Trainer, TrainingArguments

    arguments = TrainingArguments(method=spec, **trainer_options(folder, micro))
    trainer = Trainer(task.make_model(), arguments, train_dataset=task.rows())
    trainer.loss_is_scaled_for_ga = False  # this BERT takes the mean of each micro-batch, though it could be told more
    trainer.train()
    return task.trained_weights(trainer.model)


@stack("transformers Trainer", task=Task(by_slopes=True))
def _(spec: str, folder: Path) -> reference.Weights:
    return hugging_face(spec, folder, 1)


@stack("transformers Trainer, accumulation", task=MEANS)
def _(spec: str, folder: Path) -> reference.Weights:
    return hugging_face(spec, folder, 2)


def tiny_t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    smooth = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}
    config = T5Config(**size, **smooth, pad_token_id=0, decoder_start_token_id=0, tie_word_embeddings=True)
    return T5ForConditionalGeneration(config).double()


def sequences() -> list[task.Batch]:
    """Rows whose labels are sequences of different lengths."""
    made = []
    for i, row in enumerate(task.rows()):
        labels = row["input_ids"].flip(0).masked_fill(torch.arange(task.LENGTH) < i % 4, -100)
        made.append({**row, "labels": labels})
    return made


def sequence_batches(micro: int) -> list[list[task.Batch]]:
    """The micro-batches of each step, each with the number of its step's tokens."""
    size, steps = ROWS // micro, []
    for start in range(0, STEPS * ROWS, ROWS):
        rows = sequences()[start : start + ROWS]
        tokens = sum((row["labels"] != -100).sum() for row in rows)
        parts = [task.stacked(rows[k : k + size]) for k in range(0, ROWS, size)]
        steps.append([{**part, "tokens": tokens, "micro": torch.tensor(micro)} for part in parts])
    return steps


def token_losses(call: Any, batch: task.Batch, *, shift: bool = False) -> torch.Tensor:
    """What each row adds to the sum over all tokens of the step, over their number; times the rows, so that the mean
    over rows and micro-batches is the trainer's loss.
    """
    inputs = {k: v for k, v in batch.items() if k not in ("tokens", "micro") and not (shift and k == "labels")}
    logits, labels = call(**inputs).logits, batch["labels"]
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    sums = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return sums.view(len(labels), -1).sum(1) * (len(labels) * batch["micro"] / batch["tokens"])


# These models compute their loss in float32.
@stack(
    "transformers Seq2SeqTrainer",
    task=Task(tiny_t5, token_losses, sequence_batches(2), by_slopes=True, divided=False),
    tolerance=1e-4,
)
def _(spec: str, folder: Path) -> reference.Weights:
    from deltasam.integrations.hf import Seq2SeqTrainer, Seq2SeqTrainingArguments

    arguments = Seq2SeqTrainingArguments(method=spec, **trainer_options(folder, 2))
    trainer = Seq2SeqTrainer(tiny_t5(), arguments, train_dataset=sequences())
    trainer.train()
    return task.trained_weights(trainer.model)


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**size, vocab_size=20, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0)
    return LlamaForCausalLM(config).double()


def following_losses(call: Any, batch: task.Batch) -> torch.Tensor:
    """``token_losses`` of the tokens that follow."""
    return token_losses(call, batch, shift=True)


def following_batches(micro: int) -> list[list[task.Batch]]:
    """As ``sequence_batches``; the first token follows none, and is not counted."""
    steps = sequence_batches(micro)
    for parts in steps:
        tokens = sum((part["labels"][:, 1:] != -100).sum() for part in parts)
        for part in parts:
            part["tokens"] = tokens
    return steps


@stack(
    "transformers Trainer, language model",
    task=Task(tiny_llama, following_losses, following_batches(2), by_slopes=True),
    tolerance=1e-4,
)
def _(spec: str, folder: Path) -> reference.Weights:
    from deltasam.integrations.hf import Trainer, TrainingArguments

    arguments = TrainingArguments(method=spec, **trainer_options(folder, 2))
    trainer = Trainer(tiny_llama(), arguments, train_dataset=sequences())
    trainer.train()
    return task.trained_weights(trainer.model)


def tiny_tokenizer() -> Any:
    """Twenty words, of which the first pads."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w19"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w18", unk_token="w19")


def texts() -> list[list[int]]:
    """Rows of tokens of different lengths."""
    return [row["input_ids"][row["attention_mask"].bool()].tolist() for row in task.rows()]


def text_batches(micro: int) -> list[list[task.Batch]]:
    """The micro-batches of each step: every token but a text's first is predicted and counts the same."""
    steps = [[dict(part) for part in parts] for parts in task.batches(micro)]
    for parts in steps:
        for part in parts:
            part["labels"] = part["input_ids"].masked_fill(part["attention_mask"] == 0, -100)
        tokens = sum((part["labels"][:, 1:] != -100).sum() for part in parts)
        for part in parts:
            part |= {"tokens": tokens, "micro": torch.tensor(micro)}
    return steps


TRL_OPTIONS: dict[str, Any] = {
    "max_length": 16, "bf16": False, "gradient_checkpointing": False, "dataset_num_proc": None
}  # fmt: skip


# Its fused head computes in float32, and slopes are differences of such losses.
@stack("TRL SFTTrainer", task=Task(tiny_llama, following_losses, text_batches(2), by_slopes=True), tolerance=1e-3)
def _(spec: str, folder: Path) -> reference.Weights:
    from datasets import Dataset

    from deltasam.integrations.trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(method=spec, **trainer_options(folder, 2), **TRL_OPTIONS)
    data = Dataset.from_dict({"input_ids": texts()})
    trainer = SFTTrainer(tiny_llama(), arguments, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.train()
    return task.trained_weights(trainer.model)


def tiny_scorer() -> nn.Module:
    """One number per text, from the language model's body."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    config = tiny_llama().config
    config.num_labels = 1
    return LlamaForSequenceClassification(config).double()


BETA = 2.0


def pairs() -> list[tuple[list[int], list[int]]]:
    """Chosen and rejected texts, which begin alike."""
    return [(chosen, chosen[:1] + rejected[1:]) for chosen, rejected in zip(texts(), reversed(texts()), strict=True)]


def pair_batches(micro: int) -> list[list[task.Batch]]:
    """The micro-batches of each step: for each pair the chosen text, the rejected one, and what is no padding."""
    size, parts = ROWS // micro, []
    for start in range(0, STEPS * ROWS, size):
        batch: task.Batch = {}
        for which, name in enumerate(("chosen", "rejected")):
            ids = [torch.tensor(pair[which]) for pair in pairs()[start : start + size]]
            batch[name] = nn.utils.rnn.pad_sequence(ids, batch_first=True)
            batch[f"{name}_mask"] = nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        parts.append(batch)
    return [parts[k * micro : (k + 1) * micro] for k in range(STEPS)]


def margin_losses(call: Any, batch: task.Batch) -> torch.Tensor:
    """One loss per pair [n]: by how much the chosen text has the larger number."""
    chosen, rejected = (
        call(input_ids=batch[name], attention_mask=batch[f"{name}_mask"]).logits.squeeze(-1)
        for name in ("chosen", "rejected")
    )
    return -torch.nn.functional.logsigmoid(chosen - rejected)


@cache
def untrained_llama() -> nn.Module:
    """What training is compared with."""
    return tiny_llama()


def preference_losses(call: Any, batch: task.Batch) -> torch.Tensor:
    """One loss per pair [n]: by how much training has made the chosen text likelier than the rejected one.

    The first token is the prompt.
    """

    def log_probabilities(model: Any, name: str) -> torch.Tensor:
        ids, mask = batch[name], batch[f"{name}_mask"]
        found = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        return (found.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(1)

    with torch.no_grad():
        before = [log_probabilities(untrained_llama(), name) for name in ("chosen", "rejected")]
    chosen, rejected = (
        log_probabilities(call, name) - b for name, b in zip(("chosen", "rejected"), before, strict=True)
    )
    return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected))


# The model's RMSNorm computes in float32: a gradient that is weighted after it is rounded otherwise than before.
@stack("TRL RewardTrainer", task=Task(tiny_scorer, margin_losses, pair_batches(2), by_slopes=True), tolerance=1e-6)
def _(spec: str, folder: Path) -> reference.Weights:
    from datasets import Dataset

    from deltasam.integrations.trl import RewardConfig, RewardTrainer

    arguments = RewardConfig(method=spec, **trainer_options(folder, 2), **TRL_OPTIONS)
    chosen, rejected = zip(*pairs(), strict=True)
    data = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})
    trainer = RewardTrainer(tiny_scorer(), arguments, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.train()
    return task.trained_weights(trainer.model)


# Its fused head computes in float32.
@stack("TRL DPOTrainer", task=Task(tiny_llama, preference_losses, pair_batches(2), by_slopes=True), tolerance=1e-3)
def _(spec: str, folder: Path) -> reference.Weights:
    from datasets import Dataset

    from deltasam.integrations.trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    arguments = DPOConfig(method=spec, beta=BETA, **trainer_options(folder, 2), **TRL_OPTIONS)
    columns = {"prompt_ids": [c[:1] for c, _ in pairs()], "chosen_ids": [c[1:] for c, _ in pairs()]}
    data = Dataset.from_dict({**columns, "rejected_ids": [r[1:] for _, r in pairs()]})
    trainer = Tokenized(tiny_llama(), tiny_llama(), arguments, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.train()
    return task.trained_weights(trainer.model)


@stack("Lightning", task=MEANS)
def _(spec: str, folder: Path) -> reference.Weights:
    import lightning as L

    from deltasam.integrations.lightning import MethodCallback

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.make_model()

        def training_step(self, batch: task.Batch, index: int) -> dict[str, Any]:
            kept: list[Any] = []
            losses = task.losses(lambda **inputs: kept.append(self.net(**inputs)) or kept[-1], batch)
            return {"loss": losses.mean(), "example_losses": lambda: losses, "logits": kept[-1].logits}

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = task.optimizer_of(self.net)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Module()
    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=MAX_NORM,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[MethodCallback(spec)],
    )
    batches = [batch for parts in task.batches(2) for batch in parts]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return task.trained_weights(module.net)
