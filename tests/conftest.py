import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

torch.set_num_threads(1)
torch.set_grad_enabled(False)
settings.register_profile("flowprune", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("flowprune")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support", type=Path, metavar="FILE", help="write the table of what the suites ran into FILE")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--support")) is not None:
        from support import Table

        config.pluginmanager.register(Table(path))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow database, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory, empty_store) -> Iterator[MlflowServer]:
    """A real server, started once."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = MlflowServer(folder)
    yield server
    server.kill()
