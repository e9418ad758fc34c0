"""TRL's trainers for preferences: an example is a pair, and the trainer's own loss is that of the loop by hand."""

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

import tiny_trainers as tiny
from tiny_language_model import gpt2, texts, tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from deltasam.integrations.halves import InHalves  # noqa: E402
from deltasam.integrations.hf import MethodTrainerMixin  # noqa: E402
from deltasam.integrations.trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # noqa: E402

SPECS = [spec for spec in tiny.SPECS if "slopes" not in spec and "global" not in spec]
BETA = 2.0
PAIRS = 12
MARGINS = torch.linspace(-1, 1, PAIRS).double()


def options(folder: Path, spec: str, **given: Any) -> dict[str, Any]:
    return tiny.settings(folder, spec, **{"bf16": False, "gradient_checkpointing": False, **given})


def scorer() -> Any:
    """One number per text."""
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**gpt2().config.to_dict() | {"num_labels": 1})
    )
    model.config.pad_token_id = 0
    return model.double()


def reference_model() -> Any:
    """Another one than that which is trained."""
    model = gpt2()
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def pairs() -> dict[str, list[list[int]]]:
    return {"chosen_ids": texts(), "rejected_ids": texts()[5:] + texts()[:5]}


def reward_trainer(folder: Path, spec: str, *, margins: bool = True, **given: Any) -> Any:
    data = datasets.Dataset.from_dict({**pairs(), **({"margin": MARGINS.tolist()} if margins else {})})
    args = RewardConfig(**options(folder, spec, **given))
    return RewardTrainer(scorer(), args, train_dataset=data, processing_class=tokenizer())


def dpo_trainer(folder: Path, spec: str, model: Any = None, *, own: Any = None, **given: Any) -> Any:
    words = {k: [" ".join(map(str, [i - 3 for i in ids])) + " " for ids in v] for k, v in pairs().items()}
    prompts = [f"{i} {i + 1} " for i in range(PAIRS)]
    data = datasets.Dataset.from_dict(
        {"prompt": prompts, "chosen": words["chosen_ids"], "rejected": words["rejected_ids"]}
    )
    args = DPOConfig(**{"beta": BETA, "max_length": 16, **options(folder, spec, **given)})
    model = gpt2() if model is None else model
    return DPOTrainer(model, own or reference_model(), args, train_dataset=data, processing_class=tokenizer())


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def scores(call: Callable[..., Any], rows: list[list[int]]) -> Tensor:
    ids, mask = padded(rows)
    return call(input_ids=ids, attention_mask=mask).logits.squeeze(-1)


def reward_losses(call: Callable[..., Any], which: range, *, margins: bool = True, center: float = 0.0) -> Tensor:
    """One loss per pair, the chosen texts apart from the rejected ones."""
    chosen, rejected = (scores(call, [pairs()[k][i] for i in which]) for k in ("chosen_ids", "rejected_ids"))
    margin = MARGINS[list(which)] if margins else 0.0
    return -F.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected).square()


