"""Each method at each budget, ready to be measured: its settings and its published config; and who cannot take part."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.costs import Workload
from multimodal.families import Geometry
from pipelines.baselines import untuned_config
from pipelines.comparison.contenders import at_budget, budgets_of, methods_of
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs
from pipelines.space import make_space, prompts_of, with_equal_shares
from pipelines.stages import search
from pipelines.trials import join
from pipelines.workspace import Workspace
from search.budget import BudgetUnreachableError
from search.space import Space
from search.study import discrepancy, done_trials, stopped_early
from search.tuned import tuned_config


@dataclass(frozen=True)
class Entrant:
    """One method at one budget.

    Args:
        name: what it is called.
        settings: as ``stages=[search]`` would have them.
        space: what a search would suggest from.
        published: the method's config without a search, on budget; None for a mixture, which only a search makes.
        served: the same within what an engine can serve; None where no engine is named, or it cannot take the method.
    """

    name: str
    workspace: Workspace
    space: Space
    published: PruningConfig | None
    served: Workspace | None


def enter(workspace: Workspace, opened: OpenedModel) -> tuple[list[Entrant], dict[str, str]]:
    """Whoever takes part, and who cannot, with the reason.

    Args:
        workspace: of the run.
        opened: the model.

    Raises:
        FlowpruneError: a method that was named does not fit the model, or nobody can take part.
    """
    geometry = opened.modules.geometry
    samples = workspace.samples("calibration")
    first = dict(build_inputs(opened, samples[:1]))
    workload = prompts_of(geometry, (build_inputs(opened, [sample]) for sample in samples))
    entrants: list[Entrant] = []
    left_out: dict[str, str] = {}
    for method in methods_of(workspace.settings):
        try:
            for budget in budgets_of(workspace.settings):
                own = at_budget(workspace, geometry, method, budget)
                try:
                    space = make_space(with_equal_shares(own.settings), geometry, workload, opened.normalization)
                except BudgetUnreachableError as error:
                    left_out[f"{method} at {budget:g}"] = str(error)
                    continue
                published = None
                if own.settings.method.untuned is not None:
                    published = untuned_config(own.settings.method, space)
                    _try(opened, first, published)
                served = None
                if workspace.settings.serving.engine is not None and workspace.settings.compare.tunes(method):
                    served = at_budget(workspace, geometry, method, budget, workspace.settings.serving)
                    if (why := _unservable(served, geometry, workload, opened)) is not None:
                        left_out[f"{method} servable"], served = why, None
                entrants.append(Entrant(method, own, space, published, served))
        except FlowpruneError as error:
            if workspace.settings.compare.methods != ["all"]:
                raise
            left_out[method] = str(error)
    if not entrants:
        raise FlowpruneError(f"No method can take part: {next(iter(left_out.values()))}")
    return entrants, left_out


def _unservable(workspace: Workspace, geometry: Geometry, workload: Workload, opened: OpenedModel) -> str | None:
    """Why an engine can serve nothing of what a search may find; None: it can."""
    try:
        make_space(with_equal_shares(workspace.settings), geometry, workload, opened.normalization)
    except FlowpruneError as error:
        return str(error)
    return None


def tune(workspace: Workspace) -> PruningConfig:
    """The best config of a contender's search, which has as many trials as every other's; what was searched already is
    not searched again.

    Args:
        workspace: of the contender.

    Raises:
        FlowpruneError: the study exists with other settings, or has no complete trial.
    """
    target = workspace.settings.search.trials
    try:
        study = join(workspace).study
    except FlowpruneError as error:
        raise FlowpruneError(str(error).replace("another study=NAME", "another compare.name=NAME")) from error
    if len(done_trials(study)) < target:
        study = search.run(workspace)
    first = sorted(done_trials(study), key=lambda trial: trial.number)[:target]
    complete = [trial for trial in first if not stopped_early(trial)]
    return tuned_config(study, min(complete, key=discrepancy))


@torch.inference_mode()
def _try(opened: OpenedModel, inputs: Mapping[str, Tensor], config: PruningConfig) -> None:
    with prune(opened.model, config):
        opened.modules.base(**inputs, use_cache=True)
