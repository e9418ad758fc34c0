"""A method with training options of its own, as text: ``erm+epochs=12``, ``sam:rho=0.1+weight_decay=0``.

A method can so be compared with another way to train: longer, or with smoothed labels.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from deltasam import spec as specs
from deltasam.errors import UserError
from deltasam.lab.train.config import TrainConfig

_PLUS = re.compile(r"\+(?=[a-z_])")  # not that of 1e+2
_OPTIONS = {f.name: type(f.default) for f in dataclasses.fields(TrainConfig) if type(f.default) in (int, float)}


def split_variant(text: str) -> tuple[str, dict[str, Any]]:
    """The spec of a method, and the training options that go with it.

    Raises:
        UserError: There is no such option, or its value is no number.
    """
    spec, *pieces = _PLUS.split(text)
    options: dict[str, Any] = {}
    for piece in pieces:
        name, _, value = (part.strip() for part in piece.partition("="))
        if name not in _OPTIONS:
            raise UserError(f"{text!r}: there is no training option {name!r}; there are {', '.join(_OPTIONS)}")
        try:
            options[name] = int(value) if _OPTIONS[name] is int else float(value)
        except ValueError as error:
            kind = "a whole number" if _OPTIONS[name] is int else "a number"
            raise UserError(f"{text!r}: {name} takes {kind}; write +{name}=...") from error
    return spec.strip(), options


def method_spec(spec: str) -> str:
    """A spec without training options, with every hyper-parameter of the method.

    Raises:
        UserError: There is no such method, or a hyper-parameter is wrong.
    """
    try:
        return specs.full_spec(spec)
    except ValueError as error:
        raise UserError(str(error)) from error


def full_spec(text: str) -> str:
    """The same with every hyper-parameter of the method, so that equal variants have equal names.

    Raises:
        UserError: There is no such method, or a hyper-parameter or an option is wrong.
    """
    spec, options = split_variant(text)
    dataclasses.replace(TrainConfig(), **options)
    return "+".join([method_spec(spec), *(f"{name}={value}" for name, value in sorted(options.items()))])


def short_spec(text: str) -> str:
    """The same without the hyper-parameters of the method that have their default."""
    spec, *options = _PLUS.split(text)
    return "+".join([specs.short_spec(spec), *options])
