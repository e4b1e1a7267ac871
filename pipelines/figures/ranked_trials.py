"""Pictures of a study's best, median and worst trial on the same images: what makes the difference."""

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from multimodal import PruningConfig
from pipelines.figures.overlay import overlay_panels
from pipelines.figures.panels import save_panels
from pipelines.workspace import Workspace
from search.study import discrepancy


def write_ranked(workspace: Workspace, trials: Sequence[FrozenTrial]) -> list[Path]:
    """Draw some held-out images under three trials each; returns the paths of the PNGs.

    Args:
        workspace: of the run, with one budget.
        trials: done, of that budget.
    """
    opened, by_rank = workspace.model, sorted(trials, key=discrepancy)
    chosen = {"best": by_rank[0], "median": by_rank[len(by_rank) // 2], "worst": by_rank[-1]}
    paths = []
    for number, sample in enumerate(workspace.samples("heldout", workspace.settings.maps.samples)):
        rows = []
        for rank, trial in chosen.items():
            name = f"{rank}: trial {trial.number}, {discrepancy(trial):.4f}"
            rows.append(overlay_panels(opened, sample, PruningConfig(**trial.user_attrs["config"]), name)[0])
        paths.append(workspace.overlays / f"{number:02d}.png")
        save_panels(paths[-1], sample.question, rows)
    return paths
