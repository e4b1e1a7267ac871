"""What of the site is made from the code and conf/, so that it cannot differ from them.

A Python-Markdown extension: a line ``<!-- generated: KIND NAME -->`` of a page becomes what KIND makes of NAME when the
site is built: ``source`` and ``reference`` of a method, ``settings`` of a group of conf/.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import griffe
import yaml
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from pydantic.fields import FieldInfo

from multimodal.methods import Method, method_named
from multimodal.ranges import SearchChoice, SearchRange

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- generated: (\w+) (\w+) -->")
ROLE = re.compile(r":(?:class|func|mod|meth|attr):`(~?)([\w.]+)`")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def source(name: str) -> Iterator[str]:
    """Where a method comes from and what it looks at, as its file says."""
    module = inspect.getmodule(method_named(name))
    line = " ".join((module.__doc__ or "").split())
    yield "> " + re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", line)


def reference(name: str) -> Iterator[str]:
    """Parameters, evidence, settings, figures and class of a method."""
    own = method_named(name)
    yield from ["## Parameters", "", *parameters(own), "", "## What it looks at", "", *evidence(own), ""]
    yield from ["## Settings", "", "What a search leaves alone, searches elsewhere, and the published values:", ""]
    for path in sorted((ROOT / "conf" / "method").glob("*.yaml")):
        if yaml.safe_load(path.read_text())["name"] == name:
            yield from [f"`method={path.stem}`", "", *_yaml(path), ""]
    if figures := list(compared(name)):
        yield from ["## In the comparison", "", "Accuracy in percent, by commands of the page on comparing.", ""]
        yield from [*figures, ""]
    yield from ["## The class", "", f"::: {own.__module__}.{own.__name__}", "    options:"]
    yield from ["      members: false", "      show_source: true", "      heading_level: 3"]


def parameters(method: type[Method]) -> Iterator[str]:
    """A list of the fields of a method: what each is, what it may be, and where a search looks."""
    said = _arguments(method)
    fields = {name: field for name, field in method.model_fields.items() if name != "name"}
    if not fields:
        yield "The rule has none."
    for name, field in fields.items():
        yield f"- **`{name}`**: {said[name]}  "
        yield "  " + " · ".join([_allowed(field), f"default `{field.default}`", *_searched(field)])


def evidence(method: type[Method]) -> Iterator[str]:
    """A list of what a method declares with its defaults and at the ends of its parameters' ranges."""
    own = method.model_validate({"name": method.model_fields["name"].default})
    variants = []
    for name, field in method.model_fields.items():
        ends = [end for each in field.metadata if isinstance(each, SearchRange) for end in (each.low, each.high)]
        variants += [own.model_copy(update={name: type(field.default or end)(end)}) for end in ends]
    declared = dict.fromkeys(own.evidence)
    for request in (each for variant in variants for each in variant.evidence):
        if type(request) not in map(type, declared):  # is asked for under other parameters alone
            declared[request] = None
    for request in declared:
        yield f"- `{request}`: {_first_sentence(type(request))}"
    reads_features = "tokens.features" in inspect.getsource(inspect.getmodule(method))
    if reads_features:
        yield "- `tokens.features`: embeddings of the visual tokens before the language model, hidden states inside it."
    if own.tower is not None:
        yield "- Inside the vision tower, behind each layer: what that layer compared and made of the patches."
    if not declared and not reads_features:
        yield "Nothing but where tokens lie."
    if method.first_layer > 0:
        yield f"\nIts steps are inside the language model: the first may come before layer {method.first_layer}."


def compared(name: str) -> Iterator[str]:
    """Rows of the tables of docs/compare.md that are of a method, beside unpruned and random."""
    text = (ROOT / "docs" / "compare.md").read_text()
    text = text[text.index("<!-- figures -->") : text.index("<!-- figures end -->")]
    model, budgets, found = "", [], []
    for line in text.splitlines():
        if match := re.search(r" model=(\w+)", line):
            model = match[1]
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")] if line.startswith("|") else [""]
        if cells[0] == "retention":
            budgets = cells[1:]
        elif re.fullmatch(rf"{name}(_plus)?( tuned)?|unpruned|random", cells[0]):
            found += [(model, budget, cells[0], cell) for budget, cell in zip(budgets, cells[1:], strict=True)]
    columns = list(dict.fromkeys((model, budget) for model, budget, _, _ in found))
    by_place = {(model, budget, who): cell for model, budget, who, cell in found}
    rows = sorted({who for *_, who, _ in found}, key=lambda who: (who == "random", who != "unpruned", who))
    if set(rows) == {"unpruned", "random"} and name != "random":
        return
    yield "| | " + " | ".join(f"`{model}` at {budget}" for model, budget in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for who in rows:
        yield f"| {who} | " + " | ".join(by_place.get((*place, who), "–") for place in columns) + " |"


def settings(group: str) -> Iterator[str]:
    """The files of a group of conf/, as they are; ``config`` is the first of all."""
    paths = [ROOT / "conf" / "config.yaml"] if group == "config" else sorted((ROOT / "conf" / group).glob("*.yaml"))
    for path in paths:
        yield from ([] if group == "config" else [f"### {group}={path.stem}", ""])
        yield from [*_yaml(path), ""]


KINDS = {"source": source, "reference": reference, "settings": settings}


class Generated(Extension):
    """The extension that Python-Markdown loads."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Lines(md), "generated", 35)  # before whatever reads fences and HTML


class _Lines(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        whole: list[str] = []
        for line in lines:
            match = MARK.fullmatch(line)
            whole += list(KINDS[match[1]](match[2])) if match else [line]
        return [ROLE.sub(_code, line) for line in whole]


def makeExtension(**options: Any) -> Generated:
    """What Python-Markdown asks a module for."""
    return Generated(**options)


def _code(role: re.Match[str]) -> str:
    return f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`"


def _searched(field: FieldInfo) -> Iterator[str]:
    for each in field.metadata:
        if isinstance(each, SearchRange):
            first = f", first {' and '.join(f'{guess:g}' for guess in each.guesses)}" if each.guesses else ""
            yield f"searched from {each.low:g} to {each.high:g}{' by its logarithm' if each.log else ''}{first}"
        elif isinstance(each, SearchChoice):
            yield "searched among " + ", ".join(f"`{value}`" for value in each.values)


def _yaml(path: Path) -> list[str]:
    return ["```yaml", *path.read_text().rstrip().splitlines(), "```"]


def _first_sentence(kind: type) -> str:
    return re.split(r"(?<=\.)\s", " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()))[0]


def _arguments(method: type[Method]) -> dict[str, str]:
    text = griffe.Docstring(inspect.getdoc(method) or "")
    sections = text.parse("google", warn_unknown_params=False, warn_missing_types=False)
    listed = [section.value for section in sections if section.kind is griffe.DocstringSectionKind.parameters]
    return {each.name: " ".join(each.description.split()) for part in listed for each in part}


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(field.annotation))
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    words = {float: "number", int: "whole number", bool: "true or false"}
    bounds = [
        f"{sign} {getattr(each, end):g}" for each in field.metadata for end, sign in SIGNS.items() if hasattr(each, end)
    ]
    none = [] if type(None) not in get_args(field.annotation) else ["or none"]
    return " ".join(part for part in (" or ".join(words[kind] for kind in kinds), ", ".join(bounds), *none) if part)
