"""A real MLflow server on the loopback interface, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

SECONDS = 120  # in which it must answer


class MlflowServer:
    """A server on a free port.

    Args:
        folder: of its ``mlflow.db`` and its artifacts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        self.uri = f"http://{self.host}"
        self.start()
        self.wait()

    def start(self) -> None:
        """Start it; the client waits with :meth:`wait`."""
        program = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        program += ["--port", self.host.rpartition(":")[2], "--artifacts-destination", str(self.folder / "artifacts")]
        program += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(program, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=SECONDS).close()
                return
            except OSError:
                log = (self.folder / "server.log").read_text()
                assert self._process.poll() is None and time.monotonic() < deadline, log
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, with its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
