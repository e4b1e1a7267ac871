"""Workers as jobs of a Ray cluster, a job each: Ray keeps them when whoever submitted them is gone.

All is asked of the dashboard, over HTTP; an id is its address and the job's name there.
"""

import contextlib
import os
import re
import secrets
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal import FlowpruneError
from pipelines.cluster.worker_log import reason
from pipelines.settings import RayCluster, Settings, flat_name
from search.credentials import masked

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ANSWER_SECONDS = 10  # that the dashboard has for each answer
NODES = 10_000  # that are looked at: Ray lists no more
STOP_SECONDS = 30  # that a worker has to put its trial back; Ray's own default is 3
SECRET = re.compile("PASSWORD|PASSWD|TOKEN|SECRET|KEY$|CREDENTIAL")
OF_RAY = re.compile("^Running entrypoint for job|Runtime env is setting up.$")  # in each log
OVERRULING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's client prefers them to the address that it is given


def check(settings: Settings) -> None:
    """Ask Ray for nodes that can take a worker, before anything expensive.

    Raises:
        FlowpruneError: no Ray answers, none of its nodes is large enough, or a secret would be shown.
    """
    cluster = settings.cluster
    assert isinstance(cluster, RayCluster)
    _check_words(cluster)
    try:
        from ray.exceptions import AuthenticationError
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException
    except ImportError as error:
        raise FlowpruneError("cluster=ray needs Ray: pip install 'flowprune[ray]'.") from error
    try:
        nodes = list_nodes(
            cluster.address, limit=NODES, timeout=ANSWER_SECONDS, detail=True, raise_on_missing_output=False
        )
    except RayStateApiException as error:
        raise FlowpruneError(
            f"No Ray answers at {cluster.address}: set cluster.address to its dashboard's, or start one with ray start "
            "--head."
        ) from error
    except AuthenticationError as error:
        raise FlowpruneError(
            f"The Ray at {cluster.address} wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    wanted = {"CPU": cluster.cpus, "GPU": cluster.gpus} | cluster.resources
    offered = [node.resources_total for node in nodes if node.state == "ALIVE"]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in offered):
        most = ", ".join(f"{max((node.get(name, 0) for node in offered), default=0):g} {name}" for name in wanted)
        raise FlowpruneError(
            f"No node of the Ray at {cluster.address} has all that a worker asks for, and the most on any is {most}: "
            "lower cluster.cpus, cluster.gpus or cluster.resources, or add such a node."
        )


def launch(settings: Settings, folder: Path, numbers: Sequence[int]) -> list[str]:
    """Submit workers.

    Args:
        settings: of the run.
        folder: holds settings.json; all nodes see it.
        numbers: of the workers, one each.

    Returns:
        Their ids.

    Raises:
        FlowpruneError: Ray refuses.
    """
    cluster = settings.cluster
    assert isinstance(cluster, RayCluster)
    handed_on = {name: os.environ[name] for name in cluster.environment if name in os.environ}
    worker = [sys.executable, "-m", "pipelines.worker", str(folder.absolute() / "settings.json")]
    ids: list[str] = []
    for number in numbers:
        job = f"flowprune-{flat_name(settings.study)}-{number}-{secrets.token_hex(4)}"
        ids.append(f"{cluster.address}/{job}")
        own = {"FLOWPRUNE_JOB": job, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        try:
            _dashboard(cluster.address).submit_job(
                submission_id=job,
                entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join([*worker, str(number)])}",
                runtime_env={"env_vars": handed_on | own},
                entrypoint_num_cpus=cluster.cpus,
                entrypoint_num_gpus=cluster.gpus,
                entrypoint_resources=cluster.resources,
            )
        except _no_answer() as error:
            cancel(ids)
            raise FlowpruneError(f"Ray refused the workers ({str(error).splitlines()[0]}): see ray status.") from error
    return ids


def alive(ids: Sequence[str]) -> dict[str, str]:
    """Those of the jobs that run or wait to run, and how they stand."""
    states: dict[str, str] = {}
    for address in {address for address, _ in map(_parts, ids)}:
        here = [id for id in ids if _parts(id)[0] == address]
        try:
            jobs = _jobs(address)
        except _no_answer():
            states |= dict.fromkeys(here, "of whom Ray says nothing")  # its head is busy or away, they may be at work
            continue
        for id in here:
            job = jobs.get(_parts(id)[1])
            if job is not None and not job.status.is_terminal():
                states[id] = "running" if job.status == "RUNNING" else "waiting (for free resources)"
    return {id: states[id] for id in ids if id in states}


def why(folder: Path, number: int, id: str) -> str | None:
    """Why a job that is gone failed; None if it did not, or Ray does not say."""
    try:
        return _why(id)
    except _no_answer():
        return None


def cancel(ids: Sequence[str]) -> None:
    """Ask the jobs to stop, which puts their trials back; one that waits is stopped when its turn comes."""
    for address, job in map(_parts, ids):
        with contextlib.suppress(*_no_answer()):
            _dashboard(address).stop_job(job)


@cache  # what is gone stays gone
def _why(id: str) -> str | None:
    address, name = _parts(id)
    job = _jobs(address).get(name)
    if job is None:
        return "Ray does not know it any more, as after a restart of its head"
    if job.status != "FAILED":
        return None
    lines = [line for line in (job.message or "nothing").splitlines() if not OF_RAY.search(line)]
    return f"Ray says: {lines[0]}" if job.driver_exit_code is None else reason(lines)  # the end of its log is in there


def _jobs(address: str) -> dict[str | None, "JobDetails"]:
    return {job.submission_id: job for job in _dashboard(address).list_jobs()}


@cache
def _dashboard(address: str) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """One that does not wait for ever."""

        def _do_request(self, *request: Any, **options: Any) -> Any:
            return super()._do_request(*request, timeout=ANSWER_SECONDS, **options)

    return Client(address)


def _no_answer() -> tuple[type[Exception], ...]:
    from ray.exceptions import RayError

    return OSError, RuntimeError, RayError  # not reached or in time; an error of its own; no token


def _parts(id: str) -> tuple[str, str]:
    address, _, job = id.rpartition("/")
    return address, job


def _check_words(cluster: RayCluster) -> None:
    if not re.fullmatch(r"https?://[^\s@]+", cluster.address):
        raise FlowpruneError(
            f"cluster.address is {masked(cluster.address)}: give that of Ray's dashboard, as in http://head:8265."
        )
    overruling = next((name for name in OVERRULING if os.environ.get(name)), None)
    if overruling is not None and os.environ[overruling] != cluster.address:
        raise FlowpruneError(
            f"{overruling} names another Ray, and overrules cluster.address: unset it, or export "
            f"RAY_API_SERVER_ADDRESS={cluster.address}."
        )
    for name in cluster.environment:
        if SECRET.search(name.upper()):
            raise FlowpruneError(
                f"cluster.environment has {name}, and Ray's dashboard shows it: take it out, and keep the secret in a "
                "file on each node, such as ~/.pgpass."
            )
    if cluster.gpus > 1 and cluster.gpus % 1:
        raise FlowpruneError(f"cluster.gpus is {cluster.gpus:g}: give a share of one GPU, or a whole number of them.")
