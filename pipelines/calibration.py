"""Samples as the unpruned model saw them, kept in a cache for all workers and stages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodal.evidence import VisionRequest, joined
from pipelines.console import progress_bar
from pipelines.data import Part, Sample, data_digest
from pipelines.prompts import build_inputs
from pipelines.space import method_choices
from pipelines.workspace import Workspace
from search.calibration import FORMAT, CalibrationSample, observe_sample
from search.digest import digest


@dataclass(frozen=True)
class Calibration:
    """Cached samples of one part of the data.

    Args:
        folder: where they are.
        data_digest: of all that is shown and said to the model.
        samples: memory-mapped.
    """

    folder: Path
    data_digest: str
    samples: list[CalibrationSample]


def observed(
    workspace: Workspace, samples: Sequence[Sample], part: Part, also: Sequence[VisionRequest] = ()
) -> Calibration:
    """The samples as the unpruned model saw them, from the cache or into it.

    Args:
        workspace: of the run, whose methods say what must be seen.
        samples: images and questions.
        part: of the data that they are.
        also: what else must be seen, of a config beyond the search's ranges.
    """
    choices = method_choices(workspace.settings)
    requests = joined([*(each for choice in choices for each in choice.vision_requests), *also])
    keep_inputs = any(choice.prunes_tower for choice in choices)
    opened = workspace.model
    data = data_digest(samples)
    key = digest(
        {
            "format": FORMAT,
            "model": opened.identity,
            "data": data,
            "evidence": sorted(map(repr, requests)),
            "inputs": keep_inputs,
            "normalization": opened.normalization,
        }
    )
    folder = Path(workspace.settings.cache) / key
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(samples))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        with progress_bar() as progress:
            for number in progress.track(missing, description=f"observing {part} samples"):
                inputs = build_inputs(opened, [samples[number]])
                sample = observe_sample(opened.modules, inputs, requests, opened.normalization, keep_inputs)
                sample.save(paths[number])
    manifest = {"model": opened.tuned_for.model_dump(), "data_digest": data, "part": part, "samples": len(samples)}
    if missing:
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return Calibration(folder, data, [CalibrationSample.load(path) for path in paths])
