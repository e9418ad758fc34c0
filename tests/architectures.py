"""The architectures people fine-tune, tiny: what per-instance SAM in two passes must be exact on.

A factory builds a model and a batch for a dropout probability; ``make`` does so by name. All from configurations:
nothing is downloaded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = 4
VOCABULARY = 50
LENGTHS = (8, 3, 5, 6)
LABELS = 3
ALL = slice(None)
Call = Callable[..., Any]


@dataclass
class Case:
    """A model in training mode and a batch.

    ``run(call, rows)`` gives one loss per example of those rows, or one loss, with ``call`` in place of the model.
    """

    model: nn.Module
    run: Callable[[Call, slice], Tensor]
    own: Callable[[Call], Any] | None = None
    """Gives the model's own output with ``.loss``, which is the loss of ``run`` but computed inside the model."""
    one: bool = False
    """Whether there is one loss for the whole batch."""
    single: str = ""
    """What is computed in float32 even in a float64 model."""

    def closure(self) -> Any:
        """One forward of the whole batch."""
        return self.own(self.model) if self.own else self.run(self.model, ALL)

    @property
    def plain(self) -> nn.Module:
        """The model without gradient checkpointing, which would run again with weights that are not the copies'."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        return model

    @property
    def tolerance(self) -> float:
        """Relative error that rounding explains in a float64 model."""
        return 1e-6 if self.single else 1e-10


Factory = Callable[[float], Case]
ARCHITECTURES: dict[str, Factory] = {}


def architecture(factory: Factory) -> Factory:
    ARCHITECTURES[factory.__name__] = factory
    return factory


def make(name: str, dtype: torch.dtype = torch.float64, dropout: float = 0.2) -> Case:
    """A case by name: seeded, in training mode, weights large enough for clear gradients."""
    torch.manual_seed(7)
    case = ARCHITECTURES[name](dropout)
    case.model.to(dtype).train()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return case


# Batches and losses


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    """1 for a token, 0 for padding on the right [n, T]."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def text(lengths: tuple[int, ...] = LENGTHS, pad: int = 0) -> dict[str, Tensor]:
    """Token ids and their mask."""
    mask = mask_of(lengths)
    ids = torch.randint(5, VOCABULARY, mask.shape)
    return {"input_ids": ids.where(mask.bool(), pad), "attention_mask": mask}


def labels_of(*shape: int) -> Tensor:
    return torch.randint(0, LABELS, shape)


def cut(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in inputs.items()}


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over each example's own tokens [n]; -100 is no target."""
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1)


def token_mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens of the batch []: long examples weigh more."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def classifier(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Case:
    """One label per example."""
    labels = labels_of(EXAMPLES)

    def run(call: Call, rows: slice) -> Tensor:
        return F.cross_entropy(call(**cut(inputs, rows)).logits, labels[rows], reduction="none")

    return Case(model, run, **options)


def with_own_loss(
    case: Case, inputs: dict[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor], single: str = ""
) -> Case:
    """The loss that the model computes itself from ``inputs["labels"]``, one number; ``loss`` is the same outside."""
    labels = inputs["labels"]
    without = {name: value for name, value in inputs.items() if name != "labels"}

    def run(call: Call, rows: slice) -> Tensor:
        return loss(call(**cut(without, rows)).logits, labels[rows])

    return Case(case.model, run, own=lambda call: call(**inputs), one=True, single=single or case.single)


def language_model(model: nn.Module, **options: Any) -> Case:
    """The next token; a mean per example."""
    inputs = text()
    targets = next_tokens(inputs)

    def run(call: Call, rows: slice) -> Tensor:
        return token_losses(call(**cut(inputs, rows), use_cache=False).logits[:, :-1], targets[rows])

    return Case(model, run, **options)


def next_tokens(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)[:, 1:]


# Encoders


def sizes(**changes: Any) -> dict[str, Any]:
    """What most configurations call their sizes."""
    return {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 16, "num_labels": LABELS, **changes,
    }  # fmt: skip


def encoder(p: float, **changes: Any) -> dict[str, Any]:
    return sizes(hidden_dropout_prob=p, attention_probs_dropout_prob=p, **changes)


@architecture
def bert(p: float) -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    return classifier(BertForSequenceClassification(BertConfig(**encoder(p))), text())


@architecture
def bert_own_loss(p: float) -> Case:
    return with_own_loss(bert(p), {**text(), "labels": labels_of(EXAMPLES)}, F.cross_entropy)


