"""A vLLM of our own: started beside the endpoint, started again when it dies, ended with it."""

import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import httpx2

from multimodal import FlowpruneError

log = logging.getLogger("flowprune.serve")
MODULE = "vllm.entrypoints.openai.api_server"  # what `vllm serve` runs; builds for CPUs lack that command
DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB, of a vLLM for CPUs, which else wants nine tenths of all memory
}
ROOT_CAUSE = re.compile(r" ERROR .*?\b(\w+(?:Error|Exception): .+)")
PAUSE = 5.0  # seconds before it is started again


class VllmProcess:
    """Runs until it is closed.

    Args:
        python: that has vLLM and flowprune.
        model: folder or hub id.
        name: of the model, to clients.
        arguments: of ``vllm serve``.
        log_file: of what it prints.
    """

    def __init__(self, python: str, model: str, name: str, arguments: Sequence[str], log_file: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [python, "-m", MODULE, "--model", model, "--served-model-name", name]
        self._command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
        self._log_file = log_file
        self._closed = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, name="flowprune-vllm", daemon=True)

    def wait(self, seconds: float) -> None:
        """Until it answers; from then on it is started again whenever it dies.

        Raises:
            FlowpruneError: it ends, or does not answer in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise FlowpruneError(
                    f"vLLM ended with code {self._process.returncode}{self._why}: see {self._log_file}."
                )
            try:
                if httpx2.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    self._thread.start()
                    return
            except httpx2.HTTPError:
                time.sleep(0.5)
        raise FlowpruneError(f"vLLM did not answer within {seconds:g} seconds: {self._log_file} says how far it came.")

    def close(self) -> None:
        """End it, with its children."""
        self._closed.set()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _why(self) -> str:
        """The first error of its log, in parentheses; the last ones only say that there was one."""
        found = ROOT_CAUSE.search(self._log_file.read_text(encoding="utf-8", errors="replace"))
        return f" ({shorten(found[1], 200, placeholder='…').rstrip('.')})" if found else ""

    def _start(self) -> subprocess.Popen[bytes]:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("wb") as log_file:
            return subprocess.Popen(self._command, stdout=log_file, stderr=log_file, env=DEFAULTS | dict(os.environ))

    def _keep(self) -> None:
        while not self._closed.wait(1.0):
            if self._process.poll() is None:
                continue
            log.error("vLLM ended with code %s and is started again", self._process.returncode)
            if self._closed.wait(PAUSE):
                return
            self._process = self._start()
