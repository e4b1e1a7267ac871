"""Stage serve: an OpenAI-compatible endpoint of the pruned model."""

import json
import logging
import os
from pathlib import Path

import uvicorn
from rich.table import Table

from multimodal import FlowpruneError, PruningConfig, Recordings, prune
from multimodal.loading import located
from multimodal.serving.limits import check_servable
from multimodal.serving.vllm_arguments import vllm_arguments
from multimodal.serving.vllm_weights import is_readable
from pipelines.console import console
from pipelines.model import OpenedModel
from pipelines.serving.app import Endpoint
from pipelines.serving.chat import UNPRUNED
from pipelines.serving.engine import Engine
from pipelines.serving.front_end import open_front_end
from pipelines.serving.metrics import Metrics
from pipelines.serving.transformers_engine import TransformersEngine
from pipelines.serving.vllm_engine import VllmEngine, served_name
from pipelines.serving.vllm_process import VllmProcess
from pipelines.settings import VllmSettings
from pipelines.workspace import Workspace

KEY = "FLOWPRUNE_API_KEY"
GRACE = 30  # seconds that answers have when the endpoint is stopped


def run(workspace: Workspace) -> None:
    """Serve until interrupted.

    Raises:
        FlowpruneError: a config cannot be served, or the address or the engine is not there.
    """
    serving = Serving(workspace)
    try:
        serving.open()
        serving.run()
    finally:
        serving.close()


class Serving:
    """An endpoint and its engine.

    Args:
        workspace: of the run.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._settings = workspace, workspace.settings.serve
        self._process: VllmProcess | None = None
        self._endpoint: Endpoint

    def open(self) -> None:
        """Load the model and get the engine ready."""
        configs, engine = named_configs(self._workspace), self._workspace.settings.engine
        metrics, name = Metrics(), self._workspace.settings.model.name
        served: Engine
        if isinstance(engine, VllmSettings):
            loaded = vllm_model(self._workspace, engine)
            opened = open_front_end(self._workspace.settings.model)
            arguments = engine_arguments(opened, configs)
            check_configs(opened, configs)
            url = self._vllm(engine, loaded, arguments)
            served = VllmEngine(opened, configs, url, metrics, name, served_name(url), self._settings.timeout)
        else:
            opened = self._workspace.model
            check_configs(opened, configs)
            most, mib = self._settings.max_tokens, engine.recordings_mib
            recordings = Recordings(mib, new_tokens=most, sightings=2) if mib else None
            served = TransformersEngine(opened, configs, most, metrics, name, recordings)
        key = os.environ.get(KEY) or None
        self._endpoint = Endpoint(name, list(configs), served, self._settings, metrics, key)
        self._say(configs, key)

    def run(self) -> None:
        """Until interrupted."""
        logging.getLogger("flowprune.serve").setLevel(logging.INFO)
        config = uvicorn.Config(
            self._endpoint.app(),
            host=self._settings.host,
            port=self._settings.port,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACE,
        )
        try:
            uvicorn.Server(config).run()
        except KeyboardInterrupt:  # raised again once answers have ended
            pass
        except SystemExit as error:  # what uvicorn ends with, having said why
            raise FlowpruneError(
                f"{self._settings.host}:{self._settings.port} cannot be listened on: set serve.host or serve.port."
            ) from error
        console.print("stopped")

    def close(self) -> None:
        """End the engine's process, if it has one."""
        if self._process is not None:
            self._process.close()

    def _vllm(self, engine: VllmSettings, model: str, arguments: list[str]) -> str:
        """The address of a vLLM that answers."""
        if engine.url is not None:
            return engine.url.rstrip("/").removesuffix("/v1")
        assert engine.python is not None
        name, log_file = self._workspace.settings.model.name, self._workspace.vllm_log
        self._process = VllmProcess(engine.python, model, name, [*arguments, *engine.arguments], log_file)
        with console.status(f"vLLM starts; it writes {log_file}"):
            self._process.wait(engine.start_seconds)
        return self._process.url

    def _say(self, configs: dict[str, PruningConfig], key: str | None) -> None:
        table = Table(title=f"{self._workspace.settings.model.name}, engine={self._workspace.settings.engine.name}")
        for column in ("pruning", "method", "budget", "steps"):
            table.add_column(column)
        for name, config in configs.items():
            budget = config.budget
            spent = "" if budget is None else f"{budget.measure} {budget.met:.4g}"
            steps = ", ".join(f"{step.keep_ratio:.3g} at layer {step.layer}" for step in config.schedule)
            table.add_row(name, config.method.name, spent, steps)
        table.add_row(UNPRUNED, "", "", "")
        console.print(table)
        host, port = self._settings.host, self._settings.port
        asks = "asks for the key in" if key else "asks for no key; set"
        console.print(f"http://{host}:{port}/v1 ({asks} {KEY}); Ctrl-C stops it")


def named_configs(workspace: Workspace) -> dict[str, PruningConfig]:
    """The configs that requests can name; this study's, where none is given.

    Raises:
        FlowpruneError: one cannot be read, or the default is none of them.
    """
    settings = workspace.settings.serve
    if UNPRUNED in settings.configs:
        raise FlowpruneError(f"serve.configs has a {UNPRUNED!r}, which means an unpruned answer: choose another name.")
    configs = {name: PruningConfig.from_pretrained(path) for name, path in settings.configs.items()}
    configs = configs or {workspace.settings.budget.name: workspace.config()}
    if settings.default not in (None, UNPRUNED, *configs):
        raise FlowpruneError(f"serve.default is {settings.default!r}: choose one of {', '.join(configs)}, {UNPRUNED}.")
    return configs


def vllm_model(workspace: Workspace, engine: VllmSettings) -> str:
    """What a vLLM of our own loads: what it is told, or what the export stage left for it, or the model as it is.

    Raises:
        FlowpruneError: vLLM does not read its weights.
    """
    path = workspace.settings.model.path
    if engine.model is not None or engine.url is not None:
        return engine.model or path
    if workspace.for_vllm.exists():
        return str(json.loads(workspace.for_vllm.read_text(encoding="utf-8"))["arguments"]["model"])
    folder = Path(located(path))
    if folder.is_dir() and not is_readable(folder):
        raise FlowpruneError(
            f"vLLM knows the weights of {path} by other names: run stages=[export] serving=vllm target=vllm first, "
            "which writes them."
        )
    return str(folder) if folder.is_dir() else path


def check_configs(opened: OpenedModel, configs: dict[str, PruningConfig]) -> None:
    """Refuse configs of another model.

    Raises:
        FlowpruneError: one does not fit.
    """
    for config in configs.values():
        with prune(opened.model, config):
            pass


def engine_arguments(opened: OpenedModel, configs: dict[str, PruningConfig]) -> list[str]:
    """What vLLM must be told to serve these configs.

    Raises:
        FlowpruneError: it cannot serve one.
    """
    for config in configs.values():
        check_servable(config, len(opened.modules.text_layers))
    return vllm_arguments(opened.model.config)
