"""A tiny GPT-2, texts of several lengths and a tokenizer, for tests of language models."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import tiny_trainers as tiny

LENGTHS = [7, 3, 5, 4, 2, 6, 7, 3, 4, 4, 5, 6]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *map(str, range(tiny.WORDS - 3))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )


def gpt2() -> Any:
    """Tied embeddings, no dropout, double precision."""
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **none, bos_token_id=1, eos_token_id=1)).double()


def texts() -> list[list[int]]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(3, tiny.WORDS, (n,), generator=g).tolist() for n in LENGTHS]
