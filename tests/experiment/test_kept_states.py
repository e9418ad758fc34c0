"""Training the last layers on kept hidden states equals training with the layers below frozen, in evaluation mode."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from deltasam.errors import UserError
from deltasam.lab.compare.grid import Grid
from deltasam.lab.data import TextData
from deltasam.lab.data.noise import add_label_noise
from deltasam.lab.data.setting import Setting
from deltasam.lab.train import kept_states
from deltasam.lab.train.batches import shuffled
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.kept_states import LowerLayers, padded
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.saved_model import save_model


@pytest.fixture
def top(config: TrainConfig) -> TrainConfig:
    """Of two layers, the last is trained."""
    return dataclasses.replace(config, train_layers=1)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_states._KEPT.clear()


def finish(run: Run) -> Any:
    return train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)


def test_equals_a_loop_with_frozen_layers(data: TextData, top: TrainConfig) -> None:
    run = Run(data, top, "erm", 5)
    result = finish(run)

    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(top.model)
    model = AutoModelForSequenceClassification.from_pretrained(top.model, num_labels=2)
    below = [model.bert.embeddings, model.bert.encoder.layer[0]]
    for module in below:
        module.requires_grad_(False)
    torch.manual_seed(5)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if (p.ndim > 1) is big], "weight_decay": 0.01 * big} for big in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=top.learning_rate)
    losses, total = [], 2 * math.ceil(len(data.train) / 6)
    for step in range(total):
        epoch, position = divmod(step, total // 2)
        rows = shuffled(len(data.train), 5, epoch)[position * 6 : position * 6 + 6]
        batch = tokenizer([data.train["text"][r] for r in rows], padding=True, return_tensors="pt")
        model.train()
        for module in below:
            module.eval()
        loss = model(**batch, labels=torch.tensor([data.train["label"][r] for r in rows])).loss
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        warm = round(0.1 * total)
        for group in optimizer.param_groups:
            group["lr"] = top.learning_rate * (step / warm if step < warm else (total - step) / (total - warm))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    torch.testing.assert_close(torch.tensor([s.loss for s in result.steps]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(run.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
    model.eval()
    encoded = tokenizer(list(data.evaluation["text"]), padding=True, return_tensors="pt")
    right = (model(**encoded).logits.argmax(1) == torch.tensor(list(data.evaluation["label"]))).float().mean()
    assert result.metrics["accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("method", ["sam:rho=0.3", "delta_sam:rho=0.3", "per_instance_sam:rho=0.3"])
def test_methods_see_what_they_see_in_a_frozen_model(data: TextData, top: TrainConfig, method: str) -> None:
    run = Run(data, top, method, 0)
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in run.model.named_parameters() if "embeddings" not in n and "layer.0" not in n}
    run.model.zero_grad()
    torch.manual_seed(3)
    run.method.backward(run.closure(run.rows(0)))
    found = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.requires_grad}
    whole = Run(data, dataclasses.replace(top, train_layers=0), method, 0)
    for name, parameter in whole.model.named_parameters():
        parameter.requires_grad_(name in trained)
    forward = whole.task.output

    def in_evaluation_mode(rows: list[int]) -> Any:
        whole.model.bert.embeddings.eval()
        whole.model.bert.encoder.layer[0].eval()
        return forward(rows)

    whole.task.output = in_evaluation_mode  # type: ignore[method-assign]
    torch.manual_seed(3)
    whole.method.backward(whole.closure(run.rows(0)))
    for name, parameter in whole.model.named_parameters():
        if name in trained:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_lower_layers_run_once(data: TextData, top: TrainConfig) -> None:
    run = Run(data, top, "sam", 0)
    calls = []
    run.model.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    run.step()
    run.evaluate()
    assert not calls
    again = Run(data, top, "erm", 1)
    again.model.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    again.step()
    assert not calls


def test_the_saved_model_is_whole(data: TextData, top: TrainConfig, tmp_path: Path) -> None:
    run = Run(data, top, "erm", 0)
    run.step()
    save_model(tmp_path, run)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    inputs, _ = run.task.evaluation_batches[""].batch([0, 1, 2])
    run.model.eval()
    expected = run.task.logits(dict(inputs))
    inputs.pop(kept_states.STATES)
    torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in run.model.named_parameters()}


def test_hidden_states_do_not_hang_on_what_ran_before(data: TextData, top: TrainConfig) -> None:
    alone = finish(Run(data, top, "erm", 1))
    kept_states._KEPT.clear()
    Run(data.take(8, 3), top, "erm", 0)
    assert [s.loss for s in finish(Run(data, top, "erm", 1)).steps] == [s.loss for s in alone.steps]


def test_on_disk_where_memory_is_short(data: TextData, top: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = finish(Run(data, top, "erm", 1))
    kept_states._KEPT.clear()
    monkeypatch.setattr(kept_states, "_free_memory", lambda: 0.0)
    mapped: list[Any] = []
    memmap = kept_states.np.memmap
    monkeypatch.setattr(kept_states.np, "memmap", lambda *a, **k: mapped.append(1) or memmap(*a, **k))
    assert [s.loss for s in finish(Run(data, top, "erm", 1)).steps] == [s.loss for s in in_memory.steps]
    assert len(mapped) == 2  # the training rows', the evaluation rows'


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each forward of the lower layers that computes states."""
    rows: list[int] = []
    run = LowerLayers._run

    def noted(self: LowerLayers, inputs: dict[str, Tensor]) -> Tensor:
        rows.append(len(inputs["input_ids"]))
        return run(self, inputs)

    monkeypatch.setattr(LowerLayers, "_run", noted)
    return rows


