"""A report as tables of words, for a terminal or a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from multimodal.benchmark.comparing import pruning_share
from multimodal.benchmark.parts import PARTS
from multimodal.benchmark.profiling import limited_by
from multimodal.benchmark.report import Case, Report
from multimodal.benchmark.sweep import Sweep, advice
from multimodal.benchmark.variants import COMPILED, PRUNED, RECORDED, UNPRUNED

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table of words: the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The same for a page."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", table, *self.notes])


def overview(report: Report) -> Grid:
    """One row a case: the table of a README."""
    first, more = ("first token", PRUNED, RECORDED, "bound"), ("a token more", RECORDED, COMPILED)
    rows = []
    for case in report.cases:
        rows.append(
            (
                f"{case.model} ({case.visual_tokens:,.0f}), {case.batch}",
                *(_time(case, name, "first_token") for name in (UNPRUNED, PRUNED, RECORDED)),
                _bound(case),
                *(_time(case, name, "decoding") for name in (UNPRUNED, RECORDED, COMPILED)),
            )
        )
    title = (
        f"{report.device}, {report.dtype}, {report.attention}, torch {report.torch}, transformers {report.transformers}"
    )
    return Grid(
        title, ("shape (visual tokens), batch", *first, *more), rows, (*_failures(report.cases), *report.left_out)
    )


def speed(case: Case) -> Grid:
    """How fast each variant is, and the least that its FLOPs and bytes allow."""
    columns = ("ms, MiB", "first token", "×", "bound", "a token more", "×", "bound", "peak", "held")
    rows = []
    for row in case.rows:
        rows.append(
            (
                row.variant,
                _ms(row.first_token),
                _ratio(case.row(UNPRUNED).first_token, row.first_token),
                _ms(row.first_token_bound),
                _ms(row.decoding),
                _ratio(case.row(UNPRUNED).decoding, row.decoding),
                _ms(row.decoding_bound),
                _mib(row.peak_bytes),
                _mib(row.recorded_bytes),
            )
        )
    title = (
        f"{case.model}, {case.visual_tokens:,.0f} visual and {case.text_tokens:,.0f} text tokens, batch {case.batch}, "
        f"retention {case.retention:.3f}"
    )
    return Grid(title, columns, rows, _failures([case]))


def inside(case: Case) -> Grid:
    """What a first token is made of."""
    rows = [(row.variant, *(_ms(row.parts.get(part)) for part in PARTS)) for row in case.rows if row.parts]
    share = pruning_share(case.row(PRUNED))
    notes = () if share is None else (f"Evidence, selection and merging take {share:.0%} of the tower's time.",)
    return Grid("A first token in parts", ("ms", *PARTS), rows, notes)


def on_host(case: Case) -> Grid:
    """What the host does for a first token, for how long the device works meanwhile, and which of them holds it."""
    told = [(row, row.first_token_host) for row in case.rows if row.first_token_host is not None]
    counted = list(dict.fromkeys(name for _, host in told for name in host.counts))
    rows = []
    for row, host in told:
        first = (_ms(host.busy), limited_by(row.first_token or 0.0, host.busy))
        more = (_ms(row.decoding_busy), limited_by(row.decoding or 0.0, row.decoding_busy))
        rows.append((row.variant, *(f"{host.counts[name]:,}" for name in counted), *first, *more))
    held: tuple[str, ...] = ("device busy, ms", "held by", "a token more: busy", "held by")
    if all(host.busy is None for _, host in told):  # there is no device beside the host
        rows, held = [row[: 1 + len(counted)] for row in rows], ()
    return Grid("A first token on the host", ("", *counted, *held), rows)


def swept(sweep: Sweep) -> Grid:
    """Speed-up of the first token over image size, batch and retention, and what follows."""
    columns = ("image (visual tokens), batch", "unpruned", *(f"{retention:g}" for retention in sweep.retentions))
    rows = []
    for first in [cell for cell in sweep.cells if cell.retention == sweep.retentions[0]]:
        own = [cell for cell in sweep.cells if (cell.image, cell.batch) == (first.image, first.batch)]
        pairs = {cell.retention: [_speed_up(cell.speed_up(way)) for way in (PRUNED, RECORDED)] for cell in own}
        cells = {retention: " · ".join(pair) for retention, pair in pairs.items()}
        name = f"{first.image} ({first.visual_tokens:,}), {first.batch}"
        unpruned = NONE if first.unpruned is None else f"{_ms(first.unpruned)} ms"
        rows.append((name, unpruned, *(cells[retention] for retention in sweep.retentions)))
    title = f"{sweep.model}: speed-up of the first token by retention, {PRUNED} · {RECORDED}"
    return Grid(title, columns, rows, tuple(advice(sweep)))


def page(report: Report) -> str:
    """A whole report, for a page."""
    grids = [overview(report)] if report.cases else []
    for case in report.cases:
        grids += [speed(case), inside(case), on_host(case)]
    if report.sweep is not None:
        grids.append(swept(report.sweep))
    return "\n\n".join(grid.markdown() for grid in grids) + "\n"


def _time(case: Case, name: str, figure: str) -> str:
    found, unpruned = getattr(case.row(name), figure), getattr(case.row(UNPRUNED), figure)
    if found is None:
        return NONE
    return f"{_ms(found)} ms" + ("" if name == UNPRUNED or unpruned is None else f" ({_ratio(unpruned, found)})")


def _bound(case: Case) -> str:
    found = case.row(PRUNED).first_token_bound
    return NONE if found is None else f"{_ms(found)} ms"


def _failures(cases: list[Case]) -> tuple[str, ...]:
    """Why figures are missing, and what must be known of others; each reason once."""
    said = [(row.variant, row.failed or row.note) for case in cases for row in case.rows if row.failed or row.note]
    return tuple(f"{name[0].upper()}{name[1:]}: {reason}." for name, reason in dict.fromkeys(said))


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1000:,.1f}"


def _mib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**20:,.0f}"


def _ratio(before: float | None, after: float | None) -> str:
    return NONE if before is None or not after else f"{before / after:.2f}×"


def _speed_up(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"
