"""TRL's trainer with a method, beside the same steps by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny_trainers as tiny
from tiny_language_model import LENGTHS, gpt2, texts, tokenizer

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from deltasam.integrations.plain_lm_head import add_plain_lm_head  # noqa: E402
from deltasam.integrations.trl import SFTConfig, SFTTrainer  # noqa: E402

SPECS = [spec for spec in tiny.SPECS if "slopes" not in spec and "global" not in spec]


def trainer(folder: Path, method: str, model: nn.Module | None = None, *, given: Any = None, **options: Any) -> Any:
    args = SFTConfig(
        **tiny.settings(folder, method, **{"bf16": False, "gradient_checkpointing": False, "max_length": 16, **options})
    )
    data = datasets.Dataset.from_dict({"input_ids": texts()})
    model = gpt2() if model is None else model
    return SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer(), **(given or {}))


def train(*args: Any, **options: Any) -> Any:
    made = trainer(*args, **options)
    made.train()
    return made


def micro_batches(count: int, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> list[Any]:
    """Four steps over four texts each; every token counts the same, in whichever micro-batch it is."""
    size, steps = tiny.EXAMPLES // count, []
    for start in itertools.islice(itertools.cycle(range(0, len(LENGTHS), tiny.EXAMPLES)), 4):
        rows = texts()[start : start + tiny.EXAMPLES]
        items = sum(map(len, rows))  # for a GPT-2 the trainer counts the first token too
        parts = [rows[i : i + size] for i in range(0, tiny.EXAMPLES, size)]
        steps.append([lambda call, part=part, items=items: losses_of(call, part, items, loss) for part in parts])
    return steps


def losses_of(call: Callable[..., Any], part: list[list[int]], items: int, loss: Any) -> Tensor:
    longest = max(map(len, part))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
    logits = call(input_ids=ids, attention_mask=mask).logits[:, :-1]
    tokens = loss or (lambda a, b: F.cross_entropy(a, b, reduction="none"))
    losses = tokens(logits.flatten(0, 1), ids[:, 1:].flatten()).view(len(part), -1)
    return (losses * mask[:, 1:]).sum(1) * len(part) / items


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_loop_by_hand(spec: str, count: int, tmp_path: Path) -> None:
    """TRL's fused head computes in float32 whatever the model's type, so not closer than that."""
    options = {"per_device_train_batch_size": tiny.EXAMPLES // count, "gradient_accumulation_steps": count}
    trained = train(tmp_path, spec, **options)
    exact = trained.method.per_example
    tiny.assert_close(trained.model, tiny.by_hand(gpt2(), spec, micro_batches(count)), 1e-9 if exact else 1e-6)


def test_slopes_from_the_fused_head(tmp_path: Path) -> None:
    """Losses per example come from the tokens' probabilities, without logits."""
    made = trainer(tmp_path, "delta_sam:rho=0.1,weights=slopes")
    made.create_optimizer_and_scheduler(1)
    made.current_gradient_accumulation_steps = 1
    batch = next(iter(made.get_train_dataloader()))
    output = made._closure(made.model, batch, None)()
    expected = losses_of(gpt2(), texts()[:4], sum(LENGTHS[:4]) - 4, None)
    torch.testing.assert_close(output.example_losses().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.example_losses().mean(), output.loss)


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1", "delta_sam:rho=0.1,weights=slopes"])
def test_what_the_trainer_counts_is_counted_once(spec: str, tmp_path: Path) -> None:
    plain, ours = (train(tmp_path, s).state.log_history for s in ("erm", spec))
    for expected, entry in zip(plain[:4], ours[:4], strict=True):
        assert entry["num_tokens"] == expected["num_tokens"]
    for key in ("loss", "entropy", "mean_token_accuracy"):  # at the first step the weights are the same
        assert ours[0][key] == pytest.approx(plain[0][key], rel=1e-5)
    assert ours[0]["perturbed_loss"] > ours[0]["loss"]


def test_the_plain_head_tells_what_the_fused_one_tells(tmp_path: Path) -> None:
    """Every step's counts and losses, where nothing is perturbed; the rest of a row that does not count is 0."""
    fused = train(tmp_path, "sam:rho=0.0").state.log_history
    plain = train(tmp_path, "per_instance_sam:rho=0.0").state.log_history
    for expected, entry in zip(fused[:4], plain[:4], strict=True):
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"):
            assert entry[key] == pytest.approx(expected[key], rel=1e-5)


def test_what_the_plain_head_returns_can_be_rebuilt() -> None:
    """As DistributedDataParallel does with every output."""
    model = gpt2()
    add_fused_lm_head(model)
    add_plain_lm_head(model)
    ids = torch.tensor([[3, 4, 5, 6]])
    output = model(input_ids=ids, labels=ids, fused_lm_head=True)
    rebuilt = torch.utils._pytree.tree_map(lambda part: part, output)
    assert torch.equal(rebuilt.logits, output.logits)
    assert torch.equal(rebuilt.log_probs, output.log_probs)


def test_training_twice_and_evaluating(tmp_path: Path) -> None:
    made = trainer(tmp_path, "per_instance_sam:rho=0.1")
    made.train()
    made.train()
    before = made.evaluate(made.train_dataset)["eval_loss"]
    logits = made.model(input_ids=torch.tensor([[3, 4, 5]])).logits  # the model's own forward is as it was
    assert logits.shape == (1, 3, tiny.WORDS)
    assert before == pytest.approx(float(torch.tensor(before)))


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_dft(spec: str, tmp_path: Path) -> None:
    def dft(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses * (-losses).exp().detach()

    trained = train(tmp_path, spec, loss_type="dft")
    tiny.assert_close(trained.model, tiny.by_hand(gpt2(), spec, micro_batches(1, dft)), 1e-6)


@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
@pytest.mark.filterwarnings("ignore:.*label_smoothing:FutureWarning")
def test_label_smoothing(spec: str, tmp_path: Path) -> None:
    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)

    trained = train(tmp_path, spec, label_smoothing_factor=0.2)
    tiny.assert_close(trained.model, tiny.by_hand(gpt2(), spec, micro_batches(1, smoothed)), 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(checkpointing: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)

    def adapted() -> Any:
        model = gpt2()
        torch.manual_seed(2)
        return peft.get_peft_model(model, config).double()

    spec = "per_instance_sam:rho=0.1"
    trained = train(tmp_path, spec, adapted(), gradient_checkpointing=checkpointing)
    tiny.assert_close(trained.model, tiny.by_hand(adapted(), spec, micro_batches(1)), 1e-9)
    made = trainer(tmp_path, spec, given={"peft_config": config})  # TRL makes the adapters
    made.train()
    assert [entry["radius_ratio"] for entry in made.state.log_history[:4]] == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("options", [{"packing": True}, {"padding_free": True, "max_length": None}])
@pytest.mark.parametrize("spec", ["per_instance_sam:rho=0.1", "delta_sam:rho=0.1,weights=slopes"])
@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_not_examples_are_refused(options: dict[str, Any], spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"works on single examples, but (with packing or padding_free )?a row of"):
        train(tmp_path, spec, **options)


@pytest.mark.filterwarnings("ignore")
def test_packing_with_one_perturbation_per_batch(tmp_path: Path) -> None:
    """All texts of a batch in one row, which attend to themselves alone, make the same batch."""
    packed = train(tmp_path, "sam:rho=0.1", padding_free=True, max_length=None).state.log_history[0]
    plain = train(tmp_path, "sam:rho=0.1").state.log_history[0]
    assert packed["num_tokens"] == plain["num_tokens"]
    assert packed["perturbed_loss"] > packed["loss"]
