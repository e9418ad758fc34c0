"""Whether a model was trained for the labels of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltasam.errors import UserError
from deltasam.lab.data.labels import same_number

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData


def label_indices(model: str, config: Any, data: TextData) -> list[int] | None:
    """The model's index for each class of the data; None for regression. The model may know more classes.

    Args:
        model: What it is called, for errors.
        config: Its configuration: ``id2label``.
        data: Whose labels it is to predict.

    Raises:
        UserError: The model was trained for something else.
    """
    known = {str(name): int(index) for index, name in config.id2label.items()}
    if data.kind == "regression":
        if len(known) != 1:
            raise UserError(f"{model}: predicts {_listed(known)}, the data has scores; leave out --task regression")
        return None
    if len(known) == 1:
        raise UserError(
            f"{model}: predicts a score, the data has the classes {_listed(data.label_names)}; give --task regression"
        )
    # Beside other names, training kept 1.0 as it was written; alone, whole numbers are read as 1.
    names = [name if name in known else same_number(name, known) or name for name in data.label_names]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"{model}: was trained for {_listed(known)}, and the data has {_listed(unknown)}; name the label column "
            f"with --label, or write the labels as the model does"
        )
    return [known[name] for name in names]


def _listed(names: Any) -> str:
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
