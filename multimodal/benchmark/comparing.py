"""The ratios of a run, and which of them fell below those of an earlier one."""

from collections.abc import Mapping
from dataclasses import dataclass

from multimodal.benchmark.parts import EVIDENCE, SELECTION, TOWER
from multimodal.benchmark.report import Report, Row
from multimodal.benchmark.variants import COMPILED, RECORDED, UNPRUNED


@dataclass(frozen=True)
class Ratio:
    """Of two figures of one run, which the machine's pace leaves alone.

    Args:
        value: None: it could not be measured.
        less_is_better: whether it falls by growing.
        failed: why there is none.
    """

    value: float | None
    less_is_better: bool = False
    failed: str | None = None


def ratios(report: Report) -> dict[str, Ratio]:
    """All of a run, by what they are of."""
    found = {}
    for case in report.cases:
        where = f"{case.model} ({case.image}), batch {case.batch}"
        unpruned = case.row(UNPRUNED)
        for row in [row for row in case.rows if row.variant != COMPILED]:  # which is not ours
            for name, ratio in _of_row(row, unpruned).items():
                found[f"{where}, {row.variant}: {name}"] = ratio
    return found


def _of_row(row: Row, unpruned: Row) -> dict[str, Ratio]:
    found = {}
    if row.variant != UNPRUNED:
        found["speed-up of the first token"] = _speed_up(unpruned, row, unpruned.first_token, row.first_token)
        if unpruned.decoding is not None:
            found["speed-up of decoding"] = _speed_up(unpruned, row, unpruned.decoding, row.decoding)
    if row.variant != RECORDED and (share := pruning_share(row)) is not None:  # where they are parts of replays
        found["evidence, selection and merging ÷ vision tower"] = Ratio(share, less_is_better=True)
    return found


def _speed_up(unpruned: Row, row: Row, before: float | None, after: float | None) -> Ratio:
    if before is None or after is None:
        return Ratio(None, failed=unpruned.failed or row.failed)
    return Ratio(before / after)


def pruning_share(row: Row) -> float | None:
    """Evidence, selection and merging as a share of the tower's time: the device's where it was told, else the clock's.

    None where nothing of them was seen.
    """
    host = row.first_token_host
    parts: Mapping[str, float] = host.busy_parts if host is not None and host.busy_parts else row.parts
    own, tower = parts.get(EVIDENCE, 0.0) + parts.get(SELECTION, 0.0), parts.get(TOWER, 0.0)
    return own / tower if own and tower else None


def fallen(measured: Mapping[str, Ratio], committed: Mapping[str, Ratio], tolerance: float) -> dict[str, str]:
    """One sentence for each ratio that is worse than it was, by what it is of.

    Args:
        measured: those of a run.
        committed: those of the table that is kept.
        tolerance: the share by which a ratio may be worse.
    """
    found = {}
    for name, old in committed.items():
        if old.value is None:
            continue
        new = measured.get(name, Ratio(None, failed="it was not measured"))
        if new.value is None:
            found[name] = f"{name} was {old.value:.2f} and could not be measured: {new.failed}."
        elif old.less_is_better and new.value > old.value * (1 + tolerance):
            found[name] = f"{name} grew from {old.value:.2f} to {new.value:.2f}, more than {tolerance:.0%}."
        elif not old.less_is_better and new.value < old.value * (1 - tolerance):
            found[name] = f"{name} fell from {old.value:.2f} to {new.value:.2f}, more than {tolerance:.0%}."
    return found
