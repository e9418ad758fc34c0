"""A BERT small enough to train in a test, and reviews for it to read."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

GOOD, BAD = ("good", "great", "fine", "lovely"), ("bad", "poor", "awful", "dull")
NEUTRAL = ("the", "film", "plot", "was", "is", "a", "very", "and", "story", "actor")


def save_tiny_bert(folder: Path) -> Path:
    """An encoder with random weights and dropout, saved with its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL]
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "vocab.txt"
    words.write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reviews(path: Path, rows: int = 40) -> Path:
    """Reviews of different lengths, good or bad by one word, with a score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "verdict", "score"])
        for i in range(rows):
            word = (GOOD if i % 2 else BAD)[i // 2 % 4]
            filler = " ".join(NEUTRAL[(i * 7 + k) % len(NEUTRAL)] for k in range(2 + i % 5))
            writer.writerow([f"{filler} {word} number {i}", "yes" if i % 2 else "no", i % 2 + i / 100])
    return path
