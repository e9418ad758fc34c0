"""An offset of the input embeddings: where it goes, where not, and what FreeLB makes of it on a linear model."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import deltasam
from deltasam.methods.bases import embeddings
from deltasam.methods.bases.embeddings import EmbeddingOffset

N, T, D, WORDS = 3, 5, 4, 20
LENGTHS = (5, 2, 3)


def batch() -> dict[str, Tensor]:
    mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.randint(5, WORDS, (N, T)), "attention_mask": mask}


class Linear(nn.Module):
    """Logits that are linear in the embeddings of the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, D), nn.Linear(T * D, 3, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.table(input_ids) * attention_mask[..., None]).flatten(1))


class Careless(Linear):
    """The same, with padding in the logits."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, torch.ones_like(attention_mask))


def bart() -> nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 16, "max_position_embeddings": 16, "scale_embedding": True, "dropout": 0.0}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **tokens))


def t5() -> nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0)
    return transformers.T5ForConditionalGeneration(config)


SIZES = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def bert() -> nn.Module:
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **none))


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], lora_dropout=0.0))


@pytest.mark.parametrize("make", [bert, llama, bart, t5, lora])
def test_it_is_what_inputs_embeds_would_be(make: Any) -> None:
    """The decoder of an encoder-decoder reads the same table, and is left alone."""
    torch.manual_seed(0)
    model, given = make(), batch()
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"].flip(1)
    table = (
        model.get_encoder().get_input_embeddings() if model.config.is_encoder_decoder else model.get_input_embeddings()
    )
    width = table.weight.shape[1]
    noise = torch.randn(N, T, width)
    offset = EmbeddingOffset(model, lambda x, real: noise * real[..., None])
    with offset.added():
        found = model(**given).logits
    assert not torch.equal(found, model(**given).logits)  # and no hook is left
    moved = table(given["input_ids"]) + offset.value
    plain = {k: v for k, v in given.items() if k != "input_ids"}
    torch.testing.assert_close(found, model(inputs_embeds=moved, **plain).logits)


class Shared(nn.Module):
    """An encoder and a decoder that call one and the same table."""

    config = SimpleNamespace(is_encoder_decoder=True)

    class Encoder(nn.Module):
        def __init__(self, table: nn.Module) -> None:
            super().__init__()
            self.table = table

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

        def get_input_embeddings(self) -> nn.Module:
            return self.table

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, D)
        self.encoder = self.Encoder(self.table)
        self.get_input_embeddings = self.encoder.get_input_embeddings

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(input_ids), self.table(decoder_input_ids)


def test_an_encoder_and_a_decoder_that_share_one_table() -> None:
    model, ids = Shared(), batch()["input_ids"]
    offset = EmbeddingOffset(model, lambda x, real: torch.ones_like(x))
    with offset.added():
        encoded, decoded = model(ids, ids)
    assert torch.equal(encoded, model.table(ids) + 1)
    assert torch.equal(decoded, model.table(ids))


def test_padding_is_not_moved() -> None:
    model, given = Linear(), batch()
    offset = EmbeddingOffset(model, lambda x, real: embeddings.sample_noise(torch.randn, x, real, torch.Generator()))
    with offset.added():
        model(**given)
    real = given["attention_mask"].bool()
    assert (offset.value[~real] == 0).all()
    assert (offset.value[real] != 0).all()
    offset.set_(torch.ones(N, T, D))
    assert torch.equal(offset.value[..., 0].bool(), real)


def test_noise_does_not_depend_on_padding() -> None:
    x, real = torch.zeros(N, T, D), batch()["attention_mask"].bool()
    short = embeddings.sample_noise(torch.rand, x, real, torch.Generator().manual_seed(1))
    longer = (F.pad(x, (0, 0, 0, 2)), F.pad(real, (0, 2)))
    assert torch.equal(embeddings.sample_noise(torch.rand, *longer, torch.Generator().manual_seed(1))[:, :T], short)


def test_gradients_of_any_size_have_a_direction() -> None:
    g = torch.randn(3, 2, 4)
    g[1] = 0
    unit = embeddings.normalized_direction(g, lambda x: torch.linalg.vector_norm(x, dim=(-1, -2), keepdim=True))
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    for scale in (2.0**100, 2.0**-100):
        again = embeddings.normalized_direction(
            scale * g, lambda x: torch.linalg.vector_norm(x, dim=(-1, -2), keepdim=True)
        )
        assert torch.equal(again, unit)
    assert (embeddings.normalized_direction(g * float("inf"), lambda x: x.abs().amax()) == 0).all()


class TwoTables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(WORDS, D), nn.Embedding(WORDS, D)


class Transposed(Linear):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids.mT).sum()


class Twice(Linear):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids) + self.table(input_ids)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Linear(2, 2),
            r"of Linear to perturb cannot be determined: it has 0 nn.Embedding.*get_input_embeddings\(\)",
        ),
        (TwoTables(), r"it has 2 nn.Embedding modules"),
        (Transposed(), r"given other ids than the model"),
        (Twice(), r"Twice reads its input embeddings several times"),
    ],
)
def test_what_cannot_be_told_is_an_error(model: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words), EmbeddingOffset(model, lambda x, real: x).added():
        model(**batch())
    assert not any(len(h) for m in model.modules() for k, h in vars(m).items() if k.endswith("_hooks"))


def test_embeddings_that_are_given_are_an_error() -> None:
    model, mask = bert(), batch()["attention_mask"]
    closure = lambda: model(inputs_embeds=torch.randn(N, T, 16), attention_mask=mask, labels=torch.zeros(N).long())  # noqa: E731
    for name in ("freelb", "r3f", "smart:mu=0"):
        with pytest.raises(ValueError, match=r"were not read in .* forward.*input_ids and not inputs_embeds"):
            deltasam.make_method(name, model).backward(closure)


def test_images_are_an_error() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config)
    with pytest.raises(ValueError, match="only embeddings of token ids"):
        deltasam.FreeLB(model).backward(
            lambda: model(pixel_values=torch.randn(2, 3, 8, 8), labels=torch.zeros(2).long())
        )


def test_other_masks_are_an_error() -> None:
    model, given = bert(), batch()
    mask = given["attention_mask"][:, None, None, :].expand(N, 1, T, T)
    with pytest.raises(ValueError, match=r"attention_mask must have one entry per token"):
        deltasam.FreeLB(model).backward(
            lambda: model(given["input_ids"], attention_mask=mask, labels=torch.zeros(N).long())
        )


@pytest.mark.parametrize("make", [Linear, Careless])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_freelb_of_a_linear_model_by_hand(max_norm: float, make: type[Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient with respect to a row of embeddings is W^T (p - y) / n, at real tokens; to W, (p - y)^T x."""
    torch.manual_seed(0)
    model, given, y = make().double(), batch(), torch.tensor([0, 1, 2])
    start = torch.rand(N, T, D, dtype=torch.float64)
    monkeypatch.setattr(embeddings, "sample_noise", lambda _, x, real, *rest: start * real[..., None])
    method = deltasam.FreeLB(model, steps=3, adv_lr=0.4, init_mag=0.2, max_norm=max_norm)
    method.backward(lambda: F.cross_entropy(model(**given), y, reduction="none"))
    real, w = given["attention_mask"].double(), model.head.weight.detach()
    x = model.table.weight.detach()[given["input_ids"]]
    delta = 0.2 * (2 * start - 1) * real[..., None] / (torch.tensor(LENGTHS) * D).sqrt()[:, None, None]
    expected, read = torch.zeros_like(w), real if make is Linear else torch.ones_like(real)
    for _ in range(3):
        inputs = ((x + delta) * read[..., None]).flatten(1)
        away = (inputs @ w.T).softmax(-1) - F.one_hot(y, 3)
        expected += away.T @ inputs / N / 3
        ascent = (away @ w).view(N, T, D) * real[..., None]
        delta = delta + 0.4 * ascent / ascent.flatten(1).norm(dim=1)[:, None, None]
        length = delta.flatten(1).norm(dim=1)[:, None, None]
        delta = torch.where((length > max_norm) & (max_norm > 0), delta * max_norm / length, delta)
    torch.testing.assert_close(model.head.weight.grad, expected)


