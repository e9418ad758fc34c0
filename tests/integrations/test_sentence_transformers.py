"""The Sentence Transformers trainer with a method, also where examples meet in the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltasam
import tiny_trainers as tiny
from deltasam import reference

st = pytest.importorskip("sentence_transformers")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
try:
    from sentence_transformers.base.losses import column_merging_disabled
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer import losses as st_losses
    from sentence_transformers.sentence_transformer.modules import Pooling
except ImportError:  # before version 6
    from sentence_transformers import losses as st_losses
    from sentence_transformers.models import Pooling, Transformer

    column_merging_disabled = nullcontext

from deltasam.integrations.hf import MethodTrainerMixin  # noqa: E402
from deltasam.integrations.sentence_transformers import (  # noqa: E402
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

RHO = 0.1
# As many as a batch has: the trainer shuffles them, and within one batch their order does not matter.
FIRST = ["the film was good", "dull and a story", "bad", "the actor is fine"]
SECOND = ["a good film", "dull", "the plot is bad and dull", "great actor"]
THIRD = ["poor film", "fine", "a plot is lovely", "an awful actor"]
SCORES = [0.9, 0.1, 0.4, 0.8]


@pytest.fixture
def encoder(tiny_model: Path) -> Callable[[], Any]:
    def make() -> Any:
        body = Transformer(str(tiny_model))
        width = getattr(body, "get_embedding_dimension", None) or body.get_word_embedding_dimension
        model = st.SentenceTransformer(modules=[body, Pooling(width())], device="cpu")
        set_dropout(model, 0.0)
        return model.double()

    return make


def set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif hasattr(module, "dropout_prob"):  # attention, before version 5 of transformers
            module.dropout_prob = p


def prepared(model: Any, texts: list[str]) -> Any:
    """What the model reads of texts."""
    return (model.preprocess if hasattr(model, "preprocess") else model.tokenize)(texts)


def data(loss: Any) -> dict[str, list[Any]]:
    """The columns that a loss reads."""
    more = {"score": SCORES} if loss is st_losses.CosineSimilarityLoss else {"third": THIRD}
    return {"first": FIRST, "second": SECOND} | ({} if loss is Pairs else more)


def train(folder: Path, model: Any, loss: Any, spec: str, **options: Any) -> SentenceTransformerTrainer:
    args = SentenceTransformerTrainingArguments(**tiny.settings(folder, spec, max_steps=2, **options))
    rows = datasets.Dataset.from_dict(data(loss))
    trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss(model))
    trainer.train()
    return trainer


class Pairs(st_losses.MultipleNegativesRankingLoss):
    """In-batch negatives from two columns."""


class Embedding(nn.Module):
    """A sentence encoder that returns the embeddings and nothing else."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: dict[str, Any]) -> Tensor:
        return self.encoder(dict(features))["sentence_embedding"]


def loss_through(call: Callable[..., Tensor], loss: nn.Module, features: Any, labels: Any) -> Tensor:
    """The loss with something to call in place of its model."""
    twin = copy.copy(loss)
    twin.__dict__["_modules"] = {k: v for k, v in loss._modules.items() if k != "model"}
    twin.__dict__["model"] = lambda features: {"sentence_embedding": call(features)}
    with column_merging_disabled():
        return twin(features, labels)


def by_hand(model: Any, loss: Any, spec: str) -> Any:
    """Two clipped steps, with the reference's gradient."""
    model = copy.deepcopy(model).train()
    columns = data(loss)
    scores = columns.pop("score", None)
    for number in range(2):
        features = [prepared(model, texts) for texts in columns.values()]
        labels = None if scores is None else torch.tensor(scores)

        def run(call: Callable[..., Any], features: Any = features, labels: Any = labels) -> Tensor:
            return loss_through(call, loss(model), features, labels)

        copies, w = reference.copies_function(Embedding(model), run)
        if spec.startswith("per_instance"):
            gradient, _ = reference.per_instance_sam_of_copies(copies, w, rho=RHO, groups=4)
        else:
            gradient = reference.sam(lambda v, copies=copies: copies([v])[None], w, rho=RHO)
        scale = min(1.0, 0.5 / (float(reference.norm(gradient)) + 1e-6))
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.sub_(0.1 * (1 - number / 2) * scale * gradient[f"encoder.{name}"])
    return model


