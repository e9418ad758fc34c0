from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deltasam.errors import UserError
from deltasam.lab.data import TextData, load_data

ROWS = 20


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes or text to a file of the test's own folder."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def complaint() -> Callable[..., str]:
    """The message of the user error that loading ends in: one line."""

    def complaint(source: object, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            load_data(source, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return complaint


@pytest.fixture
def examples() -> Callable[[TextData], dict[int, dict[str, object]]]:
    """Every row of both splits by its row number, labels by name."""

    def examples(data: TextData) -> dict[int, dict[str, object]]:
        found = {}
        for split in (data.train, data.evaluation):
            for row in split:
                label = data.label_names[row["label"]] if data.label_names else row["label"]
                found[row["row"]] = {**row, "label": label}
        assert len(found) == len(data.train) + len(data.evaluation)
        return found

    return examples


@pytest.fixture
def csv_text() -> str:
    """A correct CSV file: twenty rows, two classes."""
    return "text,label\n" + "".join(f"text {row},{'ab'[row % 2]}\n" for row in range(ROWS))
