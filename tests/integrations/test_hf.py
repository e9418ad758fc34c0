"""The Hugging Face trainer with a method, beside the same steps by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import deltasam
import regularisers
import tiny_trainers as tiny
from deltasam.core.restore import WeightStore
from deltasam.integrations.hf import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from matrix import task
from tiny_language_model import gpt2


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """What delta-SAM draws, one entry for each micro-batch."""
    drawn: list[list[Tensor]] = []
    draw = WeightStore.gaussian

    def gaussian(*args: Any) -> Any:
        result = list(draw(*args))
        drawn.append([z.clone() for z in result])
        return result

    monkeypatch.setattr(WeightStore, "gaussian", gaussian)
    return drawn


def train(folder: Path, method: str, model: nn.Module | None = None, **options: Any) -> Trainer:
    trainer = Trainer(
        tiny.model() if model is None else model,
        TrainingArguments(**tiny.settings(folder, method, **options)),
        train_dataset=tiny.rows(),
    )
    trainer.train()
    return trainer


def micro_batches(count: int, *, of_all: bool = True) -> list[list[Callable[..., Tensor]]]:
    """Four steps over four rows each, in so many micro-batches."""
    size, rows = tiny.EXAMPLES // count, tiny.rows()
    batches = [tiny.collate(rows[i : i + size]) for i in range(0, len(rows), size)]

    def losses(batch: dict[str, Tensor], call: Callable[..., Any]) -> Tensor:
        losses = F.cross_entropy(call(**batch).logits, batch["labels"], reduction="none")
        return losses * size / tiny.EXAMPLES if of_all else losses

    runs = itertools.cycle([lambda call, b=b: losses(b, call) for b in batches])
    return [[next(runs) for _ in range(count)] for _ in range(4)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", tiny.SPECS)
def test_equals_the_loop_by_hand(spec: str, count: int, tmp_path: Path, noise: list[list[Tensor]]) -> None:
    """Accumulation, clipping and a linear schedule, with the gradient straight from the equation."""
    options = {"per_device_train_batch_size": tiny.EXAMPLES // count, "gradient_accumulation_steps": count}
    trainer = train(tmp_path, spec, **options)
    expected = tiny.by_hand(tiny.model(), spec, micro_batches(count), noise=noise)
    tiny.assert_close(trainer.model, expected, 1e-9)


def test_the_trainers_own_normalisation_stays(tmp_path: Path, noise: list[list[Tensor]]) -> None:
    """A model that takes and ignores num_items_in_batch: each micro-batch counts as a whole, as in plain training."""
    model = tiny.model(transformers.BertForSequenceClassification)
    trainer = train(tmp_path, "sam:rho=0.1", model, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    start = tiny.model(transformers.BertForSequenceClassification)
    tiny.assert_close(trainer.model, tiny.by_hand(start, "sam:rho=0.1", micro_batches(2, of_all=False)), 1e-9)


@pytest.mark.parametrize("spec", ["erm", "per_instance_sam:rho=0.1", "sam:rho=0.1,share=rank"])
def test_one_batch_two_halves_or_four_quarters_are_the_same(spec: str, tmp_path: Path) -> None:
    def trained(size: int) -> nn.Module:
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size, "max_steps": 3}
        args = TrainingArguments(**tiny.settings(tmp_path, spec, **options))
        trainer = Trainer(tiny.model(), args, train_dataset=tiny.rows(48))
        trainer.train()
        return trainer.model

    for size in (8, 4):
        tiny.assert_close(trained(size), trained(16), 1e-10)


def test_a_perturbation_for_each_micro_batch_is_not_the_same(tmp_path: Path) -> None:
    """What the test above would not see if nothing were perturbed."""
    cut = train(tmp_path, "sam:rho=0.1", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    with pytest.raises(AssertionError):
        tiny.assert_close(cut.model, train(tmp_path, "sam:rho=0.1").model, 1e-6)


# Which method


@pytest.mark.parametrize("plain_arguments", [False, True])
def test_the_argument_comes_before_the_field(plain_arguments: bool, tmp_path: Path) -> None:
    kind = transformers.TrainingArguments if plain_arguments else TrainingArguments
    options = tiny.settings(tmp_path, "erm")
    if plain_arguments:
        del options["method"]
    trainer = Trainer(tiny.model(), kind(**options), train_dataset=tiny.rows(), method="sam:rho=0.1")
    assert trainer.args.method == "sam:rho=0.1"
    trainer.train()
    tiny.assert_close(trainer.model, train(tmp_path, "sam:rho=0.1").model, 0)


def test_a_ready_method(tmp_path: Path) -> None:
    model = tiny.model()
    method = deltasam.SAM(model, rho=0.1)
    trainer = Trainer(
        model, TrainingArguments(**tiny.settings(tmp_path, "erm")), train_dataset=tiny.rows(), method=method
    )
    trainer.train()
    assert trainer.method is method
    assert trainer.args.method == method.spec
    tiny.assert_close(trainer.model, train(tmp_path, "sam:rho=0.1").model, 0)


def test_a_ready_scheduled_method_counts_each_training_from_its_start(tmp_path: Path) -> None:
    model = tiny.model()
    args = TrainingArguments(**tiny.settings(tmp_path, "erm", max_steps=3))
    method = deltasam.make_method("sam:rho=0.1@every=3", model)
    trainer = Trainer(model, args, train_dataset=tiny.rows(), method=method)
    trainer.train()
    trainer.train()
    perturbed = ["perturbed_loss" in entry for entry in trainer.state.log_history if "loss" in entry]
    assert perturbed == [True, False, False]
    assert method.state_dict()["steps"] == 3


@pytest.mark.parametrize("with_init", [False, True])
def test_a_method_of_another_model_is_an_error_at_construction(with_init: bool, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model_init": tiny.new_model} if with_init else {"model": tiny.model()}
    with pytest.raises(ValueError, match=r"made for another model.*give its spec instead: method='sam:rho=0.1"):
        Trainer(
            args=TrainingArguments(**tiny.settings(tmp_path, "erm")),
            method=deltasam.SAM(tiny.model(), rho=0.1),
            **given,
        )


def test_several_devices_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several are visible and nothing starts a process for each, transformers takes nn.DataParallel."""
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", property(lambda _: 2))
    with pytest.raises(NotImplementedError, match=r"nn.DataParallel for 2 devices.*torchrun --nproc-per-node=2"):
        train(tmp_path, "sam")