def mse_loss_takes_two_types() -> bool:
    """Older versions of PyTorch fail in its backward."""
    prediction = torch.ones(2, dtype=torch.float64, requires_grad=True)
    try:
        nn.functional.mse_loss(prediction, torch.zeros(2)).backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("spec", [f"sam:rho={RHO}", f"per_instance_sam:rho={RHO}"])
@pytest.mark.parametrize("loss", [Pairs, st_losses.MultipleNegativesRankingLoss, st_losses.CosineSimilarityLoss])
def test_equals_the_loop_by_hand(loss: Any, spec: str, encoder: Any, tmp_path: Path) -> None:
    """In-batch negatives: an example's gradient is the one through a copy of the weights of its own."""
    if loss is st_losses.CosineSimilarityLoss and not mse_loss_takes_two_types():
        pytest.skip("this loss takes its labels as float32, which this PyTorch does not compare with float64")
    trainer = train(tmp_path, encoder(), loss, spec)
    tiny.assert_close(trainer.model, by_hand(encoder(), loss, spec), 1e-7)


def test_the_parts_of_a_loss_are_logged_of_the_weights_as_they_are(encoder: Any, tmp_path: Path) -> None:
    class Parts(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Any, labels: Any) -> dict[str, Tensor]:
            a, b, _ = (self.model(f)["sentence_embedding"] for f in features)
            return {"distance": (a - b).square().mean(), "size": (a + b).square().mean()}

    entry = train(tmp_path, encoder(), Parts, f"sam:rho={RHO}").state.log_history[0]
    assert entry["distance"] + entry["size"] == pytest.approx(entry["loss"], abs=1e-3)
    assert entry["perturbed_loss"] > entry["loss"]


def test_losses_per_example_are_refused(encoder: Any, tmp_path: Path) -> None:
    """Examples meet in the loss, so there are none."""
    with pytest.raises(ValueError, match="override example_losses in your trainer"):
        train(tmp_path, encoder(), st_losses.MultipleNegativesRankingLoss, "delta_sam:weights=slopes")


# Losses with parameters of their own

LABELS = [0, 2, 1, 2]


class Classified(st_losses.SoftmaxLoss):
    """Two texts in three classes, with a classifier that the loss owns."""

    def __init__(self, model: Any) -> None:
        torch.manual_seed(4)
        width = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        super().__init__(model, width(), 3)
        self.double()


