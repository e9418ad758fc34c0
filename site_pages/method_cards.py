"""A page for every registered method, from its docstring, its signature and its slow reference."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

import griffe

import deltasam
from deltasam import reference

PARTS = {"Cost": "cost", "Source": "source", "When": "when", "When not": "when_not"}
"""How a paragraph of a method's docstring begins, and what it is on the card."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword of a method."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Card:
    """What there is to know of a method before choosing it."""

    name: str
    title: str
    equation: str
    about: str
    cost: str
    source: str
    when: str
    when_not: str
    hyperparameters: tuple[Hyperparameter, ...]


def card(cls: type[deltasam.Method]) -> Card:
    """The card of a method.

    Raises:
        ValueError: Its docstring lacks a part.
    """
    docstring = griffe.Docstring(inspect.getdoc(cls) or "", lineno=1, parent=None)
    sections = {section.kind.value: section.value for section in docstring.parse("google", warnings=False)}
    summary, *paragraphs = sections.get("text", "").split("\n\n")
    title, _, equation = summary.partition(": ")
    parts = dict.fromkeys(PARTS.values(), "")
    about = []
    for paragraph in paragraphs:
        begin, _, rest = paragraph.partition(": ")
        if begin in PARTS:
            parts[PARTS[begin]] = rest
        else:
            about.append(paragraph)
    meanings = {p.name: " ".join(p.description.split()) for p in sections.get("parameters", [])}
    hyperparameters = tuple(
        Hyperparameter(name, str(default), meanings.get(name, ""))
        for name, default in deltasam.hyperparameters(cls).items()
    )
    found = Card(
        name=cls.name, title=title.rstrip("."), equation=equation.rstrip("."),
        about="\n\n".join(about), hyperparameters=hyperparameters, **parts,
    )  # fmt: skip
    return _whole(found)


def pages() -> dict[str, str]:
    """One page per method, and one that lists them."""
    made = [card(deltasam.Method.registry[name]) for name in deltasam.method_names()]
    return {"methods/index.md": _index(made), **{f"methods/{c.name}.md": _page(c) for c in made}}


def _whole(found: Card) -> Card:
    missing = [key for key, value in vars(found).items() if value == ""]
    missing += [f"what {p.name} means" for p in found.hyperparameters if not p.meaning]
    if missing:
        raise ValueError(
            f"the docstring of {found.name} does not tell: {', '.join(missing)}; its first line is 'What it is: "
            f"``equation``', and it has paragraphs that begin with {', '.join(f'{begin}:' for begin in PARTS)}"
        )
    return found


def _index(made: list[Card]) -> str:
    rows = "\n".join(f"| [`{c.name}`]({c.name}.md) | {_cell(c.equation)} | {_short(c.cost)} |" for c in made)
    return f"""# Methods

In all equations w are the trainable weights, L_i is the loss of example i, L their mean over the batch, g = grad L(w)
and g_i = grad L_i(w). Every perturbation is held constant when its gradient is taken. A pass is a forward and a
backward.

| method | gradient used | cost |
|---|---|---|
{rows}

Which one? [Choose a method](../choose.md) has measured costs. In the terminal `deltasam methods` lists the same, and
`deltasam methods sam` explains one. Where a method differs from its paper or from its authors' code is on its card, and
in more detail in [Notes on the methods](../theory/notes.md).
"""


def _page(c: Card) -> str:
    cls = deltasam.Method.registry[c.name]
    return f"""# {c.name}

{c.title}:

```text
{_lines(c.equation)}
```

{_markdown(c.about)}

| at a glance | |
|---|---|
| **Cost** | {_sentence(c.cost)} |
| **Source** | {_sentence(c.source)} |
| **When** | {_sentence(c.when)} |
| **When not** | {_sentence(c.when_not)} |

{_hyperparameters(c)}
## Use it

```python
method = deltasam.make_method("{c.name}", model)  # or deltasam.{cls.__name__}(model)
{_follow(cls)}for x, y in loader:
    method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))  # instead of loss.backward()
    optimizer.step()
    optimizer.zero_grad()
```

```bash
deltasam compare reviews.csv --methods {"erm" if c.name == "erm" else f"erm,{c.name}"}
```

All that the class offers: [`deltasam.{cls.__name__}`](../reference/deltasam.md#deltasam.{cls.__name__}).

## The same, slowly

This is what the tests hold it to (`deltasam.reference`), on functions of the weights:

``` {{ .python .slow }}
{inspect.getsource(reference.reference_of(cls)).strip()}
```
"""


def _hyperparameters(c: Card) -> str:
    if not c.hyperparameters:
        return ""
    rows = "\n".join(f"| `{p.name}` | `{p.default}` | {_cell(p.meaning)} |" for p in c.hyperparameters)
    return f"## Hyper-parameters\n\n| name | default | meaning |\n|---|---|---|\n{rows}\n"


def _lines(equation: str) -> str:
    """An equation, and below it what its letters stand for."""
    return equation.replace("``, ``", "\n").replace("``", "")


def _follow(cls: type[deltasam.Method]) -> str:
    """Methods that watch the optimizer must be shown it."""
    return "method.follow(optimizer)\n" if cls.follow is not deltasam.Method.follow else ""


def _cell(text: str) -> str:
    """Text that fits into a cell of a table: on one line, and no stroke outside of code looks like its border."""
    line = " ".join(_markdown(text).split())
    return "".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(re.split("(`[^`]*`)", line)))


def _sentence(text: str) -> str:
    """A cell that begins with a capital."""
    return _cell(text[:1].upper() + text[1:])


def _short(cost: str) -> str:
    """What a cost begins with: how many passes."""
    return _cell(re.split("[;,:.]", cost)[0])


def _markdown(text: str) -> str:
    """The text of a docstring: no list may follow a line directly, and no path of the repository is a page."""
    text = re.sub(r"``docs/(\w+/)(\w+)\.md``", lambda m: f"[{m[2].replace('_', ' ')}](../{m[1]}{m[2]}.md)", text)
    return text.replace("\n- ", "\n\n- ", 1).replace("``", "`")
