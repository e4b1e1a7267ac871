"""What the benchmark stage measures: the study's model, samples and config, or a random model and random images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch

from multimodal import FlowpruneError, PruningConfig
from multimodal.benchmark.inputs import Inputs, random_inputs
from multimodal.benchmark.measure import Subject
from multimodal.families import Modules, modules_of
from multimodal.runtime.fitting import check_fits
from multimodal.runtime.watch import Normalization
from pipelines.baselines import untuned_config
from pipelines.calibration import observed
from pipelines.console import console
from pipelines.model import build_random
from pipelines.prompts import build_inputs
from pipelines.restriction import served_method
from pipelines.space import make_space, prompts_of
from pipelines.workspace import Workspace
from search.calibration import CalibrationSample, observe_sample

HALF: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Measured:
    """What is measured.

    Args:
        subject: the model, its config and prompts.
        alone: prompts, each alone.
        calibration: what a search trial looks at.
    """

    subject: Subject
    alone: Sequence[Inputs]
    calibration: Sequence[CalibrationSample]


def open_measured(workspace: Workspace) -> Measured:
    """Open what the settings name.

    Raises:
        FlowpruneError: there is no such model or sample, or the config does not fit the model.
    """
    settings, own = workspace.settings, workspace.settings.benchmark
    batch_of: Callable[[int], Inputs]
    if settings.model.weights == "random":
        modules, normalization = modules_of(build_random(settings.model)), HALF
        torch.manual_seed(settings.seed)
        batch_of = partial(random_inputs, modules, None, text_tokens=own.text_tokens)
        alone = [batch_of(1) for _ in range(own.samples)]
    else:
        opened = workspace.model
        modules, normalization = opened.modules, opened.normalization
        chosen = workspace.samples("heldout", own.samples)
        alone = [build_inputs(opened, [sample]) for sample in chosen]

        def batch_of(batch: int) -> Inputs:
            return build_inputs(opened, list(islice(cycle(chosen), batch)))

    config = _config(workspace, modules, alone, normalization)
    check_fits(modules, config)
    image = "the tower's own size" if settings.model.weights == "random" else "the samples' own sizes"
    subject = Subject(
        settings.model.name, modules, config, image, lambda batch: alone if batch == 1 else [batch_of(batch)]
    )
    return Measured(subject, alone, _calibration(workspace, subject, alone, normalization))


def _config(
    workspace: Workspace, modules: Modules, alone: Sequence[Mapping[str, Any]], normalization: Normalization
) -> PruningConfig:
    given, weights = workspace.settings.benchmark.config, workspace.settings.model.weights
    if given is None and weights == "pretrained":
        try:
            return workspace.config(None)
        except FlowpruneError:
            console.print("no tuned config of this study: measuring the untuned values")
    if given is not None:
        return workspace.config(given)
    space = make_space(workspace.settings, modules.geometry, prompts_of(modules.geometry, alone), normalization)
    return untuned_config(served_method(workspace.settings), space)


def _calibration(
    workspace: Workspace, subject: Subject, alone: Sequence[Inputs], normalization: Normalization
) -> Sequence[CalibrationSample]:
    """What a trial looks at: the study's samples, or the prompts, where there are none or pixels are needed."""
    config, modules = subject.config, subject.modules
    if config.method.tower is not None:  # which every trial runs again
        return [observe_sample(modules, each, (), normalization, keep_inputs=True) for each in alone]
    if workspace.settings.model.weights == "random":
        return [observe_sample(modules, each, config.vision_requests, normalization) for each in alone]
    return observed(workspace, workspace.samples("calibration"), "calibration", config.vision_requests).samples