def test_no_method_is_an_error(tmp_path: Path) -> None:
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"Trainer needs a method: Trainer\(\.\.\., method='sam:rho=0.05'\)"):
        Trainer(tiny.model(), args)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("samm", "unknown method 'samm'; did you mean 'sam'"),
        ("sam:roh=1", "no hyper-parameter 'roh'; did you mean 'rho'"),
    ],
)
def test_an_unknown_method_is_an_error_at_construction(method: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(tiny.model(), TrainingArguments(**tiny.settings(tmp_path, method)))


def test_the_field_is_one_of_the_arguments(tmp_path: Path) -> None:
    parser = transformers.HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--method", "asam:rho=0.5", "--use_cpu", "--report_to", "none"]
    )
    assert args.method == args.to_dict()["method"] == "asam:rho=0.5"
    Trainer(tiny.model(), args).save_model(str(tmp_path / "saved"))
    saved = torch.load(tmp_path / "saved" / "training_args.bin", weights_only=False)
    assert saved.method == "asam:rho=0.5"


# What is logged


def history(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1", "sam:rho=0.1,share=rank"])
def test_means_since_the_last_log(spec: str, tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    each = history(train(tmp_path, spec, **options))
    pairs = history(train(tmp_path, spec, **options, logging_steps=2))
    assert len(each) == 4
    assert len(pairs) == 2
    for i, pair in enumerate(pairs):
        for key in ("loss", "perturbed_loss", "ascent_norm", "radius_ratio"):
            assert pair[key] == pytest.approx((each[2 * i][key] + each[2 * i + 1][key]) / 2, rel=1e-6)
        assert pair["perturbed_loss"] > pair["loss"]
        assert pair["radius_ratio"] == pytest.approx(1, abs=1e-6)


def test_steps_that_are_not_perturbed_do_not_count(tmp_path: Path) -> None:
    each = history(train(tmp_path, "sam:rho=0.1@every=2"))
    assert ["perturbed_loss" in entry for entry in each] == [True, False, True, False]
    pairs = history(train(tmp_path, "sam:rho=0.1@every=2", logging_steps=2))
    for one, pair in zip(each[::2], pairs, strict=True):
        assert pair["perturbed_loss"] == pytest.approx(one["perturbed_loss"])


def test_tensorboard_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = train(tmp_path, "sam:rho=0.1", report_to="tensorboard")
    (file,) = (tmp_path / "logs").rglob("events.out.*")
    events = event_accumulator.EventAccumulator(str(file)).Reload()
    for key in ("perturbed_loss", "ascent_norm", "radius_ratio"):
        written = [event.value for event in events.Scalars(f"train/{key}")]
        assert written == pytest.approx([entry[key] for entry in history(trainer)], rel=1e-6)


def test_hyperparameter_search(tmp_path: Path) -> None:
    """Each trial is trained from a new model with the method of its own."""
    pytest.importorskip("optuna")
    args = TrainingArguments(**tiny.settings(tmp_path, "erm", eval_strategy="no"))
    trainer = Trainer(
        model_init=tiny.new_model, args=args, train_dataset=tiny.rows(), eval_dataset=tiny.rows(4, seed=2)
    )
    trained: list[tuple[str, nn.Module]] = []

    def objective(metrics: dict[str, float]) -> float:
        trained.append((trainer.method.spec, trainer.model))
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"method": f"sam:rho={trial.suggest_categorical('rho', [0.0, 0.1, 0.4])}"},
        compute_objective=objective,
        n_trials=3,
        backend="optuna",
        sampler=__import__("optuna").samplers.GridSampler({"rho": [0.0, 0.1, 0.4]}),
    )
    assert {spec for spec, _ in trained} == {f"sam:rho={rho},share=micro-batch" for rho in (0.0, 0.1, 0.4)}
    for spec, model in trained:
        tiny.assert_close(model, train(tmp_path, spec).model, 0)
    assert best.hyperparameters["rho"] in (0.0, 0.1, 0.4)


