import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import alembic.util
import engines
import pytest
import torch
from hypothesis import settings
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

ROOT = Path(__file__).parents[1]

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


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once() -> Iterator[None]:
    """Optuna's and MLflow's, which are read and compiled again with every database that is opened."""
    read, kept = alembic.util.load_python_file, cache(alembic.util.load_python_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "alembic.util.load_python_file",
            lambda folder, name: (kept if Path(folder).name == "versions" else read)(folder, name),
        )
        yield


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[engines.Postgres]:
    if not engines.POSTGRES:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    pytest.importorskip("psycopg2")
    with engines.postgres() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", engines.PASSWORD)
        yield server


@pytest.fixture(scope="session")
def proxy(postgres) -> Iterator[dict]:
    """Optuna's gRPC proxy over the database, from the command line."""
    pytest.importorskip("grpc")
    port = engines.free_port()
    options = [f"storage.{name}={value}" for name, value in postgres.settings.items()]
    command = [sys.executable, "-m", "pipelines", "stages=[proxy]", "storage=postgres", *options, f"proxy.port={port}"]
    server = subprocess.Popen(command, cwd=postgres.folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        engines.wait_until(lambda: engines.answers(port), engines.SECONDS, "the proxy's answer")
        yield {"host": "127.0.0.1", "port": port}
    finally:
        server.terminate()
        server.wait(engines.SECONDS)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    missing = [program for program in engines.SLURM if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge")
    with engines.slurm() as environment:
        yield environment


@pytest.fixture(scope="session")
def ray() -> Iterator[dict[str, str]]:
    if not engines.RAY.exists():
        pytest.skip("no Ray here: pip install 'ray[default]'")
    with engines.ray() as environment:
        yield environment
