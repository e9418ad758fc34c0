from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deltasam
from deltasam import reference
from deltasam.errors import UserError
from deltasam.lab.data.sentences import Contrast, ScoredPairs, SentenceData
from deltasam.lab.data.sts import available_sets, load_sts
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.saved_model import save_model
from deltasam.lab.train.tasks import make_task
from deltasam.lab.train.tasks.sentences import SentenceTask
from tiny_bert import BAD, GOOD, NEUTRAL

SHARED = Path(__file__).parents[3] / "shared" / "data"
METHODS = ["erm", "sam", "asam", "delta_sam:weights=norms", "delta_sam:weights=slopes", "per_instance_sam"]
RHO = 0.01


def sentence(i: int) -> str:
    filler = " ".join(NEUTRAL[(i * 7 + k) % len(NEUTRAL)] for k in range(6 + i % 4))
    return f"{filler} {(GOOD if i % 2 else BAD)[i // 2 % 4]} {NEUTRAL[i % 5]} {(GOOD + BAD)[i % 7]}"


def pairs(n: int, start: int) -> ScoredPairs:
    first = tuple(sentence(start + i) for i in range(n))
    return ScoredPairs(first, tuple(sentence(start + 2 * i) for i in range(n)), tuple(float(i % 5) for i in range(n)))


@pytest.fixture
def data() -> SentenceData:
    train = tuple(dict.fromkeys(sentence(i) for i in range(22)))
    assert all(len(s) >= 30 for s in train)  # long enough to be masked
    return SentenceData("made up", train, {"one": pairs(9, 3), "two": pairs(12, 8)}, pairs(10, 1))


@pytest.fixture
def config(tiny_model: Path) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), epochs=2, batch_size=6, learning_rate=1e-3)


@pytest.fixture
def task(data: SentenceData, config: TrainConfig) -> SentenceTask:
    task = make_task(data, config, "cpu")
    assert isinstance(task, SentenceTask)
    return task


def losses(task: SentenceTask, rows: list[int]) -> Callable[[Callable[..., Any]], Tensor]:
    """The losses of some rows, with something to call in place of the model."""

    def run(call: Callable[..., Any]) -> Tensor:
        twin = copy.copy(task)
        twin.model = call
        return twin.output(rows).loss

    return run


def taken(task: SentenceTask, spec: str, rows: list[int]) -> reference.Weights:
    method = deltasam.make_method(spec, task.model)
    torch.manual_seed(4)
    method.backward(lambda: task.output(rows))
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in task.model.named_parameters()}


def assert_close(found: reference.Weights, wanted: reference.Weights) -> None:
    difference = {name: found[name] - wanted[name] for name in wanted}
    assert reference.norm(difference) < 1e-9 * reference.norm(wanted)
    assert reference.norm(wanted) > 0.1


def test_per_instance_sam_is_exact(task: SentenceTask) -> None:
    """A sentence's two views share a copy of the weights and a perturbation; dropout and masked spans are replayed."""
    task.model.double()
    rows = [3, 0, 7, 11]
    torch.manual_seed(4)
    of_copies, weights = reference.copies_function(task.model, losses(task, rows))
    wanted, _ = reference.per_instance_sam_of_copies(of_copies, weights, rho=RHO, groups=len(rows))
    shared = reference.sam(lambda w: of_copies([w]), weights, rho=RHO)
    assert_close(taken(task, f"per_instance_sam:rho={RHO}", rows), wanted)
    assert reference.norm({n: shared[n] - wanted[n] for n in wanted}) > 0.01 * reference.norm(wanted)


def test_sam_is_exact(task: SentenceTask) -> None:
    task.model.double()
    torch.manual_seed(4)
    of_weights, weights = reference.losses_function(task.model, losses(task, [1, 2, 5]))
    assert_close(taken(task, f"sam:rho={RHO}", [1, 2, 5]), reference.sam(of_weights, weights, rho=RHO))


