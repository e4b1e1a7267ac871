"""Real servers for tests, on loopback and free ports, in one folder each: PostgreSQL, a Slurm and a Ray of two nodes.

Each is a context manager that stops what it started. Debian's packages have the first two; ``.ci/run`` installs those.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
RAY = Path(sys.executable).with_name("ray")
PASSWORD = "s3cret-of-tests"
SECONDS = 180  # in which a server must answer, on a loaded machine with one core


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for what is meant; how long is a bound for a loaded machine with one core, not what it takes."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.05)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


class Postgres:
    """A server that asks for a password; ``settings`` are what conf/storage/postgres.yaml needs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.settings = {"host": "127.0.0.1", "port": self.port, "database": "flowprune", "user": "flowprune"}
        self._server: subprocess.Popen | None = None
        self._user: dict[str, Any] = {}
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")
        login = ["-U", "flowprune", "-A", "scram-sha-256", f"--pwfile={password}"]
        command = [POSTGRES[-1] / "initdb", "-D", folder / "data", "-N", *login]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._user)

    def start(self) -> None:
        options = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "max_connections=300",
            "-c",
            "fsync=off",
        ]
        command = [POSTGRES[-1] / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]

        def up() -> bool:  # a killed server's children live a moment longer, and keep the next one from starting
            if self._server is None or self._server.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._user)
            return answers(self.port)

        wait_until(up, SECONDS, "PostgreSQL's answer")

    def create_database(self) -> None:
        """Wait for it to let us in, and make the database."""
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        command = [POSTGRES[-1] / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "flowprune", "flowprune"]
        wait_until(
            lambda: subprocess.run(command, env=environment, capture_output=True).returncode == 0, SECONDS, "createdb"
        )

    def kill(self) -> None:
        """SIGKILL to the whole server, as a host that loses power."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(SECONDS)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="flowprune-postgres-"))
    server = Postgres(folder)
    server.start()
    try:
        server.create_database()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


SLURM_CONF = """
ClusterName=flowprune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
JobRequeue=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=2
"""


@contextlib.contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Two nodes on this host; yields the environment that its commands need."""
    folder = Path(tempfile.mkdtemp(prefix="flowprune-slurm-"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    ports = {name: free_port() for name in ("ctld", "n1", "n2")}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=socket.gethostname(), **ports))
    (folder / "cgroup.conf").write_text("")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(*command: str) -> None:
            with (folder / "daemons.log").open("ab") as log:
                daemon = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
            stack.callback(_stop, daemon)

        start(*munge)
        wait_until((folder / "munge.socket").exists, SECONDS, "munge's socket")
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        idle = ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"]

        def ready() -> bool:
            asked = subprocess.run(idle, env=os.environ | environment, capture_output=True, text=True)
            return asked.stdout.strip() == "2"

        wait_until(ready, SECONDS, "two idle Slurm nodes")
        yield environment
        subprocess.run(["scancel", "--me"], env=os.environ | environment, timeout=SECONDS)


@contextlib.contextmanager
def ray() -> Iterator[dict[str, str]]:
    """Two nodes on this host, each with two CPUs and one GPU, real or not; yields the environment of its clients.

    Some of its parts listen on all interfaces: a token keeps others out. 127.0.0.1 it would take for an outer one.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of its sockets must stay short
    port, dashboard, token = free_port(), free_port(), secrets.token_hex(16)
    address, environment = f"http://127.0.0.1:{dashboard}", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    kept = {name: value for name, value in os.environ.items() if name != "PGPASSWORD"}  # of which its workers hear
    node = ["--block", "--disable-usage-stats", "--include-log-monitor=false", "--num-cpus=2", "--num-gpus=1"]
    node += ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"]
    head = ["--head", "--node-ip-address=127.0.0.2", f"--port={port}", f"--temp-dir={folder}"]
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(*options: str) -> None:
            command = [RAY, "start", *node, *options, f"--dashboard-agent-listen-port={free_port()}"]
            with (folder / "daemons.log").open("ab") as log:
                daemon = subprocess.Popen(
                    command, stdout=log, stderr=log, env=kept | environment, start_new_session=True
                )
            stack.callback(_stop_group, daemon)

        def ready() -> bool:
            with contextlib.suppress(requests.RequestException):
                header = {"Authorization": f"Bearer {token}"}
                return requests.get(f"{address}/api/v0/nodes", headers=header, timeout=SECONDS).text.count("ALIVE") == 2
            return False

        start(*head)
        wait_until(lambda: answers(port, "127.0.0.2"), SECONDS, "the answer of Ray's head")
        start(f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3")
        wait_until(ready, SECONDS, "two nodes of Ray")
        yield environment | {"RAY_API_SERVER_ADDRESS": address}


def _stop_group(daemon: subprocess.Popen) -> None:
    _stop(daemon)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
