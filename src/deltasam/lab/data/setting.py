"""The axes of an experiment: training set size and label noise."""

from __future__ import annotations

from dataclasses import dataclass

from deltasam.errors import UserError
from deltasam.lab.data.dataset import Data, TextData
from deltasam.lab.data.noise import add_label_noise, check_rate, with_noisy_selection


@dataclass(frozen=True)
class Setting:
    """Conditions of a comparison. Runs of different settings are never pooled.

    Attributes:
        train_size: Number of training examples of a run.
        label_noise: Fraction of them with a wrong label.
        noisy_selection: Whether rows with the same fraction of wrong labels choose the epoch, and others evaluate.

    Raises:
        UserError: The noise is not a valid fraction.
    """

    train_size: int
    label_noise: float = 0.0
    noisy_selection: bool = False

    def __post_init__(self) -> None:
        check_rate(self.label_noise)

    def __str__(self) -> str:
        noise = f" noise={self.label_noise}" if self.label_noise else ""
        return f"n={self.train_size}{noise}{' noisy-selection' if self.noisy_selection else ''}"

    @property
    def title(self) -> str:
        """Description: ``500 training examples, 20 % label noise``."""
        return f"{self.size_title}, {self.noise_title}"

    @property
    def size_title(self) -> str:
        """Description: ``500 training examples``."""
        return f"{self.train_size} training examples"

    @property
    def noise_title(self) -> str:
        """Description: ``20 % label noise``, or ``no label noise added``."""
        return f"{100 * self.label_noise:g} % label noise" if self.label_noise else "no label noise added"

    def data_for(self, data: Data, seed: int) -> Data:
        """The data of the runs with a seed: all methods train on the same rows with the same wrong labels.

        Raises:
            UserError: There are fewer rows, there are no labels, or the noise would change none.
        """
        taken = data.take(self.train_size, seed)
        if not self.label_noise and not self.noisy_selection:
            return taken
        if not isinstance(taken, TextData):
            option = "--label-noise" if self.label_noise else "--noisy-selection"
            raise UserError(f"{data.name}: has no labels that could be wrong; leave out {option}")
        return self.with_noise(taken, seed)

    def with_noise(self, data: TextData, seed: int) -> TextData:
        """The same training rows, with the wrong labels of a seed.

        Raises:
            UserError: The noise would change none.
        """
        if self.noisy_selection:
            data = with_noisy_selection(data, self.label_noise, seed)
        return add_label_noise(data, self.label_noise, seed)
