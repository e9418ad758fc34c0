"""Small models and batches of every kind that every method must be right on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = 4
TOKENS = 6


@dataclass
class Case:
    """A model in training mode, and a batch: ``run(model, rows)`` gives one loss per example of those rows."""

    model: nn.Module
    run: Callable[[Callable[..., Any], Tensor | None], Tensor]
    pads: bool = False
    """Whether ``pad`` may be called to add columns of padding to the batch."""
    pad: Callable[[], None] = lambda: None
    shares: Tensor = field(default_factory=lambda: torch.full((EXAMPLES,), 1 / EXAMPLES, dtype=torch.float64))
    """What each prediction counts in the mean loss."""
    lengths: list[int] = field(default_factory=list)
    """How many tokens each example has."""
    embedding: nn.Module | None = None
    """What turns them into vectors."""

    def closure(self) -> Tensor:
        """One forward of the whole batch."""
        return self.run(self.model, None)


class Network(nn.Module):
    """BatchNorm, dropout, an unused parameter and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(2))
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.norm(self.first(x))))
        return self.last(hidden + self.frozen(hidden))


def mlp() -> Case:
    """An MLP with BatchNorm."""
    x, y = torch.randn(EXAMPLES, 5), torch.randint(0, 3, (EXAMPLES,))

    def run(model: Callable[..., Any], rows: Tensor | None) -> Tensor:
        keep = slice(None) if rows is None else rows
        inputs = x[keep].to(next(case.model.parameters()).dtype)
        return F.cross_entropy(model(inputs), y[keep], reduction="none")

    case = Case(Network(), run)
    return case


class Words(Network):
    """The same on the mean of the embeddings of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        real = attention_mask[..., None].to(self.table.weight)
        return super().forward((self.table(input_ids) * real).sum(1) / real.sum(1))


def words() -> Case:
    """Tokens and BatchNorm, for methods that perturb embeddings."""
    return TextCase(Words(), [TOKENS, 3, 5, 2])


def _bert_model(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, num_labels=3, **options,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class TextCase(Case):
    """A classifier of token sequences, padded on the right."""

    def __init__(self, model: nn.Module, lengths: list[int]) -> None:
        self.ids = torch.randint(5, 50, (EXAMPLES, max(lengths)))
        self.mask = torch.tensor([[float(t < n) for t in range(max(lengths))] for n in lengths]).long()
        self.labels = torch.randint(0, 3, (EXAMPLES,))
        super().__init__(model, self._run, pads=True, pad=self._pad, lengths=lengths)
        self.embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))

    def _run(self, model: Callable[..., Any], rows: Tensor | None) -> Tensor:
        keep = slice(None) if rows is None else rows
        output = model(input_ids=self.ids[keep], attention_mask=self.mask[keep])
        logits = output if isinstance(output, Tensor) else output.logits
        return F.cross_entropy(logits, self.labels[keep], reduction="none")

    def _pad(self) -> None:
        self.ids = F.pad(self.ids, (0, 3), value=0)
        self.mask = F.pad(self.mask, (0, 3), value=0)


def bert() -> Case:
    """A BERT, no padding, dropout on."""
    return TextCase(_bert_model(), [TOKENS] * EXAMPLES)


def padded() -> Case:
    """A BERT without dropout, on a padded batch."""
    return TextCase(_bert_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), [TOKENS, 3, 5, 2])


def gpt2() -> Case:
    """A GPT-2 with tied embeddings, language modelling."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ids = torch.randint(0, 40, (EXAMPLES, TOKENS))

    def run(model: Callable[..., Any], rows: Tensor | None) -> Tensor:
        tokens = ids if rows is None else ids[rows]
        logits = model(input_ids=tokens).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return losses.mean(1)

    model = GPT2LMHeadModel(config)
    shares = F.pad(torch.full((EXAMPLES, TOKENS - 1), 1 / (EXAMPLES * (TOKENS - 1)), dtype=torch.float64), (0, 1))
    return Case(model, run, shares=shares, lengths=[TOKENS] * EXAMPLES, embedding=model.transformer.wte)


def lora() -> Case:
    """A BERT with LoRA adapters (B not zero, so that A has a gradient)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.2, modules_to_save=["classifier"])
    model = get_peft_model(_bert_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return TextCase(model, [TOKENS] * EXAMPLES)


CASES: dict[str, Callable[[], Case]] = {f.__name__: f for f in (mlp, bert, gpt2, lora, padded)}


def copy_of(model: nn.Module) -> nn.Module:
    """A model of its own with the same weights."""
    return copy.deepcopy(model)


def make(name: str, dtype: torch.dtype = torch.float64, *, dropout: bool = True) -> Case:
    """A case by name: seeded, in training mode, weights large enough for clear gradients."""
    torch.manual_seed(7)
    case = {**CASES, "words": words}[name]()
    case.model.to(dtype).train()
    for module in case.model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
        if hasattr(module, "dropout_prob") and not dropout:
            module.dropout_prob = 0.0  # of the attention, in transformers before version 5
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return case