@architecture
def bert_checkpointing(p: float) -> Case:
    case = bert(p)
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    return case


@architecture
def bert_multiple_choice(p: float) -> Case:
    from transformers import BertConfig, BertForMultipleChoice

    model = BertForMultipleChoice(BertConfig(**encoder(p)))
    choices = [text((4, 2, 6)) for _ in range(EXAMPLES)]
    return classifier(model, {name: torch.stack([c[name] for c in choices]) for name in choices[0]})


@architecture
def bert_tokens(p: float) -> Case:
    from transformers import BertConfig, BertForTokenClassification

    inputs = text()
    return labelled_tokens(BertForTokenClassification(BertConfig(**encoder(p))), inputs, labels_of(EXAMPLES, 8))


@architecture
def bert_masked_lm(p: float) -> Case:
    from transformers import BertConfig, BertForMaskedLM

    inputs = text()
    masked = (torch.arange(8) % 2 == 0) & inputs["attention_mask"].bool()
    targets = inputs["input_ids"].where(masked, -100)
    inputs["input_ids"] = inputs["input_ids"].where(~masked, 4)
    return labelled_tokens(BertForMaskedLM(BertConfig(**encoder(p))), inputs, targets)


def labelled_tokens(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Case:
    targets = labels.where(inputs["attention_mask"].bool(), -100)

    def run(call: Call, rows: slice) -> Tensor:
        return token_losses(call(**cut(inputs, rows)).logits, targets[rows])

    return Case(model, run)


@architecture
def roberta(p: float) -> Case:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return classifier(RobertaForSequenceClassification(RobertaConfig(**encoder(p), pad_token_id=1)), text(pad=1))


@architecture
def distilbert(p: float) -> Case:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16,
        dropout=p, attention_dropout=p, seq_classif_dropout=p, num_labels=LABELS,
    )  # fmt: skip
    return classifier(DistilBertForSequenceClassification(config), text())


@architecture
def albert(p: float) -> Case:
    """One layer, called twice."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(**encoder(p, embedding_size=12, classifier_dropout_prob=p))
    return classifier(AlbertForSequenceClassification(config), text())


@architecture
def electra(p: float) -> Case:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    return classifier(ElectraForSequenceClassification(ElectraConfig(**encoder(p, embedding_size=12))), text())


@architecture
def mpnet(p: float) -> Case:
    """Position biases of shape [T, T, heads], looked up once and added in every layer."""
    from transformers import MPNetConfig, MPNetForSequenceClassification

    return classifier(MPNetForSequenceClassification(MPNetConfig(**encoder(p))), text(pad=1))


@architecture
def deberta(p: float) -> Case:
    """Relative positions go through the layers' own projections, without a batch axis."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        **encoder(p), relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False, pooler_dropout=p, pooler_hidden_size=16,
    )  # fmt: skip
    return classifier(DebertaV2ForSequenceClassification(config), text())


def siamese_encoder(p: float) -> tuple[nn.Module, Callable[[Call, slice], Tensor]]:
    """A BERT and the similarities of its embeddings of two texts [n, n]; nothing uses its pooler."""
    from transformers import BertConfig, BertModel

    texts = text(), text((3, 5, 2, 4))

    def embed(call: Call, inputs: dict[str, Tensor]) -> Tensor:
        weights = inputs["attention_mask"][:, :, None]
        return F.normalize((call(**inputs).last_hidden_state * weights).sum(1) / weights.sum(1), dim=1)

    def similarities(call: Call, rows: slice) -> Tensor:
        a, b = (embed(call, cut(inputs, rows)) for inputs in texts)
        return 5 * a @ b.T

    return BertModel(BertConfig(**encoder(p))), similarities


@architecture
def siamese(p: float) -> Case:
    """Two calls of different length, and the other examples as negatives."""
    model, similarities = siamese_encoder(p)

    def run(call: Call, rows: slice) -> Tensor:
        scores = similarities(call, rows)
        return F.cross_entropy(scores, torch.arange(len(scores)), reduction="none")

    return Case(model, run)


@architecture
def siamese_one_loss(p: float) -> Case:
    """The same in both directions, as one number."""
    model, similarities = siamese_encoder(p)

    def run(call: Call, rows: slice) -> Tensor:
        scores = similarities(call, rows)
        pairs = torch.arange(len(scores))
        return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2

    return Case(model, run, one=True)


# Decoders


def gpt2_model(p: float) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=24,
        resid_pdrop=p, embd_pdrop=p, attn_pdrop=p, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@architecture