# Ways of training


def test_adapters(tmp_path: Path, noise: list[list[Tensor]]) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        model = tiny.model()
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
        )
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.3)
        return model.double()

    trainer = train(tmp_path, "per_instance_sam:rho=0.1", adapted(), label_names=["labels"])
    tiny.assert_close(trainer.model, tiny.by_hand(adapted(), "per_instance_sam:rho=0.1", micro_batches(1)), 1e-9)


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_gradient_checkpointing(spec: str, tmp_path: Path) -> None:
    model = tiny.model()
    trainer = train(tmp_path, spec, model, gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    tiny.assert_close(trainer.model, tiny.by_hand(tiny.model(), spec, micro_batches(1)), 1e-9)


def test_reentrant_checkpointing_changes_nothing(tmp_path: Path) -> None:
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainers = [train(tmp_path / str(i), "sam:rho=0.1", **options) for i, options in enumerate(({}, reentrant))]
    plain, checkpointed = (trainer.model.state_dict() for trainer in trainers)
    torch.testing.assert_close(checkpointed, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_bfloat16(spec: str, tmp_path: Path) -> None:
    """The trainer's autocast around the closure is autocast around the closure."""
    trainer = train(tmp_path, spec, tiny.model().float(), bf16=True, max_grad_norm=0.0)
    model = tiny.model().float().train()
    method = deltasam.make_method(spec, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [tiny.collate(tiny.rows()[i : i + 4]) for i in (0, 4, 8, 0)]
    for number, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - number / 4)

        def closure() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**batch).logits  # noqa: B023
                losses = F.cross_entropy(logits, batch["labels"], reduction="none")  # noqa: B023
            return losses.float()

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    tiny.assert_close(trainer.model, model, 1e-5)


def test_dropout_is_on_in_every_pass_after_an_evaluation(tmp_path: Path) -> None:
    """The model is in evaluation mode when the next step begins."""
    model, masks = tiny.model(hidden_dropout_prob=0.5), []
    model.dropout.register_forward_hook(lambda module, args, out: masks.append((module.training, (out == 0).sum())))
    args = TrainingArguments(**tiny.settings(tmp_path, "sam:rho=0.1", eval_strategy="steps", eval_steps=1))
    Trainer(model, args, train_dataset=tiny.rows(), eval_dataset=tiny.rows(4, seed=2)).train()
    first, *others = masks  # the first step runs once more, to see whether the closure repeats itself
    assert first[0]
    assert first[1] == others[0][1]
    assert [training for training, _ in others] == [True, True, False] * 4
    for i in range(0, 12, 3):
        assert others[i][1] == others[i + 1][1] > 0  # the same mask


def test_a_trainer_of_ones_own(tmp_path: Path) -> None:
    """The mixin in front of a trainer that computes the loss in its own way."""
    from deltasam.integrations.hf import MethodTrainerMixin

    class Weighted(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop("labels")
            output = model(**inputs, labels=labels)
            loss = F.cross_entropy(output.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]).double())
            return (loss, output) if return_outputs else loss

    class Mine(MethodTrainerMixin, Weighted):
        pass

    args = TrainingArguments(**tiny.settings(tmp_path, "sam:rho=0.1"))
    trainer = Mine(tiny.model(), args, train_dataset=tiny.rows())
    trainer.train()

    def weighted(call: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        weight = torch.tensor([1.0, 2.0, 3.0]).double()
        return F.cross_entropy(call(**batch).logits, batch["labels"], weight=weight)[None]

    batches = [tiny.collate(tiny.rows()[i : i + 4]) for i in (0, 4, 8, 0)]
    steps = [[lambda call, b=batch: weighted(call, b)] for batch in batches]
    tiny.assert_close(trainer.model, tiny.by_hand(tiny.model(), "sam:rho=0.1", steps), 1e-9)


def test_labels_that_the_trainer_takes_out_are_there_in_the_next_pass(tmp_path: Path) -> None:
    """Label smoothing removes them from the inputs, here from the very ones that were given."""

    class Unprepared(Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return inputs

    def trained(kind: type[Trainer]) -> nn.Module:
        args = TrainingArguments(**tiny.settings(tmp_path, "sam:rho=0.1", label_smoothing_factor=0.1))
        model = tiny.model(transformers.BertForSequenceClassification)
        trainer = kind(model, args, train_dataset=tiny.rows())
        trainer.train()
        return trainer.model

    tiny.assert_close(trained(Unprepared), trained(Trainer), 0)


# Plain training is plain


@pytest.mark.parametrize("options", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}])
def test_erm_is_the_plain_trainer_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """The same random numbers: in the order of the rows, and in the dropout masks."""
    histories, models = [], []
    for kind, arguments in ((transformers.Trainer, transformers.TrainingArguments), (Trainer, TrainingArguments)):
        given = tiny.settings(tmp_path, "erm", optim="adamw_torch", train_sampling_strategy="random", **options)
        if arguments is transformers.TrainingArguments:
            del given["method"]
        transformers.set_seed(5)
        model = tiny.model(transformers.BertForSequenceClassification, hidden_dropout_prob=0.3)
        torch.manual_seed(6)
        trainer = kind(model, arguments(**given), train_dataset=tiny.rows())
        trainer.train()
        histories.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e])
        models.append(trainer.model)
    assert histories[0] == histories[1]
    assert torch.equal(*map(tiny.weights_of, models))


