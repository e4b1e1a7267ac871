"""The latency model of a study whose budget is in milliseconds."""

import os

import optuna
import torch

from multimodal import FlowpruneError
from multimodal.benchmark.device import device_name
from multimodal.costs import Workload
from pipelines.calibration import Calibration
from pipelines.console import console
from pipelines.model import OpenedModel
from pipelines.settings import BudgetSettings
from pipelines.space import make_space, method_choices
from pipelines.workspace import Workspace
from search.digest import digest
from search.latency import Latency, measure_latency

PROBES = BudgetSettings(name="probes", retention=[0.3, 0.5, 0.7])  # what pruned prefills are timed at
PROBED = 6


def study_latency(
    workspace: Workspace, opened: OpenedModel, calibration: Calibration, workload: Workload
) -> Latency | None:
    """The study's latency model; before there is a study, the one in the cache, which the first worker measures.

    Args:
        workspace: of the run.
        opened: the model, on the worker's device.
        calibration: samples to measure on, and the cache.
        workload: their prompts.

    Returns:
        None with a budget in another measure.

    Raises:
        FlowpruneError: a method prunes inside the tower, whose time is not the language model's.
    """
    settings = workspace.settings
    if settings.budget.measure != "latency_ms":
        return None
    for choice in method_choices(settings):
        if choice.prunes_tower:
            raise FlowpruneError(
                f"budget.latency_ms counts the language model's prefill alone, and {choice.name} prunes inside the "
                "tower: set budget to retention, flops or kv."
            )
    study = workspace.known_study
    known = None if study is None else study.user_attrs.get("settings", {}).get("latency")
    return Latency(**known) if known else _cached(workspace, opened, calibration, workload)


def check_device(study: optuna.Study, device: torch.device) -> None:
    """Refuse to count milliseconds of another device.

    Raises:
        FlowpruneError: the study's latency model was measured elsewhere.
    """
    known, here = study.user_attrs["settings"].get("latency"), device_name(device)
    if known is not None and known["device"] != here:
        raise FlowpruneError(
            f"Study {study.study_name!r} counts milliseconds on {known['device']}, and this is {here}: run it there, "
            "or choose another study=NAME."
        )


def _cached(workspace: Workspace, opened: OpenedModel, calibration: Calibration, workload: Workload) -> Latency:
    """Measured by one worker: where several do it at once, the first to finish is the one that all read."""
    settings, device = workspace.settings, device_name(opened.modules.text_model.device)
    key = digest({"device": device, "method": settings.method.name, "steps": settings.steps})
    path = calibration.folder / f"latency-{key}.json"
    if not path.exists():
        probing = settings.model_copy(update={"budget": PROBES})
        space = make_space(probing, opened.modules.geometry, workload, opened.normalization)
        trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=settings.seed))
        probes = [space.suggest(trials.ask()) for _ in range(PROBED)]
        measured = measure_latency(opened.modules, calibration.samples, probes, workload)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(measured.model_dump_json(indent=2), encoding="utf-8")
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    found = Latency.model_validate_json(path.read_text(encoding="utf-8"))
    console.print(
        f"one prompt's prefill on {found.device}: {found.milliseconds[-1]:.4g} ms unpruned, predictions for pruned "
        f"ones are off by {found.error:.0%} (median)"
    )
    return found