def gpt2(p: float) -> Case:
    return language_model(gpt2_model(p))


@architecture
def gpt2_own_loss(p: float) -> Case:
    inputs = text()
    inputs["labels"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return token_mean(logits[:, :-1].float(), labels[:, 1:])

    return with_own_loss(gpt2(p), inputs, loss, single="the loss")


@architecture
def gpt2_checkpointing(p: float) -> Case:
    model = gpt2_model(p)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return language_model(model)


@architecture
def gpt2_lora(p: float) -> Case:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], lora_dropout=p, fan_in_fan_out=True)
    return language_model(get_peft_model(gpt2_model(p), config))


@architecture
def opt(p: float) -> Case:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
        max_position_embeddings=16, word_embed_proj_dim=12, dropout=p, attention_dropout=p,
    )  # fmt: skip
    return language_model(OPTForCausalLM(config))


def decoder(p: float, **changes: Any) -> dict[str, Any]:
    """Grouped-query attention: two query heads share a key and a value."""
    return sizes(num_attention_heads=4, num_key_value_heads=2, head_dim=4, attention_dropout=p, **changes)


RMS_NORM = "the RMSNorm"


@architecture
def llama(p: float) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    return language_model(LlamaForCausalLM(LlamaConfig(**decoder(p))), single=RMS_NORM)


@architecture
def mistral(p: float) -> Case:
    from transformers import MistralConfig, MistralForCausalLM

    return language_model(MistralForCausalLM(MistralConfig(**decoder(p, sliding_window=4))), single=RMS_NORM)


@architecture
def qwen2(p: float) -> Case:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return language_model(Qwen2ForCausalLM(Qwen2Config(**decoder(p))), single=RMS_NORM)


@architecture
def qwen3(p: float) -> Case:
    """Norms of the queries and the keys, over heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return language_model(Qwen3ForCausalLM(Qwen3Config(**decoder(p))), single=RMS_NORM)


@architecture
def gemma(p: float) -> Case:
    """A norm that multiplies by 1 + w, and tied embeddings."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return language_model(GemmaForCausalLM(GemmaConfig(**decoder(p))), single="the RMSNorm, with its weight")


@architecture
def phi(p: float) -> Case:
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        **sizes(num_attention_heads=4, num_key_value_heads=2), resid_pdrop=p, embd_pdrop=p, attention_dropout=p,
        qk_layernorm=True,
    )  # fmt: skip
    return language_model(PhiForCausalLM(config))


@architecture
def gpt_neox(p: float) -> Case:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return language_model(GPTNeoXForCausalLM(GPTNeoXConfig(**sizes(hidden_dropout=p, attention_dropout=p))))


@architecture
def falcon(p: float) -> Case:
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_hidden_size=24,
        max_position_embeddings=16, hidden_dropout=p, attention_dropout=p,
    )  # fmt: skip
    return language_model(FalconForCausalLM(config))


@architecture
def bloom(p: float) -> Case:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=p, attention_dropout=p
    )
    return language_model(BloomForCausalLM(config), single="the softmax of the attention")


# Encoder and decoder


def summaries(pad: int) -> Tensor:
    lengths = (3, 5, 2, 4)
    return torch.randint(5, VOCABULARY, (EXAMPLES, 5)).where(mask_of(lengths).bool(), pad)


def shifted(labels: Tensor, start: int, pad: int) -> Tensor:
    """The decoder's input: the label before."""
    return F.pad(labels, (1, -1), value=start).masked_fill(F.pad(labels, (1, -1)) == -100, pad)


def sequence_to_sequence(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, **options: Any) -> Case:
    def run(call: Call, rows: slice) -> Tensor:
        return token_losses(call(**cut(inputs, rows), use_cache=False).logits, labels[rows])

    return Case(model, run, **options)


def t5_model(p: float) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=p,
        relative_attention_num_buckets=8, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


T5_SINGLE = "the RMSNorm and the softmax of the attention"


@architecture
def t5(p: float) -> Case:
    """Position biases without a batch axis, looked up once per stack; one embedding for input, output and head."""
    labels = summaries(-100)
    inputs = {**text(), "decoder_input_ids": shifted(labels, 0, 0)}
    return sequence_to_sequence(t5_model(p), inputs, labels, single=T5_SINGLE)


@architecture
def t5_own_loss(p: float) -> Case:
    labels = summaries(-100)
    inputs = {**text(), "decoder_input_ids": shifted(labels, 0, 0), "labels": labels}
    return with_own_loss(t5(p), inputs, token_mean)


