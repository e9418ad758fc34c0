"""Specs: methods as text, ``sam:rho=0.05@every=2``, for the command line, configurations, logs and checkpoints."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Any

from torch import nn

import deltasam.methods  # noqa: F401  # registers them
from deltasam.errors import did_you_mean
from deltasam.method import Method, hyperparameters
from deltasam.scheduled import Scheduled
from deltasam.schedules import Schedule


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(Method.registry)


def short_spec(spec: str) -> str:
    """A full spec without hyper-parameters at their default; ``make_method`` creates the same method from it.

    Different methods have different short specs, so it can replace the full spec where space is short.

    Args:
        spec: A full spec, as given by ``Method.spec``. One of an unregistered method is returned unchanged.
    """
    plain, at, schedules = spec.partition("@")
    name, _, arguments = plain.partition(":")
    cls = Method.registry.get(name)
    defaults = {f"{k}={v}" for k, v in hyperparameters(cls).items()} if cls else set()
    kept = ",".join(a for a in arguments.split(",") if a not in defaults)
    return (f"{name}:{kept}" if kept else name) + at + schedules


def full_spec(spec: str) -> str:
    """A spec with every hyper-parameter, so that equal methods have equal specs.

    Raises:
        ValueError: As for ``make_method``.
    """
    return make_method(spec, nn.LayerNorm(1)).spec  # any model will do; this one draws no random weights


def make_method(spec: str, model: nn.Module) -> Method:
    """Create the method that a spec describes, for a model.

    Args:
        spec: A registered name, optionally followed by a colon and hyper-parameters: ``sam``, ``sam:rho=0.05``,
            ``asam:rho=0.5,eta=0.01``. Omitted ones have their default. Schedules of the radius may follow:
            ``sam:rho=0.05@warmup=100@every=2``.
        model: The model whose ``.grad`` the method will fill.

    Raises:
        ValueError: The name or a hyper-parameter is unknown, or a value is invalid.
    """
    plain, *schedules = spec.strip().split("@")
    name, _, arguments = plain.partition(":")
    if name not in Method.registry:
        raise ValueError(f"unknown method {name!r}{_suggestion(name, method_names())}")
    cls = Method.registry[name]
    method = cls(model, **dict(_argument(cls, a, spec) for a in arguments.split(",") if a.strip()))
    return Scheduled(method, [_schedule(text, spec) for text in schedules]) if schedules else method


def split_specs(specs: str) -> list[str]:
    """Split a comma-separated list of specs: ``erm,asam:rho=0.5,eta=0.1`` is two.

    A piece with an equals sign and no colon is another hyper-parameter of the spec before it.
    """
    result: list[str] = []
    for piece in (p.strip() for p in specs.split(",")):
        own = re.split("[@+]", piece)[0]  # without schedules and other suffixes
        if result and "=" in own and ":" not in own:
            result[-1] += "," + piece
        elif piece:
            result.append(piece)
    return result


def _argument(cls: type[Method], text: str, spec: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    known = hyperparameters(cls)
    if not equals or not value:
        raise ValueError(f"{spec!r}: {text.strip()!r} has no value; write {cls.name}:{key or 'name'}=value")
    if key not in known:
        raise ValueError(f"{spec!r}: {cls.name} has no hyper-parameter {key!r}{_suggestion(key, list(known))}")
    kind = typing.get_type_hints(cls.__init__)[key]
    kind = next((k for k in typing.get_args(kind) if k is not types.NoneType), kind)  # str | None: text, if given
    try:
        return key, {"True": True, "False": False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise ValueError(f"{spec!r}: {key} must be of type {kind.__name__}, not {value!r}") from None


def _schedule(text: str, spec: str) -> Schedule:
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in Schedule.registry:
        raise ValueError(f"{spec!r}: unknown schedule {name!r}{_suggestion(name, sorted(Schedule.registry))}")
    cls = Schedule.registry[name]
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    first, *further = value.split(",")
    try:
        number = float(first)
        given = {key.strip(): float(text) for key, _, text in (part.partition("=") for part in further)}
    except ValueError:
        raise ValueError(f"{spec!r}: @{name} takes a number, not {value!r}; write @{name}=number") from None
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{spec!r}: @{name} has no {unknown[0]!r}{_suggestion(unknown[0], known)}")
    return cls(number, **given)


def _suggestion(name: str, known: list[str]) -> str:
    return f"{did_you_mean(name, known)} (there are: {', '.join(known) or 'none'})"
