from __future__ import annotations

import urllib.error

import datasets
import pytest

from deltasam.lab.data import load_data
from deltasam.lab.data.sources import hub


@pytest.fixture
def stored(monkeypatch):
    """Put data sets in the place of the hub."""
    found = {}

    def load_dataset(name, config):
        if (name, config) not in found:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}'\ndoesn't exist on the Hub.")
        return found[name, config]

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return found


def split(labels, names=None) -> datasets.Dataset:
    label = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    return datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(len(labels))], "label": labels}, features)


def test_class_names_and_splits_of_the_hub_are_kept(stored):
    names = ["neg", "pos", "abc"]
    stored["owner/name", None] = {"train": split([0, 1, 2], names), "test": split([2, 1], names)}
    data = load_data("owner/name")
    assert data.label_names == ("neg", "pos", "abc")
    assert data.evaluation[:] == {"text": ["text 0", "text 1"], "label": [2, 1], "row": [0, 1]}


def test_validation_goes_before_test_and_a_config_is_passed_on(stored):
    stored["name", "small"] = {"train": split(["b", "a"]), "test": split(["a"]), "validation": split(["b", "b"])}
    data = load_data("name:small")
    assert (data.name, data.label_names, data.evaluation["label"][:]) == ("name:small", ("a", "b"), [1, 1])


def test_a_data_set_without_evaluation_rows_is_split(stored):
    stored["name", None] = {"train": split(["a", "b"] * 10)}
    assert len(load_data("name", eval_size=6).evaluation) == 6


def test_unlabelled_rows(stored, complaint):
    stored["name", None] = {"train": split([0, 1], ["x", "y"]), "test": split([-1, -1], ["x", "y"])}
    assert "name (evaluation), row 1: label '-1'" in complaint("name")


def test_no_training_split(stored, complaint):
    stored["name", None] = {"test": split(["a"])}
    assert "no split called train, only test" in complaint("name")


def test_unknown_name(stored, complaint):
    message = complaint("no-such/thing")
    assert "no such file or folder, and no such data set from the hub (Dataset 'no-such/thing' doesn't" in message


@pytest.mark.parametrize("path", ["some/where/else", "/no/such", "./data", "my file", "data/"])
def test_what_can_only_be_a_path(stored, complaint, path):
    assert f"{path}: no such file or folder; check the path" in complaint(path)


def test_no_network(complaint, monkeypatch):
    def unreachable(url, timeout):
        assert timeout <= 10
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("would retry for long"))
    message = complaint("owner/name")
    assert "no such file or folder, and the hub" in message
    assert "cannot be reached" in message
