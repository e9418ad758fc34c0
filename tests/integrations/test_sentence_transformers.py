"""The Sentence Transformers trainer with a method, also where examples meet in the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
from sentence_transformers import losses as st_losses  # noqa: E402

from deltasam.integrations.sentence_transformers import (  # noqa: E402
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

RHO = 0.1
PAIRS = [
    ("the film was good", "a good film"), ("dull and long", "it was long"),
    ("bad", "the plot was bad and dull"), ("the actors were good", "good actors"),
    ("a long plot", "long"), ("it was dull", "dull film"), ("good plot", "the plot"), ("bad actors", "actors were bad"),
]  # fmt: skip
SCORES = [0.9, 0.1, 0.4, 0.8, 0.7, 0.2, 0.5, 0.6]


@pytest.fixture
def encoder(tiny_model: Path) -> Callable[[], Any]:
    def make() -> Any:
        body = st.models.Transformer(str(tiny_model))
        model = st.SentenceTransformer(modules=[body, st.models.Pooling(body.get_embedding_dimension())], device="cpu")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.modules():
            if hasattr(layer, "dropout_prob"):
                layer.dropout_prob = 0.0
        return model.double()

    return make


def train(
    folder: Path, model: Any, loss: Any, spec: str, *, scores: bool, **options: Any
) -> SentenceTransformerTrainer:
    columns = {"first": [a for a, _ in PAIRS], "second": [b for _, b in PAIRS]} | ({"score": SCORES} if scores else {})
    args = SentenceTransformerTrainingArguments(**tiny.settings(folder, spec, max_steps=2, **options))
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset=datasets.Dataset.from_dict(columns), loss=loss(model)
    )
    trainer.train()
    return trainer


class Plain(nn.Module):
    """A loss of sentence embeddings that calls what it is given in place of the model."""

    def __init__(self, call: Callable[..., Any], loss: nn.Module) -> None:
        super().__init__()
        self.loss = copy.copy(loss)
        self.loss.__dict__["_modules"] = {k: v for k, v in loss._modules.items() if k != "model"}
        self.loss.__dict__["model"] = call

    def forward(self, features: list[dict[str, Any]], labels: Any) -> Tensor:
        return self.loss([dict(f) for f in features], labels)


def by_hand(model: Any, loss: Any, spec: str, *, scores: bool) -> Any:
    """Two clipped steps on the pairs in their order, with the reference's gradient."""
    model = copy.deepcopy(model).train()
    for number in range(2):
        rows = PAIRS[4 * number : 4 * number + 4]
        features = [model.preprocess(list(texts)) for texts in zip(*rows, strict=True)]
        labels = torch.tensor(SCORES[4 * number : 4 * number + 4], dtype=torch.float64) if scores else None
        run = lambda call, f=features, y=labels: Plain(call, loss(model))(f, y)  # noqa: E731
        copies, w = reference.copies_function(model, run)
        if spec.startswith("per_instance"):
            gradient, _ = reference.per_instance_sam_of_copies(copies, w, rho=RHO, groups=4)
        else:
            gradient = reference.sam(lambda v, copies=copies: copies([v])[None], w, rho=RHO)
        scale = min(1.0, 0.5 / (float(reference.norm(gradient)) + 1e-6))
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.sub_(0.1 * (1 - number / 2) * scale * gradient[name])
    return model


@pytest.mark.parametrize("spec", [f"sam:rho={RHO}", f"per_instance_sam:rho={RHO}"])
@pytest.mark.parametrize(
    ("loss", "scores"), [(st_losses.MultipleNegativesRankingLoss, False), (st_losses.CosineSimilarityLoss, True)]
)
def test_equals_the_loop_by_hand(loss: Any, scores: bool, spec: str, encoder: Any, tmp_path: Path) -> None:
    """In-batch negatives: an example's gradient is the one through a copy of the weights of its own."""
    trainer = train(tmp_path, encoder(), loss, spec, scores=scores)
    tiny.assert_close(trainer.model, by_hand(encoder(), loss, spec, scores=scores), 1e-7)
    assert trainer.state.log_history[0]["perturbed_loss"] > trainer.state.log_history[0]["loss"]


def test_the_parts_of_a_loss_are_logged_of_the_weights_as_they_are(encoder: Any, tmp_path: Path) -> None:
    class Parts(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Any, labels: Any) -> dict[str, Tensor]:
            a, b = (self.model(f)["sentence_embedding"] for f in features)
            return {"distance": (a - b).square().mean(), "size": (a + b).square().mean()}

    entry = train(tmp_path, encoder(), Parts, f"sam:rho={RHO}", scores=False).state.log_history[0]
    assert entry["distance"] + entry["size"] == pytest.approx(entry["loss"], rel=1e-6)
    assert entry["perturbed_loss"] > entry["loss"]


def test_losses_per_example_are_refused(encoder: Any, tmp_path: Path) -> None:
    """Examples meet in the loss, so there are none."""
    with pytest.raises(ValueError, match=r"override example_losses.*delta_sam:weights=norms"):
        train(tmp_path, encoder(), st_losses.MultipleNegativesRankingLoss, "delta_sam:weights=slopes", scores=False)


def test_the_other_methods(encoder: Any, tmp_path: Path) -> None:
    for spec in ("erm", "asam:rho=0.5", "delta_sam:rho=0.1,weights=norms", "sam:rho=0.1@every=2"):
        train(tmp_path, encoder(), st_losses.MultipleNegativesRankingLoss, spec, scores=False)
    assert {spec.partition(":")[0] for spec in tiny.SPECS} >= set(deltasam.method_names())