def log_probability(call: Callable[..., Any], prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    ids, mask = padded([p + a for p, a in zip(prompts, answers, strict=True)])
    logits = call(input_ids=ids, attention_mask=mask).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    counted = mask.clone()
    for i, prompt in enumerate(prompts):
        counted[i, : len(prompt)] = 0
    return (tokens * counted[:, 1:]).sum(1)


def dpo_losses(call: Callable[..., Any], rows: Any, reference: Any, loss: str = "sigmoid") -> Tensor:
    """One loss per pair."""
    ratios = []
    for key in ("chosen_ids", "rejected_ids"):
        prompts, answers = [r["prompt_ids"] for r in rows], [r[key] for r in rows]
        with torch.no_grad():
            before = log_probability(reference, prompts, answers)
        ratios.append(log_probability(call, prompts, answers) - before)
    if loss == "bco_pair":
        return -F.logsigmoid(BETA * ratios[0]) - F.logsigmoid(-BETA * ratios[1])
    return -F.logsigmoid(BETA * (ratios[0] - ratios[1]))


def steps(count: int, losses: Callable[..., Tensor]) -> list[Any]:
    """Four steps over four pairs each, cut into so many micro-batches; each counts as a part of the step."""
    size = tiny.EXAMPLES // count
    parts = itertools.cycle([range(i, i + size) for i in range(0, PAIRS, size)])
    run = lambda part: lambda call: losses(call, part) / count  # noqa: E731
    return [[run(next(parts)) for _ in range(count)] for _ in range(4)]


def in_parts(count: int) -> dict[str, int]:
    return {"per_device_train_batch_size": tiny.EXAMPLES // count, "gradient_accumulation_steps": count}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", SPECS)
def test_rewards_equal_the_loop_by_hand(spec: str, count: int, tmp_path: Path) -> None:
    made = reward_trainer(tmp_path, spec, **in_parts(count))
    made.train()
    tiny.assert_close(made.model, tiny.by_hand(scorer(), spec, steps(count, reward_losses)), 1e-8)


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_centered_rewards(spec: str, tmp_path: Path) -> None:
    made = reward_trainer(tmp_path, spec, margins=False, center_rewards_coefficient=0.3)
    made.train()
    losses = lambda call, part: reward_losses(call, part, margins=False, center=0.3)  # noqa: E731
    tiny.assert_close(made.model, tiny.by_hand(scorer(), spec, steps(1, losses)), 1e-9)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", SPECS)
def test_preferences_equal_the_loop_by_hand(spec: str, count: int, tmp_path: Path) -> None:
    """TRL's fused head computes in float32 whatever the model's type, so not closer than that."""
    made = dpo_trainer(tmp_path, spec, **in_parts(count))
    made.train()
    losses = lambda call, part: dpo_losses(call, [made.train_dataset[i] for i in part], reference_model())  # noqa: E731
    exact = made.method.per_example
    tiny.assert_close(made.model, tiny.by_hand(gpt2(), spec, steps(count, losses)), 1e-9 if exact else 1e-5)


def test_another_loss(tmp_path: Path) -> None:
    made = dpo_trainer(tmp_path, spec := "per_instance_sam:rho=0.1", loss_type="bco_pair")
    made.train()
    rows = lambda part: [made.train_dataset[i] for i in part]  # noqa: E731
    losses = lambda call, part: dpo_losses(call, rows(part), reference_model(), "bco_pair")  # noqa: E731
    tiny.assert_close(made.model, tiny.by_hand(gpt2(), spec, steps(1, losses)), 1e-9)


@pytest.mark.parametrize("given", ["an adapted model", "adapters to make"])
def test_adapters_whose_reference_is_in_the_model(given: str, tmp_path: Path) -> None:
    """TRL keeps a copy of the adapters that it was given as the reference, or takes the model without any."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)

    def adapted() -> Any:
        model = gpt2()
        torch.manual_seed(2)
        return peft.get_peft_model(model, config).double()

    spec = "per_instance_sam:rho=0.1"
    rows = list(dpo_trainer(tmp_path, spec).train_dataset)
    data = datasets.Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
    args = DPOConfig(**options(tmp_path, spec, beta=BETA, max_length=16))
    model, more = (adapted(), {}) if given == "an adapted model" else (gpt2(), {"peft_config": config})
    made = DPOTrainer(model, None, args, train_dataset=data, processing_class=tokenizer(), **more)
    made.model.double()
    start = {n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad}
    made.train()

    model, reference = adapted(), adapted() if given == "an adapted model" else gpt2()
    model.load_state_dict(start, strict=False)
    losses = lambda call, part: dpo_losses(call, [rows[i] for i in part], reference)  # noqa: E731
    expected = {n: p for n, p in tiny.by_hand(model, spec, steps(1, losses)).named_parameters() if p.requires_grad}
    trained = dict(made.model.named_parameters())
    assert expected.keys() == start.keys()
    off, moved = (torch.stack([(p - w[n]).norm() for n, p in expected.items()]).norm() for w in (trained, start))
    assert off <= 1e-9 * moved
    assert made.ref_model is None


@pytest.mark.parametrize("spec", ["sam:rho=0.3", "per_instance_sam:rho=0.3"])
@pytest.mark.parametrize("make", [reward_trainer, dpo_trainer])
def test_what_the_trainer_logs_is_of_the_first_pass(make: Any, spec: str, tmp_path: Path) -> None:
    plain, ours = (make(tmp_path, s) for s in ("erm", spec))
    plain.train(), ours.train()
    for expected, entry in zip(plain.state.log_history[:4], ours.state.log_history[:4], strict=True):
        assert entry["num_tokens"] == expected["num_tokens"]
    expected, entry = plain.state.log_history[0], ours.state.log_history[0]  # the weights are the same here
    assert set(entry) >= set(expected)
    for key in set(expected) - {"grad_norm"}:
        assert entry[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
    assert entry["perturbed_loss"] > entry["loss"]


def test_the_plain_head_tells_what_the_fused_one_tells(tmp_path: Path) -> None:
    """Also the weights of WPO, which are made of the sum of squared probabilities."""
    fused, plain = (
        dpo_trainer(tmp_path, spec, use_weighting=True) for spec in ("sam:rho=0.0", "per_instance_sam:rho=0.0")
    )
    fused.train(), plain.train()
    for expected, entry in zip(fused.state.log_history[:4], plain.state.log_history[:4], strict=True):
        for key in set(expected) - {"ascent_norm"}:
            assert entry[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("make", [reward_trainer, dpo_trainer])
def test_evaluation_is_the_trainers_own(make: Any, tmp_path: Path) -> None:
    losses = []
    for spec in ("sam:rho=0.0", "per_instance_sam:rho=0.0"):
        made = make(tmp_path, spec)
        made.train()
        losses.append(made.evaluate(made.train_dataset.select(range(4)))["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("make", [reward_trainer, dpo_trainer])
def test_losses_per_pair_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="override example_losses in your trainer"):
        make(tmp_path, "delta_sam:rho=0.1,weights=slopes").train()


def test_the_routers_loss_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**sizes, vocab_size=tiny.WORDS, num_key_value_heads=2, num_local_experts=2)
    model, own = transformers.MixtralForCausalLM(config), transformers.MixtralForCausalLM(config)
    made = dpo_trainer(tmp_path, "per_instance_sam:rho=0.1", model, own=own, router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match="auxiliary loss is that of the whole batch; set router_aux_loss_coef=0"):
        made.train()


# Halves


def test_one_row_per_pair_in_each_call() -> None:
    seen: list[dict[str, Any]] = []

    def call(**inputs: Any) -> dict[str, Any]:
        seen.append(inputs)
        return {"logits": inputs["input_ids"] * 2, "loss": torch.zeros(()), "past_key_values": None}

    ids, margin = torch.arange(12).view(6, 2), torch.arange(3)
    output = InHalves(call)(input_ids=ids, margin=margin, use_cache=False)
    assert torch.equal(output["logits"], ids * 2)
    assert list(output) == ["logits"]  # the loss of a half is not the whole's
    for half, inputs in zip(ids.chunk(2), seen, strict=True):
        assert torch.equal(inputs["input_ids"], half)
        assert inputs["margin"] is margin
        assert inputs["use_cache"] is False


def test_what_is_not_in_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pixel_values \[7, 3\] cannot be split into pairs: the batch has 6 rows"):
        InHalves(dict)(input_ids=torch.zeros(6, 2), pixel_values=torch.zeros(7, 3))


# The mixin in front of TRL's own trainers


class BareReward(MethodTrainerMixin, trl.RewardTrainer):
    pass


def bare_reward(folder: Path, spec: str, kind: type = BareReward) -> Any:
    args = trl.RewardConfig(**{k: v for k, v in options(folder, spec).items() if k != "method"})
    data = datasets.Dataset.from_dict(pairs())
    return kind(scorer(), args=args, train_dataset=data, processing_class=tokenizer(), method=spec)


@pytest.mark.parametrize("spec", ["per_instance_sam:rho=0.1", "delta_sam:rho=0.1"])
def test_rows_of_unknown_meaning_are_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batches of RewardTrainer need not be one .* deltasam\.integrations\.trl"):
        bare_reward(tmp_path, spec).train()


def test_one_perturbation_per_batch_is_not_and_counts_once(tmp_path: Path) -> None:
    entries = []
    for spec in ("erm", "sam:rho=0.3"):
        made = bare_reward(tmp_path, spec)
        made.train()
        entries.append(made.state.log_history[0])
    for key in ("margin", "mean_reward", "accuracy", "num_tokens"):
        assert entries[1][key] == pytest.approx(entries[0][key])


@pytest.mark.parametrize("known", [False, True])
def test_who_says_so_is_believed(known: bool, tmp_path: Path) -> None:
    class Rows(BareReward):
        rows_are_examples = known

    made = bare_reward(tmp_path, "per_instance_sam:rho=0.1", Rows)
    if known:
        made.train()
    else:
        with pytest.raises(ValueError, match=r"Rows\.rows_are_examples is False"):
            made.train()


def test_trainers_that_generate_are_refused(tmp_path: Path) -> None:
    class Online(MethodTrainerMixin, trl.GRPOTrainer):
        pass

    with pytest.raises(NotImplementedError, match="GRPOTrainer generates texts in the training step"):
        Online(nn.Linear(1, 1), method="sam")