def test_freelb_needs_no_logits() -> None:
    """Any loss will do."""
    model, given = Linear(), batch()
    step = deltasam.FreeLB(model).backward(lambda: model(**given).square().mean())
    assert step.metrics["perturbed_loss"] > step.loss


# SMART's average.


def test_the_average_follows_the_optimizer() -> None:
    model = Linear()
    method, optimizer = deltasam.SMART(model, beta=0.75), torch.optim.SGD(model.parameters(), lr=0.5)
    start = model.head.weight.detach().clone()
    method.follow(optimizer)
    method.follow(optimizer)  # counted once
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    expected = start
    for k in range(1, 4):
        optimizer.step()
        expected = 0.75 * expected + 0.25 * (start - 0.5 * k)
        torch.testing.assert_close(method.state_dict()["weight_average"]["head.weight"], expected)
    again = deltasam.SMART(model)
    again.load_state_dict(method.state_dict())
    torch.testing.assert_close(again.state_dict()["weight_average"]["head.weight"], expected)
    optimizer.step()
    torch.testing.assert_close(again.state_dict()["weight_average"]["head.weight"], expected)  # a copy


def test_without_an_average_none_is_kept() -> None:
    model, given = Linear(), batch()
    method = deltasam.SMART(model, mu=0)
    method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    assert method.state_dict() == {}
    method.backward(lambda: F.cross_entropy(model(**given), torch.tensor([0, 1, 2])))


def test_an_average_that_is_not_kept_or_does_not_fit_is_an_error() -> None:
    model, given = Linear(), batch()
    method = deltasam.SMART(model)
    with pytest.raises(RuntimeError, match=r"call method.follow\(optimizer\) once before training, or use mu=0"):
        method.backward(lambda: F.cross_entropy(model(**given), torch.tensor([0, 1, 2])))
    with pytest.raises(ValueError, match="of other parameters"):
        method.load_state_dict({"weight_average": {"head.weight": torch.ones(1)}})
    method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    twin = copy.deepcopy(method)
    with pytest.raises(RuntimeError, match=r"call method.follow\(optimizer\)"):  # its average would stay where it is
        twin.backward(lambda: F.cross_entropy(twin.model(**given), torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("r_drop:alpha=-1", r"RDrop\(alpha=-1.0\): alpha must be a finite number, 0 or more"),
        ("r3f:noise=pink", r"R3F\(noise='pink'\): noise must be one of 'uniform', 'normal'"),
        ("r3f:dropout=none", r"R3F\(dropout='none'\): dropout must be one of 'fresh', 'same'"),
        ("freelb:steps=0", r"FreeLB\(steps=0\): steps must be a whole number, 1 or more"),
        ("smart:beta=2", r"SMART\(beta=2.0\): beta must be at most 1"),
    ],
)
def test_bad_specs(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        deltasam.make_method(spec, nn.Linear(1, 1))