class Zeroing(transformers.TrainerCallback):
    """Before version 6 of Sentence Transformers the trainer zeroes the gradients of the model, but not of the loss."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.loss.zero_grad()


def train_classified(folder: Path, model: Any, spec: str, *, by_name: bool = False, **given: Any) -> Any:
    args = SentenceTransformerTrainingArguments(**tiny.settings(folder, spec, max_steps=2, max_grad_norm=0.0))
    rows = datasets.Dataset.from_dict({"first": FIRST, "second": SECOND, "label": LABELS})
    loss = Classified(model)
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset={"one": rows} if by_name else rows, loss={"one": loss} if by_name else loss, **given
    )
    trainer.add_callback(Zeroing(loss))
    trainer.train()
    return trainer, loss


def classified_by_hand(model: Any, spec: str) -> tuple[nn.Module, float]:
    """Two steps on copies of the loss, which hold the model; and the norm of the first ascent."""
    loss = Classified(copy.deepcopy(model)).train()
    first = 0.0
    for number in range(2):
        ranges = [range(4)] if spec.startswith("sam") else [range(i, i + 1) for i in range(4)]
        total = [torch.zeros_like(p) for p in loss.parameters()]
        norms = []
        for rows in ranges:
            moved = copy.deepcopy(loss)
            gradient = gradient_of(moved, rows)
            norms.append(float(torch.stack([g.square().sum() for g in gradient]).sum().sqrt()))
            with torch.no_grad():
                for p, g in zip(moved.parameters(), gradient, strict=True):
                    p.add_(g, alpha=RHO / norms[-1])
            for t, g in zip(total, gradient_of(moved, rows), strict=True):
                t += g / len(ranges)
        first = first or sum(norms) / len(ranges) ** 2  # of an example's share in the mean
        with torch.no_grad():
            for p, g in zip(loss.parameters(), total, strict=True):
                p.sub_(g, alpha=0.1 * (1 - number / 2))
    return loss, first


def gradient_of(loss: nn.Module, rows: range) -> list[Tensor]:
    features = [prepared(loss.model, [texts[i] for i in rows]) for texts in (FIRST, SECOND)]
    with column_merging_disabled():
        value = loss(features, torch.tensor([LABELS[i] for i in rows]))
    found = torch.autograd.grad(value, list(loss.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(loss.parameters(), found, strict=True)]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("spec", [f"sam:rho={RHO}", f"per_instance_sam:rho={RHO}"])
def test_the_parameters_of_a_loss_are_perturbed(spec: str, by_name: bool, encoder: Any, tmp_path: Path) -> None:
    trainer, loss = train_classified(tmp_path, encoder(), spec, by_name=by_name)
    expected, norm = classified_by_hand(encoder(), spec)
    tiny.assert_close(loss, expected, 1e-8)
    assert trainer.state.log_history[0]["ascent_norm"] == pytest.approx(norm, rel=1e-6)
    names = [name for name, _ in trainer.method.model.named_parameters()]
    assert "losses.0.classifier.weight" in names
    assert len(names) == len(list(loss.parameters()))  # none is there twice


def test_a_method_made_for_the_model_alone_is_refused(encoder: Any, tmp_path: Path) -> None:
    model = encoder()
    message = r"the method's model does not hold \(loss\.classifier\.weight, loss\.classifier\.bias\)"
    with pytest.raises(ValueError, match=message):
        train_classified(tmp_path, model, "erm", method=deltasam.SAM(model))


def test_a_loss_without_parameters_leaves_the_model_as_it_is(encoder: Any, tmp_path: Path) -> None:
    trainer = train(tmp_path, encoder(), st_losses.MultipleNegativesRankingLoss, "erm")
    assert trainer.method.model is trainer.model


def test_erm_is_the_plain_trainer_bit_for_bit(encoder: Any, tmp_path: Path) -> None:
    weights = []
    for ours in (False, True):
        torch.manual_seed(3)
        given = tiny.settings(tmp_path, "erm", max_steps=2, optim="adamw_torch")
        rows = datasets.Dataset.from_dict({"first": FIRST, "second": SECOND, "label": LABELS})
        if not ours:
            del given["method"]
        package: Any = SentenceTransformerTrainingArguments if ours else st.SentenceTransformerTrainingArguments
        kind: Any = SentenceTransformerTrainer if ours else st.SentenceTransformerTrainer
        model = encoder()
        set_dropout(model, 0.3)
        loss = Classified(model)
        torch.manual_seed(3)
        kind(model, package(**given), train_dataset=rows, loss=loss).train()
        weights.append(tiny.weights_of(loss))
    assert torch.equal(*weights)


def test_rows_of_the_other_trainers_are_unknown(encoder: Any, tmp_path: Path) -> None:
    """The mixin alone does not keep the columns apart."""

    class Bare(MethodTrainerMixin, st.SentenceTransformerTrainer):
        pass

    model = encoder()
    given = tiny.settings(tmp_path, "erm", max_steps=1)
    del given["method"]
    trainer = Bare(
        model,
        st.SentenceTransformerTrainingArguments(**given),
        train_dataset=datasets.Dataset.from_dict(data(Pairs)),
        loss=Pairs(model),
        method="per_instance_sam:rho=0.1",
    )
    with pytest.raises(ValueError, match=r"use a trainer of deltasam\.integrations\.sentence_transformers"):
        trainer.train()


def test_the_other_methods(encoder: Any, tmp_path: Path) -> None:
    for spec in ("erm", "asam:rho=0.5", "delta_sam:rho=0.1,weights=norms", "sam:rho=0.1@every=2"):
        train(tmp_path, encoder(), st_losses.MultipleNegativesRankingLoss, spec)
