"""Fields of pydantic models as parameters of their classes, with types and defaults, for the site's Python pages."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.MULTILINE)


class Fields(griffe.Extension):
    """What mkdocstrings asks of the package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for each in _objects(pkg):
            if each.docstring is not None:
                each.docstring.value = SHARED.sub(_one_a_line, each.docstring.value)
            if isinstance(each, griffe.Class) and _is_model(each):
                each.set_member("__init__", _constructor(each))


def _objects(module: griffe.Object) -> Iterator[griffe.Object]:
    for member in list(module.members.values()):
        if isinstance(member, griffe.Object):
            yield member
            yield from _objects(member)


def _is_model(own: griffe.Class) -> bool:
    if any(str(base).endswith("BaseModel") for base in own.bases):
        return True
    return any(isinstance(base, griffe.Class) and _is_model(base) for base in own.resolved_bases)


def _constructor(own: griffe.Class) -> griffe.Function:
    fields = [
        griffe.Parameter(each.name, annotation=_plain(each.annotation), default=_default(each), kind=KEYWORD)
        for each in own.members.values()
        if isinstance(each, griffe.Attribute) and "instance-attribute" in each.labels and each.annotation is not None
    ]
    return griffe.Function("__init__", parameters=griffe.Parameters(*fields), parent=own)


KEYWORD = griffe.ParameterKind.keyword_only


def _plain(annotation: Any) -> Any:
    """The type without what pydantic is told beside it."""
    text = re.sub(r"SerializeAsAny\[(\w+)\]", r"\1", str(annotation))
    return re.sub(r"Annotated\[((?:[^\[\],]|\[[^\]]*\])+),.*\](?=$| \|)", r"\1", text)


def _default(field: griffe.Attribute) -> str | None:
    value = None if field.value is None else str(field.value)
    if value is None or not value.startswith("Field("):
        return value
    return "{}" if "default_factory=dict" in value else None


def _one_a_line(found: re.Match[str]) -> str:
    """Names that share a line of a docstring, one a line: the last has what is said of all."""
    *others, last = found[2].split(", ")
    return "".join(f"{found[1]}{name}: as {last}.\n" for name in others) + f"{found[1]}{last}: "
