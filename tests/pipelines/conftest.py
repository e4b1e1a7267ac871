import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from pipelines.__main__ import main
from pipelines.train_tiny.model import build_model, build_processor

ROOT = Path(__file__).parents[2]
SMALLER = {
    "attention": "sdpa",
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "patch_size": 28,
    },
    "text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5},
}


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    """A folder with a random model like the shipped one, but smaller: 64 visual tokens, five layers."""
    options = OmegaConf.merge(OmegaConf.load(ROOT / "conf/train_tiny.yaml").model, SMALLER)
    folder = tmp_path_factory.mktemp("model")
    build_model(options, seed=0).save_pretrained(folder)
    build_processor(options).save_pretrained(folder)
    return folder


@pytest.fixture
def flowprune(tmp_path, model_path, empty_store, monkeypatch, capsys):
    """The command line, in this process: called with overrides, it returns the exit code and what was printed."""

    def run(*overrides: str, without: Sequence[str] = ()) -> tuple[int, str]:
        base = [
            "model=path",
            f"model.path={model_path}",
            "model.name=small",
            f"output={tmp_path}/run",
            f"cache={tmp_path}/cache",
            f"storage.path={tmp_path}/studies.db",
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
            f"tracking.artifacts={tmp_path}/artifacts",
        ]
        named = {override.split("=")[0] for override in overrides} | set(without)
        named |= {"storage.path"} if {"storage=postgres", "storage=grpc"} & set(overrides) else set()
        arguments = [argument for argument in base if argument.split("=")[0] not in named]
        [store] = [given.split("=")[1] for given in [*base, *overrides] if given.startswith("tracking.uri=")][-1:]
        database = Path(store.removeprefix("sqlite:///"))
        if store.startswith("sqlite:///") and database.parent.exists() and not database.exists():
            shutil.copy(empty_store, database)
        monkeypatch.setattr(sys, "argv", ["flowprune", *arguments, *overrides])
        monkeypatch.setattr(Hydra, "get_mode", lambda *_, **named: RunMode.RUN)  # else it composes all twice
        capsys.readouterr()
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            with torch.enable_grad():  # as in a fresh process; Optuna's GP needs it
                main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, on_terminate)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def in_postgres(postgres) -> list[str]:
    return ["storage=postgres", *(f"storage.{name}={value}" for name, value in postgres.settings.items())]


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Pictures are drawn and not rendered, which takes nearly all of their time; test_main_job.py has rendered ones."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())


@pytest.fixture
def workers_find_us(monkeypatch) -> None:
    """As they do where flowprune is installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
