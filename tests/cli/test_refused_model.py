"""A model whose examples cannot be told apart: one message that says what to write instead, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deltasam
from command_line import Cli

REASON = "attention.self.query.weight"
OTHERS = "per_instance_sam:unsupported=skip or per_instance_sam:unsupported=loop"


@pytest.fixture(scope="module")
def longformer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its windows of attention are laid out across the examples."""
    from transformers import BertTokenizer, LongformerConfig, LongformerModel

    folder = tmp_path_factory.mktemp("model") / "longformer"
    tokenizer = BertTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=0,
        attention_window=4,
        max_position_embeddings=140,
    )
    LongformerModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "option", "method", "ways_out"),
    [
        ("train", "--method", "per_instance_sam", OTHERS),
        ("compare", "--methods", "delta_sam:weights=norms", "delta_sam:weights=slopes"),
        ("fidelity", "--methods", "per_instance_sam", OTHERS),
    ],
)
@pytest.mark.filterwarnings("ignore:PerInstanceSAM goes one example")
def test_one_message(
    cli: Cli, common: list[str], longformer: Path, tmp_path: Path, command: str, option: str, method: str, ways_out: str
) -> None:
    arguments = [a for pair in zip(common[::2], common[1::2], strict=True) if pair[0] != "--epochs" for a in pair]
    arguments += ["--warmup-steps", "0"] if command == "fidelity" else ["--epochs", "1"]
    arguments += ["--train-size", "16"] if command == "compare" else []
    done = cli(command, *arguments, "--model", longformer, option, method, "--output", tmp_path / "out")
    assert done.exit_code == 2, done.exception
    message = done.stderr[done.stderr.index("error: ") :]
    assert REASON in message
    assert message.endswith(f"As a spec: {ways_out}\n")
    for spec in ways_out.split(" or "):
        deltasam.make_method(spec, torch.nn.Linear(1, 1))


@pytest.mark.filterwarnings("ignore:PerInstanceSAM goes one example", "ignore:DeltaSAM estimates slopes")
def test_fidelity_measures_it_all_the_same(cli: Cli, common: list[str], longformer: Path) -> None:
    """One example at a time is exact, too."""
    arguments = [a for pair in zip(common[::2], common[1::2], strict=True) if pair[0] != "--epochs" for a in pair]
    exact = "per_instance_sam:unsupported=loop"
    done = cli(
        "fidelity", *arguments, "--model", longformer, "--warmup-steps", "0", "--batches", "1", "--methods", exact
    )
    assert done.exit_code == 0, done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("per_instance_sam"))
    assert row[1:4] == ["0.000", "1.000", "1.000"]