@architecture
def bart(p: float) -> Case:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=16,
        dropout=p, attention_dropout=p, activation_dropout=p,
    )  # fmt: skip
    labels = summaries(-100)
    inputs = {**text(pad=1), "decoder_input_ids": shifted(labels, 2, 1)}
    return sequence_to_sequence(BartForConditionalGeneration(config), inputs, labels)


# Images and signals


def of_signals(model: nn.Module, x: Tensor) -> Case:
    labels = labels_of(EXAMPLES)

    def run(call: Call, rows: slice) -> Tensor:
        scores = call(x[rows].to(next(model.parameters()).dtype))
        return F.cross_entropy(getattr(scores, "logits", scores), labels[rows], reduction="none")

    return Case(model, run)


@architecture
def vit(p: float) -> Case:
    """Class token and position embeddings are parameters of no layer, with a batch axis of 1."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**encoder(p), image_size=8, patch_size=4, num_channels=3)
    return of_signals(ViTForImageClassification(config), torch.randn(EXAMPLES, 3, 8, 8))


@architecture
def conv2d(p: float) -> Case:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout(p),
        nn.Conv2d(8, 8, 3, stride=2, padding="valid", groups=2), nn.GroupNorm(4, 8), nn.GELU(),
        nn.Conv2d(8, 12, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(p), nn.Linear(48, LABELS),
    ]  # fmt: skip
    return of_signals(nn.Sequential(*layers), torch.randn(EXAMPLES, 3, 9, 9))


@architecture
def conv1d(p: float) -> Case:
    layers = [
        nn.Conv1d(5, 8, 3, padding="same", dilation=2), nn.GELU(), nn.Dropout(p),
        nn.Conv1d(8, 8, 4, stride=3, padding=2, padding_mode="circular"), nn.GroupNorm(1, 8), nn.GELU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, LABELS),
    ]  # fmt: skip
    return of_signals(nn.Sequential(*layers), torch.randn(EXAMPLES, 5, 12))


# Written by hand, as people do


class LayerNorm(nn.Module):
    """With an optional bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    def __init__(self, width: int, p: float, bias: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.c_attn(x).split(x.shape[2], dim=2))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(width, bias=True), LayerNorm(width, bias=True)
        self.attn = Attention(width, p, bias=True)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width), nn.Dropout(p))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """Positions without a batch axis; the head is the embedding."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(16, width)
        self.drop = nn.Dropout(p)
        self.h = nn.ModuleList([Block(width, p) for _ in range(2)])
        self.ln_f = LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class GatedBlock(nn.Module):
    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, p, bias=False)
        self.gate, self.up = (nn.Linear(width, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        normed = self.norm_2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class GatedLM(nn.Module):
    """A decoder with RMSNorm and a gated MLP."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(GatedBlock(width, p) for _ in range(2)))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids) * math.sqrt(self.embed.embedding_dim))))


def by_hand(model: nn.Module, tokens: int) -> Case:
    ids = torch.randint(0, VOCABULARY, (EXAMPLES, tokens + 1))

    def run(call: Call, rows: slice) -> Tensor:
        return token_losses(call(ids[rows, :-1]), ids[rows, 1:])

    return Case(model, run)


@architecture
def nano_gpt(p: float) -> Case:
    return by_hand(NanoGPT(16, p), tokens=7)


@architecture
def nano_gpt_as_long_as_the_batch(p: float) -> Case:
    """The positions' leading axis looks like the batch."""
    return by_hand(NanoGPT(16, p), tokens=EXAMPLES)


@architecture
def nano_gpt_twice_as_long(p: float) -> Case:
    """The positions' leading axis looks like a flattened batch."""
    return by_hand(NanoGPT(16, p), tokens=2 * EXAMPLES)


@architecture
def custom_rms_norm(p: float) -> Case:
    return by_hand(GatedLM(16, p), tokens=7)


class TorchEncoder(nn.Module):
    """Torch's own encoder, whose attention uses its weights without calling a layer."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 2, 24, p, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, LABELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        return self.head(self.layers(x, src_key_padding_mask=attention_mask == 0)[:, 0])


@architecture
def torch_encoder(p: float) -> Case:
    inputs, labels = text(), labels_of(EXAMPLES)

    def run(call: Call, rows: slice) -> Tensor:
        return F.cross_entropy(call(**cut(inputs, rows)), labels[rows], reduction="none")

    return Case(TorchEncoder(16, p), run)
