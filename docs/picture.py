"""Take the README's picture of the table of studies: small searches of the shipped model, in a real browser.

python docs/picture.py docs/studies.png [BROWSER]
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

STUDIES = (("vflowopt", 0.25), ("divprune", 0.25), ("divprune", 0.1))
WIDTH, ASSISTANT = 1460, 505  # pixels: the table, and the panel beside it, which is cut off
SMALL = ("experiment=smoke", "search.sampler=random", "stages=[calibrate,search,validate,export]", "data.heldout=8")


def main(picture: Path, browser: str) -> None:
    """Search, serve and photograph."""
    here = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for method, budget in STUDIES:
            own = (f"method={method}", f"budget.retention={budget}", f"study={method}-{budget:g}")
            command = [sys.executable, "-m", "pipelines", *SMALL, *own]
            subprocess.run(command, cwd=folder, check=True, env=_environment(here))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        server = subprocess.Popen([*serve, "--backend-store-uri", "sqlite:///mlruns/mlflow.db"], cwd=folder)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            page = (
                f"http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=studies&workflowType=machine_learning"
            )
            shot = [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--window-size={WIDTH + ASSISTANT},520",
            ]
            shot += ["--virtual-time-budget=30000", f"--user-data-dir={folder}/browser"]
            subprocess.run([*shot, f"--screenshot={picture.absolute()}", page], check=True, timeout=180)
            Image.open(picture).crop((0, 0, WIDTH, 420)).save(picture)
        finally:
            server.terminate()
            server.wait()


def _environment(here: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": here}


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "chromium")
