"""The one exception a user's mistake raises, and how validation errors become one."""

from pydantic import ValidationError


class FlowpruneError(ValueError):
    """A user's mistake. The message is one sentence that names what is wrong and what to do about it."""


def reason_of(error: BaseException) -> str:
    """What another library says of its error, on one line and without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def one_sentence(error: ValidationError, prefix: str = "") -> str:
    """A validation error as one sentence: the first field that is wrong, what it holds, what it should be.

    Args:
        error: from pydantic.
        prefix: before the field's name, for example ``method.``.
    """
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, FlowpruneError):
        return str(cause)
    field = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{field} is not a known key: remove it or check its spelling."
    if first["type"] == "missing":
        return f"{field} is missing: add it."
    message = first["msg"].removeprefix("Value error, ")
    return f"{field} is {first['input']!r}: {message[0].lower()}{message[1:]}."