@pytest.mark.parametrize("spec", METHODS)
def test_at_radius_zero_every_method_is_plain_training(task: SentenceTask, spec: str) -> None:
    task.model.double()
    torch.manual_seed(4)
    of_weights, weights = reference.losses_function(task.model, losses(task, [1, 2, 5]))
    neutral = spec if spec == "erm" else f"{spec}{',' if ':' in spec else ':'}rho=0"
    assert_close(taken(task, neutral, [1, 2, 5]), reference.erm(of_weights, weights))


def test_the_second_view_is_masked(task: SentenceTask) -> None:
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    task.output([0, 1, 2])
    mask = task.tokenizer.mask_token_id
    assert (seen[0] == mask).sum() == 0
    assert (seen[1] == mask).sum(1).tolist() == [1, 1, 1]


def test_without_masks_the_views_differ_in_dropout(data: SentenceData, config: TrainConfig) -> None:
    bare = dataclasses.replace(data, contrast=Contrast(masked_characters=0))
    task = make_task(bare, config, "cpu")
    predictions = task.output([0, 1]).logits
    assert predictions is not None
    assert predictions[0, 0, 1] < 0.999 / 0.04  # of the other view of the same sentence
    task.model.eval()
    with torch.no_grad():
        predictions = task.output([0, 1]).logits
    assert predictions is not None
    assert float(predictions[0, 0, 1]) == pytest.approx(1 / 0.04, rel=1e-5)


def test_the_weights_of_the_predictions_make_the_loss(task: SentenceTask) -> None:
    output = task.output([4, 5, 6])
    right = torch.tensor([[2, 0], [3, 1], [4, 2]])
    each = -output.logits.log_softmax(-1).gather(-1, right[:, :, None]).squeeze(-1)
    torch.testing.assert_close((each * output.logit_weights).sum(), output.loss.mean())


def test_metrics(task: SentenceTask, data: SentenceData) -> None:
    task.model.train()
    metrics = task.evaluate()
    assert task.model.training
    assert set(metrics) == {"loss", *data.reported}
    assert data.reported == ("spearman", "spearman_one", "spearman_two")
    assert metrics == task.evaluate()
    with torch.no_grad():
        task.model.eval()
        a, b = (task.embeddings(list(side)) for side in (data.evaluation["one"].first, data.evaluation["one"].second))
    from scipy.stats import spearmanr

    similarities = torch.cosine_similarity(a, b)
    wanted = spearmanr(similarities.numpy(), data.evaluation["one"].scores).statistic
    assert metrics["spearman_one"] == pytest.approx(wanted, abs=0.03)  # the same sentence twice: a tie but for rounding
    assert metrics["spearman"] == pytest.approx((metrics["spearman_one"] + metrics["spearman_two"]) / 2)
    assert 0 < metrics["loss"] < math.inf


def test_metrics_of_a_broken_model(data: SentenceData, config: TrainConfig) -> None:
    """One embedding that is no number, and no metric is one, not even of a set without it."""
    sound = ScoredPairs(("the film", "a plot", "the story"), ("the actor", "a film", "a story"), (1.0, 2.0, 3.0))
    broken = ScoredPairs(("the film is good", "a plot"), ("the actor", "a film"), (1.0, 2.0))
    task = make_task(dataclasses.replace(data, evaluation={"sound": sound, "broken": broken}), config, "cpu")
    assert not any(map(math.isnan, task.evaluate().values()))
    with torch.no_grad():
        task.model.embeddings.word_embeddings.weight[task.tokenizer.convert_tokens_to_ids("good")] = math.nan
    assert all(map(math.isnan, task.evaluate().values()))


def test_two_processes_find_what_one_finds(task: SentenceTask, monkeypatch: pytest.MonkeyPatch) -> None:
    class GoneError(Exception):
        """The first process has said what it found."""

    alone, shares = task.evaluate(), []

    def gather(share: list[Tensor]) -> list[list[Tensor]]:
        shares.append(share)
        if len(shares) == 1:
            raise GoneError
        return shares

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", gather)
    with pytest.raises(GoneError):
        task.evaluate()
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert task.evaluate() == alone
    assert len(shares[0]) - len(shares[1]) in (0, 1)


