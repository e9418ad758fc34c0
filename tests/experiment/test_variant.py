"""Methods with training options of their own, as text."""

from __future__ import annotations

import dataclasses

import pytest

from deltasam import split_specs
from deltasam.errors import UserError
from deltasam.lab.data import TextData
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.variant import full_spec, short_spec, split_variant


def test_parts() -> None:
    assert split_variant("erm") == ("erm", {})
    assert split_variant("sam:rho=1e+2@every=2+epochs=12+weight_decay=0.5") == (
        "sam:rho=1e+2@every=2",
        {"epochs": 12, "weight_decay": 0.5},
    )


def test_equal_variants_have_equal_names() -> None:
    assert full_spec("sam+epochs=3+batch_size=4") == full_spec("sam:share=micro-batch +batch_size=4+epochs=3")
    assert full_spec("sam+epochs=3").endswith(",share=micro-batch+epochs=3")
    assert short_spec(full_spec("sam:rho=0.3+epochs=3")) == "sam:rho=0.3+epochs=3"
    assert full_spec("erm") == "erm"


def test_in_a_list() -> None:
    text = "erm,erm+label_smoothing=0.2+epochs=3,asam:rho=1,eta=0.1+epochs=2,sam"
    assert split_specs(text) == ["erm", "erm+label_smoothing=0.2+epochs=3", "asam:rho=1,eta=0.1+epochs=2", "sam"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("erm+epoch=3", UserError, "there is no training option 'epoch'; there are .*epochs, batch_size"),
        ("erm+model=x", UserError, "there is no training option 'model'"),
        ("erm+epochs=1.5", UserError, r"epochs takes a whole number; write \+epochs="),
        ("erm+epochs", UserError, "epochs takes a whole number"),
        ("erm+learning_rate=fast", UserError, "learning_rate takes a number"),
        ("erm+epochs=0", UserError, "--epochs 0: must be 1 or more"),
        ("ermm+epochs=2", ValueError, "unknown method 'ermm'"),
    ],
)
def test_refusals(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        full_spec(text)


def test_a_run_takes_the_options(data: TextData, config: TrainConfig) -> None:
    def finish(config: TrainConfig, method: str) -> object:
        found = train_run(Run(data, config, method, 0), on_step=lambda run: None, on_evaluation=lambda run: None)
        return found.method, [s.loss for s in found.steps], found.metrics

    options = {"epochs": 3, "label_smoothing": 0.3}
    name, losses, metrics = finish(config, "erm+epochs=3+label_smoothing=0.3")
    _, expected, expected_metrics = finish(dataclasses.replace(config, **options), "erm")
    assert name == "erm+epochs=3+label_smoothing=0.3"
    assert losses == expected
    assert metrics == expected_metrics
    assert losses != finish(dataclasses.replace(config, epochs=3), "erm")[1]