# Packed batches

ROWS = [{"input_ids": list(range(3, 3 + n))} for n in (4, 2, 5, 3)]


def packed_by_hand(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    ids = [i for e in examples for i in e["input_ids"]]
    positions = [k for e in examples for k in range(len(e["input_ids"]))]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids]), "position_ids": torch.tensor([positions])}


def numbered(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    batch = packed_by_hand(examples)
    lengths = torch.tensor([0, *[len(e["input_ids"]) for e in examples]])
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], "cu_seq_lens_q": lengths.cumsum(0)}


COLLATORS = {
    "flattening": transformers.DataCollatorWithFlattening(),
    "without position ids": transformers.DataCollatorWithFlattening(return_position_ids=False),
    "by hand": packed_by_hand,
    "lengths": numbered,
}


@pytest.mark.parametrize("spec", ["per_instance_sam:rho=0.1", "per_instance_sam:rho=0.1,unsupported=loop",
                                  "delta_sam:rho=0.1", "delta_sam:rho=0.1,weights=slopes", "sam:rho=0.1"])  # fmt: skip
@pytest.mark.parametrize("seq2seq", [False, True])
@pytest.mark.parametrize("collator", COLLATORS)
def test_packed_rows_are_refused_where_examples_count(spec: str, seq2seq: bool, collator: str, tmp_path: Path) -> None:
    kind, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if seq2seq else (Trainer, TrainingArguments)
    args = arguments(**tiny.settings(tmp_path, spec, max_steps=1))
    trainer = kind(gpt2(), args, train_dataset=ROWS, data_collator=COLLATORS[collator])
    if spec.startswith("sam"):
        trainer.train()
        assert trainer.state.log_history[0]["perturbed_loss"] > trainer.state.log_history[0]["loss"]
    else:
        with pytest.raises(ValueError, match=r"a row of the batch holds several \(.*pad instead of packing"):
            trainer.train()


