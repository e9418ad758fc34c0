"""ROUGE of summaries, by Google's ``rouge-score``, whose numbers papers print."""

from __future__ import annotations

import re
from collections.abc import Sequence

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean F1 of each kind of ROUGE, from 0 to 1, with Porter's stemmer.

    ``rougeLsum`` goes sentence by sentence: lines, or, where a text has one line only, what ends in a full stop,
    question or exclamation mark. Only the letters a to z and digits count; text in another script scores 0.

    Args:
        predictions: The summaries a model wrote.
        references: The right ones, in the same order.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(KINDS, use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    scores = [scorer.score(sentences(reference), sentences(prediction)) for prediction, reference in pairs]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}


def sentences(text: str) -> str:
    """A text with one sentence a line, as it came if it has lines already."""
    text = text.strip()
    return text if "\n" in text else _SENTENCE_END.sub("\n", text)
