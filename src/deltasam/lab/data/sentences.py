"""Self-supervised STS: raw sentences for training, and scored pairs for evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from deltasam.errors import UserError
from deltasam.lab.data.split import SPLIT_SEED, stratified_order


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of sentences with human similarity scores.

    Attributes:
        first: The first sentence of each pair.
        second: The second sentence of each pair.
        scores: The gold score of each pair; larger is more similar.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, size: int) -> ScoredPairs:
        """A fixed random sample of ``size`` pairs in their order, or all if there are fewer.

        Raises:
            UserError: The sample would be too small.
        """
        if size < 2:
            raise UserError(f"{size} pairs of a set: a correlation needs 2 or more")
        rows = sorted(stratified_order([None] * len(self), SPLIT_SEED)[:size])
        first, second, scores = zip(*((self.first[i], self.second[i], self.scores[i]) for i in rows), strict=True)
        return ScoredPairs(first, second, scores)


@dataclass(frozen=True)
class Contrast:
    """Settings of the contrastive loss; the defaults are those of Mirror-BERT (Liu et al. 2021) for BERT-base.

    Attributes:
        temperature: Divisor of the cosine similarities.
        masked_characters: Length of the span that is masked in one of a sentence's two views; 0 masks nothing, and the
            views differ only in dropout, as in SimCSE (Gao et al. 2021).
        pooling: How the last layer gives the embedding: ``mean`` over the tokens, or the first token, ``cls``.

    Raises:
        UserError: A value is out of range.
    """

    temperature: float = 0.04
    masked_characters: int = 5
    pooling: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature}: must be a positive number")
        if self.masked_characters < 0:
            raise UserError(f"masked_characters {self.masked_characters}: must be 0 (mask nothing) or more")
        if self.pooling not in ("mean", "cls"):
            raise UserError(f"pooling {self.pooling}: must be mean or cls")


@dataclass(frozen=True)
class SentenceData:
    """Unlabelled sentences for training, and scored pairs that are used for evaluation only.

    Attributes:
        name: Name in tables and reports.
        train: The sentences, each once.
        evaluation: The sets that are reported, by name.
        selection: The set that hyper-parameters are chosen on; None if there is none.
        contrast: Settings of the contrastive loss.
        rows: Original index of each training sentence before a sample was taken; None: no sample was taken.
    """

    name: str
    train: tuple[str, ...]
    evaluation: dict[str, ScoredPairs]
    selection: ScoredPairs | None = None
    contrast: Contrast = field(default_factory=Contrast)
    rows: tuple[int, ...] | None = None
    metric: ClassVar[str] = "spearman"
    """The mean over the evaluation sets of the rank correlation of cosine similarity and gold score."""

    @property
    def chosen_by(self) -> str:
        """The metric that chooses the epoch."""
        return self.metric

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that results are reported by: the mean, then every set's."""
        return (self.metric, *(f"{self.metric}_{name}" for name in self.evaluation))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that affects a run's numbers: sentences, pairs and contrast."""
        contents = {key: value for key, value in dataclasses.asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    def take(self, size: int, seed: int) -> SentenceData:
        """A random sample of the training sentences in their order; with one seed, smaller samples are part of larger.

        Raises:
            UserError: There are fewer sentences, or too few for a contrast.
        """
        if not 2 <= size <= len(self.train):
            raise UserError(
                f"{self.name}: --train-size {size} is impossible; give from 2 (a sentence and one to tell it from) to "
                f"{len(self.train)} (all training sentences)"
            )
        rows = sorted(stratified_order([None] * len(self.train), seed)[:size])
        return dataclasses.replace(
            self,
            train=tuple(self.train[row] for row in rows),
            rows=tuple(row if self.rows is None else self.rows[row] for row in rows),
        )

    def for_selection(self, held_out: float) -> SentenceData:  # training sentences have no scores
        """The same data, evaluated only on the selection set, for choosing hyper-parameters.

        Raises:
            UserError: There is no selection set.
        """
        if self.selection is None:
            raise UserError(
                f"{self.name}: there is no set to choose hyper-parameters on; name one that is not reported"
            )
        return dataclasses.replace(self, evaluation={"selection": self.selection}, selection=None)

    def describe(self) -> dict[str, list[Any]]:
        """The training sentences for people; they have no labels."""
        return {"row": list(range(len(self.train)) if self.rows is None else self.rows), "text": list(self.train)}
