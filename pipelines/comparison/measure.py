"""Measure contenders on the held-out samples, each once: what was measured earlier is read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal import PruningConfig
from multimodal.costs import estimate
from multimodal.evidence import TowerScore
from multimodal.runtime.report import SampleReport
from pipelines.calibration import observed
from pipelines.comparison.bench import Bench
from pipelines.comparison.contenders import DOWNSCALE, DOWNSCALED, NONE, UNPRUNED, Variant, label
from pipelines.comparison.downscale import downscaled
from pipelines.comparison.measurement import Measured, known
from pipelines.first_token import seconds_to_first_token
from pipelines.grading import answer_all
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs
from pipelines.workspace import Workspace
from search.calibration import CalibrationSample
from search.objective import Objective, discrepancy_of, next_token_kl


def measure_unpruned(bench: Bench) -> Measured:
    """The model as it is: what all others are shares of."""
    identity = bench.identity(NONE, UNPRUNED)
    if (found := known(identity, bench.folder)) is not None:
        return found
    answers, _ = answer_all(bench.opened, bench.samples, None, UNPRUNED)
    seconds, again = seconds_to_first_token(
        bench.opened.model, bench.timed, bench.timed, None, bench.workspace.settings.compare.repeats
    )
    nothing = [0.0] * len(bench.samples)
    shares: dict[str, Any] = {"retention": 1.0, "flops_share": 1.0, "kv_share": 1.0}
    return _kept(
        bench,
        Measured(
            identity=identity,
            **bench.grade(answers, answers),
            **shares,
            discrepancies=nothing,
            divergences=nothing,
            seconds=again,
            unpruned_seconds=seconds,
        ),
    )


def measure_downscaled(bench: Bench, unpruned: Measured, budget: float, share: float) -> Measured:
    """The unpruned model on smaller pictures.

    Args:
        bench: what is measured with.
        unpruned: its measurement.
        budget: what is compared at.
        share: of the visual tokens, if all pruning is before the language model.
    """
    identity = bench.identity(DOWNSCALE, DOWNSCALED, budget)
    if (found := known(identity, bench.folder)) is not None:
        return found
    opened = bench.opened
    smaller, remark = downscaled(opened, bench.samples, share)
    answers, _ = answer_all(opened, smaller, None, f"a downscaled picture at {budget:g}")
    theirs, reference = (observed(bench.workspace, each, "heldout").samples for each in (smaller, bench.samples))
    inputs = [build_inputs(opened, [sample]) for sample in smaller[: len(bench.timed)]]
    before, seconds = seconds_to_first_token(
        opened.model, bench.timed, inputs, None, bench.workspace.settings.compare.repeats
    )
    hidden, unhurt = (torch.stack([sample.reference for sample in each]) for each in (theirs, reference))
    return _kept(
        bench,
        Measured(
            identity=identity,
            **_shares(opened, theirs, reference),
            **bench.grade(answers, unpruned.answers),
            **_distances(opened, hidden, unhurt),
            seconds=seconds,
            unpruned_seconds=before,
            remark=remark,
        ),
    )


def measure_pruned(
    bench: Bench,
    unpruned: Measured,
    method: str,
    own: Workspace,
    variant: Variant,
    config: PruningConfig,
    trials: int | None = None,
) -> Measured:
    """A pruned model.

    Args:
        bench: what is measured with.
        unpruned: its measurement.
        method: what the contender is called.
        own: its workspace.
        variant: published or tuned.
        config: how it prunes.
        trials: that its search had.
    """
    [budget] = own.settings.budget.budgets
    identity = bench.identity(method, variant, budget, config)
    if (found := known(identity, bench.folder)) is not None:
        return found
    opened = bench.opened
    also = [each for each in config.method.vision_requests if not isinstance(each, TowerScore)]
    cached = observed(own, bench.samples, "heldout", also)
    objective = Objective(opened.modules, cached.samples, own.settings.search.batch_size, own.settings.seed)
    hidden, reference = objective.hidden_states(config)
    name = f"{label(method, variant)} at {budget:g}"
    answers, reports = answer_all(opened, bench.samples, config, name)
    before, seconds = seconds_to_first_token(
        opened.model, bench.timed, bench.timed, config, bench.workspace.settings.compare.repeats
    )
    return _kept(
        bench,
        Measured(
            identity=identity,
            study=own.settings.study if trials else None,
            trials=trials,
            **objective.shares(config) | _spent(reports),
            **bench.grade(answers, unpruned.answers),
            **_distances(opened, hidden, reference),
            seconds=seconds,
            unpruned_seconds=before,
        ),
    )


def _kept(bench: Bench, measured: Measured) -> Measured:
    measured.save(bench.folder)
    return measured


@torch.inference_mode()
def _distances(opened: OpenedModel, hidden: Tensor, reference: Tensor) -> dict[str, Any]:
    """How far hidden states ``[N, C]`` are from the unpruned ones, sample by sample."""
    device = opened.modules.text_model.device
    hidden, reference = hidden.to(device), reference.to(device)
    kl = next_token_kl(hidden, reference, opened.modules)
    return {"discrepancies": discrepancy_of(hidden, reference).tolist(), "divergences": kl.tolist()}


def _spent(reports: Sequence[SampleReport]) -> dict[str, Any]:
    """Retention and KV bytes as the runtime counted them, over all samples together."""
    tokens = sum(report.visual_tokens for report in reports)
    return {
        "retention": sum(report.retention * report.visual_tokens for report in reports) / tokens,
        "kv_share": sum(report.kv_bytes for report in reports) / sum(report.kv_bytes_unpruned for report in reports),
    }


def _shares(
    opened: OpenedModel, theirs: Sequence[CalibrationSample], reference: Sequence[CalibrationSample]
) -> dict[str, Any]:
    """What prompts cost beside others."""
    text = opened.modules.text_model.config
    totals = []
    for samples in (theirs, reference):
        costs = [estimate(text, s.layouts, int((~s.is_visual).sum())) for s in samples]
        visual = sum(int(s.is_visual.sum()) for s in samples)
        totals.append((visual, sum(c.prefill_flops for c in costs), sum(c.kv_bytes for c in costs)))
    retention, flops, kv = (ours / full for ours, full in zip(*totals, strict=True))
    return {"retention": retention, "flops_share": flops, "kv_share": kv}
