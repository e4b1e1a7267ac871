import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

ROOT = Path(__file__).parents[2]


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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("stand_ins.py")), str(folder)]
    with (folder / "log").open("w") as log:
        worker = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not (folder / "waiting").exists():
        assert worker.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    return folder


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """What a worker left that was killed in its third trial."""
    shutil.copytree(killed_once, tmp_path / "killed")
    return tmp_path / "killed"