class OwnPositions(Trainer):
    """The model does not see which positions the batch has."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        del inputs["position_ids"]
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_packed_rows_that_only_the_trainer_sees_are_refused(tmp_path: Path) -> None:
    args = TrainingArguments(**tiny.settings(tmp_path, "per_instance_sam:rho=0.1", max_steps=1))
    trainer = OwnPositions(gpt2(), args, train_dataset=ROWS, data_collator=packed_by_hand)
    with pytest.raises(ValueError, match=r"a row of the batch holds several \(.*pad instead of packing"):
        trainer.train()


# Parameters of the optimizer


class WithHead(Trainer):
    """A loss with a parameter of its own, which the optimizer trains."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.scale = nn.ParameterList([nn.Parameter(torch.ones((), dtype=torch.double))])
        self.optimizer = torch.optim.SGD([*self.model.parameters(), *self.scale.parameters()], lr=0.1)
        return self.optimizer

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self.scale[0]


@pytest.mark.parametrize("spec", ["erm", "sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_parameters_that_the_model_does_not_hold_are_refused(spec: str, tmp_path: Path) -> None:
    trainer = WithHead(tiny.model(), TrainingArguments(**tiny.settings(tmp_path, spec)), train_dataset=tiny.rows())
    with pytest.raises(ValueError, match=r"trains parameters that the method's model does not hold \(scale\.0\)"):
        trainer.train()


def test_a_module_that_holds_them_is_perturbed_whole(tmp_path: Path) -> None:
    class Whole(WithHead):
        def trained_module(self) -> nn.Module:
            return nn.ModuleList([self.model, self.scale])

    args = TrainingArguments(**tiny.settings(tmp_path, "sam:rho=0.1", max_steps=1))
    trainer = Whole(tiny.model(), args, train_dataset=tiny.rows())
    trainer.train()
    model = tiny.model()
    loss = model(**tiny.collate(tiny.rows()[:4])).loss
    squares = sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters())))
    # The gradient of the scale, 1 here, is the loss.
    expected = (squares + loss.square()).sqrt()
    assert trainer.state.log_history[0]["ascent_norm"] == pytest.approx(expected.item(), rel=1e-9)


def test_what_the_trainer_counts_of_its_own(tmp_path: Path) -> None:
    """The names of what it counts in are said once."""

    class Counting(Trainer):
        counts = ("seen",)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.seen["passes"] += 1
            loss = super().compute_loss(*args, **kwargs)
            self.seen["losses"] = self.seen["losses"] + loss  # with its graph
            return loss

    trainer = Counting(
        tiny.model(), TrainingArguments(**tiny.settings(tmp_path, "sam:rho=0.1")), train_dataset=tiny.rows()
    )
    trainer.seen = {"passes": 0, "losses": torch.zeros((), dtype=torch.float64)}
    trainer.train()
    assert trainer.seen["passes"] == 4
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.seen["losses"].item() == pytest.approx(sum(logged), abs=1e-3)


def test_a_step_before_training_is_an_error(tmp_path: Path) -> None:
    trainer = Trainer(tiny.model(), TrainingArguments(**tiny.settings(tmp_path, "sam")))
    with pytest.raises(RuntimeError, match="before the optimizer"):
        trainer.training_step(trainer.model, tiny.collate(tiny.rows(4)))


def test_every_method_is_here() -> None:
    specs = [*tiny.SPECS, *regularisers.SPECS, *task.SPECS]  # of the last, tests/matrix trains with every trainer
    assert {spec.partition(":")[0] for spec in specs} >= set(deltasam.method_names())