def losses(run: Run) -> list[float]:
    return [s.loss for s in finish(run).steps]


def test_processes_that_share_a_folder_compute_them_once(
    data: TextData, top: TrainConfig, tmp_path: Path, computed: list[int]
) -> None:
    alone = {method: losses(Run(data, top, method, 1)) for method in ("erm", "sam")}
    with kept_states.shared_in(tmp_path):
        kept_states._KEPT.clear()
        assert losses(Run(data, top, "erm", 1)) == alone["erm"]
        kept_states._KEPT.clear()  # as in another process
        computed.clear()
        noisy = add_label_noise(data, 0.4, 1)  # other labels, the same texts
        other = Run(noisy, top, "sam", 1)
        assert computed == [2]  # the check that the model can be cut there
        assert losses(Run(data, top, "sam", 1)) == alone["sam"]
        before = [p.read_bytes() for p in sorted(tmp_path.glob("*.pt"))]
        other.task.train_batches._states[0].zero_()
        assert [p.read_bytes() for p in sorted(tmp_path.glob("*.pt"))] == before  # it was its own copy
    assert len(before) == 2  # the training rows', the evaluation rows'
    assert not list(tmp_path.glob("*.[0-9]*"))


@pytest.mark.parametrize("trouble", ["damaged", "no folder", "no space", "no locks"])
def test_without_what_others_computed(
    data: TextData, top: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    alone = losses(Run(data, top, "erm", 1))
    folder = tmp_path / "shared"
    folder.mkdir()
    with kept_states.shared_in(folder):
        kept_states._KEPT.clear()
        if trouble == "damaged":
            Run(data, top, "erm", 1)
            for path in folder.glob("*.pt"):
                path.write_bytes(path.read_bytes()[:100])
            kept_states._KEPT.clear()
        elif trouble == "no folder":
            folder.rmdir()
        elif trouble == "no space":

            def full(block: Tensor, path: Path) -> None:
                path.write_bytes(b"half")
                raise RuntimeError("unexpected pos 64 vs 0")

            monkeypatch.setattr(torch, "save", full)
        else:
            monkeypatch.setitem(sys.modules, "fcntl", None)
        assert losses(Run(data, top, "erm", 1)) == alone
    if trouble == "no space":
        assert {path.suffix for path in folder.iterdir()} == {".lock"}


def test_a_trial_run_computes_none(data: TextData, top: TrainConfig, computed: list[int]) -> None:
    Grid(data, top, ["erm", "sam"], [0, 1], [Setting(12)]).check()
    assert computed == [2]
    assert not kept_states._KEPT


@pytest.mark.parametrize(("most", "kept"), [(kept_states.BYTES, 7), (0, kept_states.SPLITS)])
def test_how_many_are_kept(
    data: TextData, top: TrainConfig, monkeypatch: pytest.MonkeyPatch, computed: list[int], most: int, kept: int
) -> None:
    """One split of evaluation rows, six of training rows."""
    monkeypatch.setattr(kept_states, "BYTES", most)
    for seed in range(6):
        Run(data.take(8, seed), top, "erm", seed)
    assert len(kept_states._KEPT) == kept
    computed.clear()
    Run(data.take(8, 0), top, "sam", 0)
    assert computed == ([2] if kept == 7 else [2, 8])


def decoder(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16, pad_token_id=0)
        return GPT2ForSequenceClassification(config)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=50, num_hidden_layers=3, pad_token_id=0, **sizes)
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("trained", [1, 2])
def test_decoders(kind: str, trained: int) -> None:
    model = decoder(kind).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    expected = model(**inputs).logits
    layers = LowerLayers(model, trained, lambda some: model(**some).logits, inputs)
    states = layers.states_of([inputs], "these")
    assert [tuple(s.shape) for s in states] == [(4, 16), (2, 16)]
    with layers.giving(padded(states, inputs["attention_mask"])):
        torch.testing.assert_close(model(**inputs).logits, expected)
    per_layer = sum(p.numel() for p in model.base_model.parameters() if p.requires_grad) / trained
    assert per_layer < sum(p.numel() for p in model.base_model.parameters()) / 3


class Skips(nn.Module):
    """The first layer's output goes to the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        first = self.layers[0](self.embed(input_ids))
        return (self.layers[2](self.layers[1](first)) + first).mean(1)


def test_a_model_that_uses_them_elsewhere_is_refused() -> None:
    inputs = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    model: Any = Skips()
    with pytest.raises(UserError, match="--train-layers: this model uses what its lower layers give elsewhere too"):
        LowerLayers(model, 1, lambda some: model(**some), inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_layers": 2}, "--train-layers 2: the model has 2; give fewer, or 0 to train all"),
        ({"train_layers": 1, "layers": 1}, "--train-layers 1: the model has 1; give fewer"),
        ({"train_layers": -1}, r"--train-layers -1: must be 0 \(all\) or more"),
    ],
)
def test_refusals(data: TextData, config: TrainConfig, change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Run(data, dataclasses.replace(config, **change), "erm", 0)


def test_an_exception_in_a_step_leaves_nothing_given(data: TextData, top: TrainConfig) -> None:
    run = Run(data, top, "erm", 0)
    inputs, _ = run.task.train_batches.batch([0, 1])
    layers: Any = run.task._lower

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    hook = run.model.classifier.register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        run.task.logits(dict(inputs))
    hook.remove()
    assert layers._given is None