@pytest.mark.parametrize("method", [*METHODS, "r_drop"])
def test_runs(data: SentenceData, config: TrainConfig, method: str, tmp_path: Path) -> None:
    run = Run(data, config, method, 0)
    before = run.task.evaluate()
    result = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: save_model(tmp_path, run))
    assert result.metric == "spearman"
    assert result.steps[-1].loss < 0.8 * result.steps[0].loss
    assert result.metrics["loss"] != before["loss"]
    if method.startswith("delta_sam"):
        assert {e.text for e in result.examples} == set(data.train)
        assert all(e.label == "" and data.train[e.row] == e.text for e in result.examples)
    from transformers import AutoModel

    again = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(again.named_parameters()), dict(run.model.named_parameters()))


@pytest.mark.parametrize("method", ["r3f", "freelb", "smart"])
def test_methods_that_want_one_forward_say_so(data: SentenceData, config: TrainConfig, method: str) -> None:
    """A sentence has two views, each a forward of its own."""
    with pytest.raises(UserError, match="reads its input embeddings several times"):
        Run(data, config, method, 0).step()


def test_a_part_of_the_sentences(data: SentenceData) -> None:
    part = data.take(5, 0).take(3, 1)
    assert [data.train[row] for row in part.describe()["row"]] == part.describe()["text"] == list(part.train)


def test_choosing_sees_the_selection_set_alone(data: SentenceData) -> None:
    chosen = data.for_selection(0.1)
    assert chosen.evaluation == {"selection": data.selection}
    assert chosen.fingerprint != data.fingerprint
    with pytest.raises(UserError, match="no set to choose"):
        chosen.for_selection(0.1)


def test_models_that_cannot(data: SentenceData, config: TrainConfig, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5Model

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an encoder and a decoder"):
        make_task(data, dataclasses.replace(config, model=str(tmp_path)), "cpu")
    with pytest.raises(UserError, match="reads at most 128 tokens"):
        make_task(data, dataclasses.replace(config, max_length=129), "cpu")
    with pytest.raises(UserError, match="--layers 3: the model has 2"):
        make_task(data, dataclasses.replace(config, layers=3), "cpu")


def test_a_model_without_a_mask(data: SentenceData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltasam.lab.train.tasks import sentences

    def load(config: TrainConfig) -> tuple[Any, Any]:
        model, tokenizer = load_encoder(config)
        tokenizer.mask_token = None
        return model, tokenizer

    load_encoder = sentences.load_encoder
    monkeypatch.setattr(sentences, "load_encoder", load)
    with pytest.raises(UserError, match="has no token for a mask"):
        make_task(data, config, "cpu")
    make_task(dataclasses.replace(data, contrast=Contrast(masked_characters=0)), config, "cpu").output([0, 1])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")
def test_on_real_data(config: TrainConfig) -> None:
    years = [name for name in available_sets(SHARED) if name.startswith("sts1")]
    data = load_sts(SHARED, sets=years).take(12, 0).for_selection(0.1)
    run = Run(data, dataclasses.replace(config, epochs=1), "per_instance_sam", 0)
    result = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    assert math.isfinite(result.metrics["spearman"])


def test_each_view_is_tokenised_once_per_step(task: SentenceTask) -> None:
    calls: list[tuple[str, ...]] = []
    tokenizer = task.tokenizer

    class Counting:
        mask_token = tokenizer.mask_token

        def __call__(self, sentences: list[str], **options: Any) -> Any:
            calls.append(tuple(sentences))
            return tokenizer(sentences, **options)

    task.tokenizer = Counting()
    rows = [3, 0, 7, 11]
    for spec in ("sam", "per_instance_sam"):
        calls.clear()
        method = deltasam.make_method(spec, task.model)
        for step in (1, 2, 3):
            method.backward(lambda: task.output(rows))
            assert len(calls) <= 1 + step  # the view as it is stays the same; what is masked is drawn for each step
        assert len(calls) == len(set(calls))
