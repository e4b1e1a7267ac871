import multiprocessing
import shutil
import time
from pathlib import Path

import optuna
import pytest
from stand_ins import wait_to_be_killed


@pytest.fixture(autouse=True, scope="session")
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def folder(tmp_path, empty_store) -> Path:
    """A folder with an MLflow database that holds none of its study's runs."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def killed_once(tmp_path_factory, empty_store) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(empty_store, folder / "mlflow.db")
    worker = multiprocessing.get_context("fork").Process(target=wait_to_be_killed, args=(folder,))
    worker.start()
    deadline = time.monotonic() + 120
    while not (folder / "waiting").exists():
        assert worker.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    worker.kill()
    worker.join()
    return folder


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """What a worker left that was killed in its third trial."""
    shutil.copytree(killed_once, tmp_path / "killed")
    return tmp_path / "killed"
