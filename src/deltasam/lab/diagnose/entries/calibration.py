"""Whether the model is right as often as it says."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import Calibration, calibration, plot_reliability
from deltasam.lab.diagnose.diagnostic import Diagnostic, NotMeasuredError, Number, Plot
from deltasam.lab.diagnose.subject import Subject


class CalibrationDiagnostic(Diagnostic[Calibration], name="calibration"):
    """Confidence beside accuracy."""

    title = "Calibration: confidence beside accuracy"
    order = 40

    def measure(self, *subjects: Subject) -> Calibration:
        """On all rows at once."""
        (subject,) = subjects
        if subject.data.kind == "regression":
            raise NotMeasuredError("the model predicts scores: there is no probability to compare with an accuracy")
        return calibration(subject.logits, subject.labels, seed=subject.settings.seed)

    def numbers(self, result: Calibration) -> dict[str, Number]:
        """What there is of one number each."""
        return {
            "accuracy": Number(result.accuracy, (result.accuracy * (1 - result.accuracy) / result.examples) ** 0.5),
            "confidence": Number(result.confidence),
            "ECE": Number(result.ece, None, f"up to {result.ece_by_chance:.3f} by chance"),
            "Brier score": Number(result.brier),
            "NLL": Number(result.nll),
        }

    def answer(self, result: Calibration) -> str:
        """Accuracy and calibration error."""
        return (
            f"It is right on {result.accuracy:.1%} of {result.examples} examples and its confidence is off by "
            f"{result.ece:.3f} (ECE; up to {result.ece_by_chance:.3f} would be chance)."
        )

    def plots(self, results: Mapping[str, Calibration]) -> list[Plot]:
        """The reliability diagram."""
        return [Plot("calibration", "Accuracy over confidence, bin by bin", lambda ax: plot_reliability(results, ax))]
