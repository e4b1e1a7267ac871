"""Samples as the unpruned model saw them, kept in a cache for all workers and stages."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from multimodal import FlowpruneError
from multimodal.evidence import VisionRequest, joined
from pipelines.console import progress_bar
from pipelines.data import Part, Sample, data_digest
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs
from pipelines.space import method_choices
from pipelines.workspace import Workspace
from search.calibration import FORMAT, CalibrationSample, observe_samples
from search.digest import digest

TOKENS = 2**14, 2**11  # that are read unpruned at once, on a CUDA device and elsewhere


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
            task = progress.add_task(f"observing {part} samples", total=len(missing))
            for number, sample in _observe(opened, samples, missing, requests, keep_inputs):
                sample.save(paths[number])
                progress.advance(task)
    manifest = {"model": opened.tuned_for.model_dump(), "data_digest": data, "part": part, "samples": len(samples)}
    if missing:
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return Calibration(folder, data, [CalibrationSample.load(path) for path in paths])


def _observe(
    opened: OpenedModel,
    samples: Sequence[Sample],
    numbers: Sequence[int],
    requests: Sequence[VisionRequest],
    keep_inputs: bool,
) -> Iterator[tuple[int, CalibrationSample]]:
    """Observe some of the samples, several at once as long as they are few tokens together.

    Raises:
        FlowpruneError: the device has no room for one sample.
    """
    device, left, at_once = opened.model.device, list(numbers), 1
    tokens = TOKENS[device.type != "cuda"]
    while left:
        chosen = _alike(samples, left)[:at_once]
        inputs = build_inputs(opened, [samples[number] for number in chosen])
        seen, longest = None, inputs["input_ids"].shape[1]
        if len(chosen) == 1 or len(chosen) * longest <= tokens:
            with suppress(torch.OutOfMemoryError):
                seen = observe_samples(opened.modules, inputs, requests, opened.normalization)
            tokens = tokens if seen else len(chosen) * longest // 2  # and no more for what follows
        if seen is None:
            if len(chosen) == 1:
                raise FlowpruneError(
                    f"{samples[chosen[0]].where}: its {longest} tokens, read unpruned, do not fit into the memory of "
                    f"{device}: free some of it, load the model in a smaller dtype, or use smaller images."
                )
            at_once = len(chosen) // 2
            continue
        yield from zip(chosen, [replace(seen[0], inputs=dict(inputs))] if keep_inputs else seen, strict=True)
        left, at_once = left[len(chosen) :], 1 if keep_inputs else max(1, tokens // longest)


def _alike(samples: Sequence[Sample], numbers: Sequence[int]) -> list[int]:
    """The first of these: processors take no batch in which only some have pictures, or videos."""
    kinds = groupby(numbers, lambda number: (bool(samples[number].pictures), bool(samples[number].videos)))
    return list(next(kinds)[1])
