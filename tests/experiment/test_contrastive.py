from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from deltasam.lab.data.sentences import ScoredPairs
from deltasam.lab.train.tasks.contrastive import contrastive_loss, embed, mask_span
from deltasam.lab.train.tasks.similarity import similarity_metrics, spearman


def by_hand(first: torch.Tensor, second: torch.Tensor, temperature: float) -> list[float]:
    """NT-Xent of every sentence, one similarity at a time."""
    views = [*first, *second]
    n = len(first)

    def similarity(i: int, j: int) -> float:
        return float(views[i] @ views[j] / (views[i].norm() * views[j].norm())) / temperature

    def loss(view: int) -> float:
        others = [math.exp(similarity(view, k)) for k in range(2 * n) if k != view]
        return math.log(sum(others)) - similarity(view, (view + n) % (2 * n))

    return [(loss(i) + loss(i + n)) / 2 for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_loss_by_its_definition(n: int) -> None:
    first, second = torch.randn(2, n, 7, dtype=torch.float64)
    losses, logits = contrastive_loss(first, second, 0.3)
    assert losses.tolist() == pytest.approx(by_hand(first, second, 0.3), abs=1e-12)
    assert logits.shape == (n, 2, 2 * n - 1)
    if n == 1:
        assert losses.item() == 0


def test_the_logits_are_the_predictions_of_the_losses() -> None:
    n = 4
    first, second = torch.randn(2, n, 7, dtype=torch.float64)
    losses, logits = contrastive_loss(first, second, 0.3)
    right = torch.stack([torch.arange(n) + n - 1, torch.arange(n)], 1)
    found = -logits.log_softmax(-1).gather(-1, right[:, :, None]).squeeze(-1).mean(1)
    torch.testing.assert_close(found, losses)


def test_equals_another_implementation() -> None:
    """That of Sentence Transformers knows one direction: from the first views to all the others."""
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    directions = ("query_to_doc", "query_to_query")
    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), 1 / 0.3, directions=directions)
    first, second = torch.randn(2, 5, 7, dtype=torch.float64)
    both = [theirs.compute_loss_from_embeddings(views, None) for views in ([first, second], [second, first])]
    torch.testing.assert_close(contrastive_loss(first, second, 0.3)[0].mean(), sum(both) / 2)


def test_masks_a_span_and_nothing_else() -> None:
    sentence = "the quick brown fox jumps over the lazy dog"
    found = {mask_span(sentence, "[MASK]", 5) for _ in range(400)}
    assert found == {f"{sentence[:i]} [MASK] {sentence[i + 5 :]}" for i in range(len(sentence) - 5)}


def test_short_sentences_stay() -> None:
    assert mask_span("x" * 29, "[MASK]", 5) == "x" * 29
    assert mask_span("x" * 30, "[MASK]", 5) != "x" * 30
    assert mask_span("x" * 30, "[MASK]", 30) == "x" * 30


def test_the_place_of_the_mask_follows_the_random_state() -> None:
    state = torch.get_rng_state()
    once = [mask_span("a" * 40 + str(i), "_", 5) for i in range(5)]
    torch.set_rng_state(state)
    assert [mask_span("a" * 40 + str(i), "_", 5) for i in range(5)] == once


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_do_not_depend_on_padding(tiny_model: Path, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)
    texts = ["good film", "the plot is bad and dull and very awful"]
    with torch.no_grad():
        together = embed(model, dict(tokenizer(texts, padding=True, return_tensors="pt")), pooling, "fp32")
        alone = [embed(model, dict(tokenizer([t], return_tensors="pt")), pooling, "fp32")[0] for t in texts]
        states = model(**tokenizer(texts[:1], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone[0], states.mean(0) if pooling == "mean" else states[0])


def scored(n: int, places: dict[str, int]) -> ScoredPairs:
    sentences = list(places)
    chosen = [torch.randperm(len(sentences))[:2].tolist() for _ in range(n)]
    first, second = ([sentences[i] for i in side] for side in zip(*chosen, strict=True))
    return ScoredPairs(tuple(first), tuple(second), tuple(torch.randint(6, (n,)).double().tolist()))


def test_correlations_are_those_of_scipy() -> None:
    """Over all pairs of a set at once, with ties in the scores."""
    embeddings, places = torch.randn(20, 8), {f"s{i}": i for i in range(20)}
    sets = {"a": scored(30, places), "b": scored(50, places)}
    found = similarity_metrics(embeddings, places, sets)
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double()
    for name, pairs in sets.items():
        cosines = [float(unit[places[a]] @ unit[places[b]]) for a, b in zip(pairs.first, pairs.second, strict=True)]
        assert found[f"spearman_{name}"] == pytest.approx(spearmanr(cosines, pairs.scores).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx((found["spearman_a"] + found["spearman_b"]) / 2, abs=1e-12)
    assert set(found) == {"spearman", "spearman_a", "spearman_b"}


def test_correlations_are_those_of_the_usual_evaluator() -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    embeddings, places = torch.randn(20, 8), {f"s{i}": i for i in range(20)}
    pairs = scored(40, places)

    class Encoder:
        similarity_fn_name = "cosine"
        model_card_data = None

        def encode(self, sentences: list[str], **_: object) -> object:
            return embeddings[[places[s] for s in sentences]].numpy()

    evaluator = evaluation.EmbeddingSimilarityEvaluator(
        list(pairs.first), list(pairs.second), list(pairs.scores), main_similarity="cosine", write_csv=False
    )
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    theirs = evaluator(Encoder())["spearman_cosine"]
    assert similarity_metrics(embeddings, places, {"x": pairs})["spearman"] == pytest.approx(theirs, abs=1e-9)


def test_pairs_of_a_sentence_with_itself_are_equally_similar() -> None:
    """Not more or less so by rounding."""
    embeddings, places = torch.randn(50, 33), {f"s{i}": i for i in range(50)}
    pairs = ScoredPairs(tuple(places), (*list(places)[:49], "s0"), (*torch.rand(49).tolist(), 0.0))
    found = similarity_metrics(embeddings, places, {"x": pairs})["spearman"]
    assert found == pytest.approx(spearmanr([1.0] * 49 + [0.0], pairs.scores).statistic, abs=1e-12)


def test_a_correlation_that_is_not_defined() -> None:
    pairs = ScoredPairs(("a", "b", "c"), ("b", "c", "a"), (1.0, 2.0, 3.0))
    assert math.isnan(spearman(torch.tensor([0.5, 0.5, 0.5]), pairs))
    assert math.isnan(spearman(torch.tensor([0.5, math.nan, 0.4]), pairs))
    assert spearman(torch.tensor([0.1, 0.2, 0.4]), pairs) == 1
