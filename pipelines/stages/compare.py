"""Stage compare: methods side by side on held-out samples, at the same exact budgets, published and equally tuned."""

from multimodal import FlowpruneError
from pipelines.comparison.bench import Bench
from pipelines.comparison.contenders import PUBLISHED, SERVABLE, TUNED, Variant, budgets_of, label, methods_of
from pipelines.comparison.entrants import Entrant, enter, tune
from pipelines.comparison.files import write_tables
from pipelines.comparison.measure import measure_downscaled, measure_pruned, measure_unpruned
from pipelines.comparison.measurement import Measured
from pipelines.comparison.mlflow_runs import track
from pipelines.comparison.page import write_page
from pipelines.comparison.rows import Comparison
from pipelines.comparison.summary import summarise
from pipelines.comparison.tables import budget_table, kinds_table, predictors_table
from pipelines.comparison.verdict import verdicts
from pipelines.console import console
from pipelines.figures.accuracy import save_accuracy
from pipelines.figures.tiles import draw_tiles
from pipelines.report_metrics import compared
from pipelines.stages import search
from pipelines.tracking import check_tracking, log_with_study
from pipelines.workspace import Workspace
from search.schedules import Schedules

PAGE, FIGURE = "comparison.html", "comparison.png"


def check(workspace: Workspace) -> None:
    """Say what would keep a comparison from running, before anything expensive.

    Raises:
        FlowpruneError: an unknown method, a budget that is none, an engine but nothing that is searched for it, an
            unreachable storage or tracking store.
    """
    methods_of(workspace.settings)
    budgets_of(workspace.settings)
    engine = workspace.settings.serving.engine
    if engine is not None and not workspace.settings.compare.tuned:
        raise FlowpruneError(
            f"serving={engine} is compared as searches find it, within what it can do and beyond: add "
            "compare.tuned=true, or a list of methods."
        )
    if workspace.settings.compare.tuned:
        search.check_services(workspace)
    else:
        check_tracking(workspace)


def run(workspace: Workspace) -> Comparison:
    """Measure every contender that was not measured yet, and say what all of them show together.

    Raises:
        FlowpruneError: bad settings, data or model, or a method that was named does not fit the model.
    """
    check(workspace)
    opened = workspace.model
    entrants, left_out = enter(workspace, opened)
    for name, why in left_out.items():
        console.print(f"[yellow]left out: {name}: {why}[/]", highlight=False)
    bench = Bench(workspace, opened, workspace.samples("heldout"))
    unpruned = measure_unpruned(bench)
    smaller = {budget: measure_downscaled(bench, unpruned, budget, share) for budget, share in _shares(entrants)}
    pruned = [
        measure_pruned(bench, unpruned, each.name, each.workspace, PUBLISHED, each.published)
        for each in entrants
        if each.published is not None
    ]
    if workspace.settings.compare.tuned:
        tuned = [each for each in entrants if workspace.settings.compare.tunes(each.name)]
        pruned += [_tuned(bench, unpruned, each.name, each.workspace, TUNED) for each in tuned]
        pruned += [_tuned(bench, unpruned, each.name, each.served, SERVABLE) for each in tuned if each.served]
    comparison = summarise(
        unpruned,
        smaller,
        pruned,
        [sample.kind for sample in bench.samples],
        workspace.settings.compare.bootstrap,
        workspace.settings.seed,
        left_out,
    )
    _conclude(workspace, bench, comparison, unpruned, pruned)
    _log_with_studies(workspace, comparison, entrants)
    return comparison


def _log_with_studies(workspace: Workspace, comparison: Comparison, entrants: list[Entrant]) -> None:
    """Log what was found of each tuned config with the run of its study."""
    rows = {(row.method, row.variant, row.budget): row for row in comparison.rows}
    for each in entrants:
        for variant, own in ((TUNED, each.workspace), (SERVABLE, each.served)):
            if own is not None and (row := rows.get((each.name, variant, own.settings.budget.budgets[0]))) is not None:
                log_with_study(own, compared(row, comparison.unpruned))


def _shares(entrants: list[Entrant]) -> list[tuple[float, float]]:
    """For each budget, the share of the visual tokens that one step before the language model keeps to meet it."""
    found = {}
    for each in entrants:
        [budget] = each.space.budgets
        [step] = Schedules(each.space.cost, 1, each.space.layers).solved(budget, [0], [])
        found[budget] = step.keep_ratio
    return list(found.items())


def _tuned(bench: Bench, unpruned: Measured, name: str, own: Workspace, variant: Variant) -> Measured:
    budget = own.settings.budget
    console.print(f"[bold]{label(name, variant)}[/], {budget.measure} {budget.budgets[0]:g}")
    return measure_pruned(bench, unpruned, name, own, variant, tune(own), own.settings.search.trials)


def _conclude(
    workspace: Workspace, bench: Bench, comparison: Comparison, unpruned: Measured, pruned: list[Measured]
) -> None:
    """Print, write and track what was found."""
    for budget in comparison.budgets:
        console.print(budget_table(comparison, budget))
    if comparison.kinds:
        for budget in comparison.budgets:
            console.print(kinds_table(comparison, budget))
    console.print(predictors_table(comparison))
    for verdict in verdicts(comparison):
        console.print(verdict, highlight=False)
    folder = workspace.comparison
    page = write_page(workspace.settings, comparison, draw_tiles(bench, comparison, unpruned, pruned), folder / PAGE)
    files = [page, *write_tables(comparison, folder), save_accuracy(comparison, folder / FIGURE)]
    console.print(f"page: {page}\ntables and figure: {', '.join(file.name for file in files[1:])}", soft_wrap=True)
    track(workspace, comparison, files)
