"""Find and load a sequence-to-sequence model for summarization."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deltasam.errors import UserError
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.models import load_pretrained, loading, locate_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_seq2seq(config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-to-sequence model (BART, T5), or one built from an encoder (BERT, RoBERTa), and its tokenizer.

    Raises:
        UserError: There is no such model, it is of another kind, or only some of its layers are requested.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    folder = locate_model(config.model)
    here = replace(config, model=str(folder))
    with loading(folder):
        found = AutoConfig.from_pretrained(folder)
    if found.is_encoder_decoder:
        if config.layers:
            raise UserError(f"--layers {config.layers}: {config.model} is used with all its layers; leave it out")
        return load_pretrained(AutoModelForSeq2SeqLM, here)
    if found.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"--model {config.model}: {found.model_type} cannot summarize here; give a sequence-to-sequence model, as "
            "BART, or an encoder, as BERT"
        )
    return _two_of(here)


def _two_of(config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder and decoder initialised from one pretrained encoder (Rothe et al. 2020, arXiv 1907.12461: BERT2BERT).

    The decoder's new parts, cross-attention and the transformation before the shared embeddings, are drawn from the
    global random state.
    """
    from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

    encoder, tokenizer = load_pretrained(AutoModel, config)
    decoder, _ = load_pretrained(AutoModelForCausalLM, config, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    for settings in (model.config, model.generation_config):  # training uses the former, generation the latter
        settings.decoder_start_token_id = tokenizer.cls_token_id
        settings.eos_token_id = tokenizer.sep_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
