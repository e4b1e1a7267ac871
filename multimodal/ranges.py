"""Where a search looks for a parameter: metadata of a field, read by whoever searches, unread at run time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchRange:
    """Where a search looks for a parameter; goes into the field's ``Annotated`` metadata.

    Args:
        low: least value.
        high: greatest value.
        log: whether its logarithm is searched.
        guesses: values that a search tries first, in every combination with those of other parameters.
    """

    low: float
    high: float
    log: bool = False
    guesses: tuple[float, ...] = ()


@dataclass(frozen=True)
class SearchChoice:
    """Values that a search chooses among, without order; goes into the field's ``Annotated`` metadata."""

    values: tuple[str | bool, ...]
