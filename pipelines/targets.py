"""What the export stage writes for an engine beside ``pruning.json``."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from multimodal import FlowpruneError, PruningConfig
from multimodal.loading import located
from multimodal.runtime.fitting import check_fits
from multimodal.serving import vllm_loading
from multimodal.serving.targets.openvino import openvino_arguments
from multimodal.serving.targets.pixels import pixels_arguments
from multimodal.serving.targets.target import EngineArguments
from multimodal.serving.targets.tensorrt_edge import tensorrt_edge_arguments
from multimodal.serving.targets.vllm import vllm_target_arguments
from multimodal.serving.targets.vllm_video import vllm_video_arguments
from multimodal.serving.vllm_weights import BESIDE, WEIGHTS, is_readable, write_readable
from pipelines.console import console
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, shown_layouts
from pipelines.settings import Settings, VllmSettings
from pipelines.workspace import Workspace

ONE_METHOD = {"openvino": "cdpruner", "tensorrt-edge": "dart"}
NOT_LOADED = "not loaded in vLLM, which is not here: name a Python that has it by engine=vllm engine.python=PYTHON"
NO_PLUGIN = "; flowprune, whose plugin reads what is handed over, is not in that Python yet"


def check_target(settings: Settings) -> None:
    """Refuse a search whose config the target could not express.

    Raises:
        FlowpruneError: one sentence with the settings that it needs.
    """
    target, method = settings.target, settings.method.name
    if target == "vllm" and settings.serving.engine is None:
        raise FlowpruneError("target=vllm takes one step before the language model: add serving=vllm to the search.")
    if target in ONE_METHOD and (method != ONE_METHOD[target] or settings.steps > 1):
        raise FlowpruneError(
            f"target={target} takes one step of {ONE_METHOD[target]} alone: search with method={ONE_METHOD[target]} "
            "search.steps=1, or choose target=vllm."
        )


def write_target(workspace: Workspace, path: Path) -> Path:
    """Write the arguments of the settings' target, and say what to run.

    Args:
        workspace: of the run.
        path: of the config.

    Returns:
        The file's path.

    Raises:
        FlowpruneError: the target cannot express the config.
    """
    config = PruningConfig.from_pretrained(path)
    found = _arguments(workspace, config, path)
    written = found.save(path.parent)
    console.print(f"for {found.target}: [bold]{written}[/]")
    for command in found.commands:
        console.print(command, style="bold", soft_wrap=True, highlight=False, markup=False)
    for remark in found.remarks:
        console.print(f"[yellow]{remark}[/]", highlight=False)
    return written


def _arguments(workspace: Workspace, config: PruningConfig, path: Path) -> EngineArguments:
    target = workspace.settings.target
    layers = config.model.layers if config.model is not None else len(workspace.model.modules.text_layers)
    if target == "openvino":
        return openvino_arguments(config, layers)
    if target == "tensorrt-edge":
        return tensorrt_edge_arguments(config, layers)
    if target == "vllm-video":
        return vllm_video_arguments(config, layers)
    if target == "pixels":
        return _pixels(workspace, config, layers)
    return _vllm(workspace, config, layers, path)


def _opened(workspace: Workspace, config: PruningConfig) -> OpenedModel:
    """The model, which a config that was fetched may not be for."""
    check_fits(workspace.model.modules, config)
    return workspace.model


def _pixels(workspace: Workspace, config: PruningConfig, layers: int) -> EngineArguments:
    opened = _opened(workspace, config)
    images = opened.processor.image_processor
    merged, size = getattr(images, "merge_size", None), dict(getattr(images, "size", None) or {})
    if merged is None or not {"longest_edge", "shortest_edge"} <= set(size):
        return pixels_arguments(config, layers, [], None)
    geometry, samples = opened.modules.geometry, workspace.samples("calibration")
    layouts = [each for sample in samples for each in shown_layouts(geometry, build_inputs(opened, [sample]))]
    tokens = [layout.visual_tokens for layout in layouts]
    return pixels_arguments(config, layers, tokens, images.patch_size * merged, size["shortest_edge"])


def _vllm(workspace: Workspace, config: PruningConfig, layers: int, path: Path) -> EngineArguments:
    settings, opened = workspace.settings, _opened(workspace, config)
    if settings.model.adapter is not None:
        raise FlowpruneError("target=vllm reads one folder of weights: merge model.adapter into the model with PEFT.")
    local = Path(located(settings.model.path)).absolute()
    where = str(local) if local.is_dir() else settings.model.path
    python, own_config = _python_of(settings), opened.model.config
    arguments = partial(vllm_target_arguments, config, layers, own_config, path.absolute(), python or "PYTHON", where)
    found = arguments(where)
    folder = local if local.is_dir() else _from_hub(where, settings.model.revision)
    if not is_readable(folder):
        own = workspace.vllm_model.absolute()
        if not own.exists() or own.stat().st_mtime < max(each.stat().st_mtime for each in folder.iterdir()):
            write_readable(folder, own)
        console.print(f"weights under names that vLLM reads: {own}", soft_wrap=True)
        found = arguments(str(own))
    if python is None:
        console.print(f"[yellow]{NOT_LOADED}[/]", highlight=False)
    else:
        _load(python, found, workspace.vllm_loading_log)
    return found


def _from_hub(model: str, revision: str | None) -> Path:
    """The folder of a model that was loaded from the hub."""
    try:
        patterns = [f"*{suffix}" for suffix in (WEIGHTS, *BESIDE)]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except OSError as error:  # of the network, as all of the hub's own
        raise FlowpruneError(
            f"{model} cannot be read from the hub ({str(error).splitlines()[0]}): try again."
        ) from error


def _python_of(settings: Settings) -> str | None:
    """A Python that has vLLM: the one that was named, or this one."""
    named = settings.engine.python if isinstance(settings.engine, VllmSettings) else None
    return named or (sys.executable if importlib.util.find_spec("vllm") is not None else None)


def _load(python: str, found: EngineArguments, log: Path) -> None:
    """Have vLLM load the model as it is to serve it.

    Raises:
        FlowpruneError: it cannot.
    """
    model = found.arguments["model"]
    script = Path(vllm_loading.__file__).read_text(encoding="utf-8")
    command = [python, "-c", script, model, json.dumps(found.arguments["hf_overrides"])]
    with console.status(f"vLLM loads {model}"), log.open("wb") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, check=False)
    if done.returncode:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        why = said[-1] if said else "it does not say why"
        raise FlowpruneError(f"vLLM of {python} cannot load {model} ({why}): see {log}.")
    [*_, last] = (line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("{"))
    known = json.loads(last)
    console.print(f"vLLM {known['vllm']} loads every weight" + ("" if known["plugin"] else NO_PLUGIN))
