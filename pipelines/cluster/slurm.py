"""Workers as one array job of Slurm, submitted with submitit; a preempted or timed-out one is queued again.

What submitit pickles is a plain command line in classes of its own. Progress is the study's, so that its job states,
which need Slurm's accounting, are not asked for.
"""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from multimodal import FlowpruneError
from pipelines.cluster.worker_log import reason
from pipelines.settings import Settings, SlurmCluster

REQUEUES = 1000  # of a worker that ran out of time


def check(settings: Settings) -> None:
    """Ask Slurm for the partition, before anything expensive.

    Raises:
        FlowpruneError: no Slurm answers, it has no such partition, or none that lets a worker run so long.
    """
    assert isinstance(settings.cluster, SlurmCluster)
    try:
        import submitit  # noqa: F401 (found out before the work, needed after it)

        listed = [line.split() for line in _ask("sinfo", "-h", "-o", "%P %l").splitlines()]
    except ImportError as error:
        raise FlowpruneError("cluster=slurm needs submitit: pip install 'flowprune[slurm]'.") from error
    except FileNotFoundError as error:
        raise FlowpruneError("This host has no sinfo and sbatch: submit from a Slurm login node.") from error
    except subprocess.CalledProcessError as error:
        raise FlowpruneError(f"Slurm does not answer ({_last_line(error.stderr)}): see sinfo.") from error
    limits = {name.rstrip("*"): limit_hours(limit) for name, limit in listed}
    default = [name.rstrip("*") for name, _ in listed if name.endswith("*")]
    wanted = default if settings.cluster.partition is None else settings.cluster.partition.split(",")
    for name in wanted:
        if name not in limits:
            raise FlowpruneError(
                f"Slurm has no partition {name!r}: set cluster.partition to one of {', '.join(sorted(limits))}."
            )
    most = max((limits[name] for name in wanted), default=math.inf)
    if _minutes(settings.cluster) / 60 > most:  # Slurm would take the workers and never start them
        raise FlowpruneError(
            f"cluster.hours is {settings.cluster.hours:g}, but Slurm's partition {','.join(wanted)} lets a job run "
            f"{most:g} h: set cluster.hours={most:g}, after which a worker is queued again."
        )


def launch(settings: Settings, folder: Path, numbers: Sequence[int]) -> list[str]:
    """Submit workers.

    Args:
        settings: of the run.
        folder: holds settings.json, and takes the logs; all nodes see it.
        numbers: of the workers, one each.

    Returns:
        Their job ids.

    Raises:
        FlowpruneError: Slurm refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import CommandFunction, FailedJobError
    from submitit.helpers import FunctionSequence

    cluster = settings.cluster
    assert isinstance(cluster, SlurmCluster)
    executor = SlurmExecutor(folder.absolute() / "slurm", max_num_timeout=REQUEUES)
    wanted = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos, "mem": cluster.memory}
    executor.update_parameters(
        job_name=f"flowprune-{settings.study}",
        time=_minutes(cluster),
        cpus_per_task=cluster.cpus,
        gpus_per_node=cluster.gpus or None,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True} | cluster.options,
        **{name: value for name, value in wanted.items() if value is not None},
    )
    worker = [sys.executable, "-u", "-m", "pipelines.worker", str(folder.absolute() / "settings.json")]
    try:
        with executor.batch():
            jobs = []
            for number in numbers:
                command = FunctionSequence()  # which submitit queues again when its time is up
                command.add(CommandFunction([*worker, str(number)]))
                jobs.append(executor.submit(command))
        return [job.job_id for job in jobs]
    except FailedJobError as error:
        raise FlowpruneError(
            f"Slurm refused the workers ({_last_line(str(error))}): change the cluster.* settings, see sinfo."
        ) from error


def alive(ids: Sequence[str]) -> dict[str, str]:
    """Those of the jobs that run or wait to run, and how they stand."""
    arrays = {job.partition("_")[0] for job in ids}
    try:
        listed = _ask("squeue", "-h", "-r", "-o", "%i %T %r", "-j", ",".join(sorted(arrays))).splitlines()
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in error.stderr:  # all are long gone
            return {}
        return dict.fromkeys(ids, "of whom Slurm says nothing")  # its controller is down, which stops no worker
    states = {}
    for line in listed:
        job, state, cause = line.split(" ", 2)
        waiting = "waiting" if cause == "None" else f"waiting ({cause})"
        states[job] = "running" if state == "RUNNING" else waiting
    return {job: states[job] for job in ids if job in states}


def why(folder: Path, number: int, job: str) -> str | None:
    """Why a job that is gone failed; None if it did not."""
    log = folder / "slurm" / f"{job}_0_log.out"
    if not log.exists():
        return None  # cancelled before it began
    return reason(log.read_text(errors="replace").splitlines())


def limit_hours(limit: str) -> float:
    """A time limit as Slurm writes it: ``infinite``, or days-hours:minutes:seconds without what is 0 on the left."""
    days, _, clock = limit.rpartition("-")
    if not clock.replace(":", "").isdigit():
        return math.inf
    seconds = sum(int(part) * 60**power for power, part in enumerate(reversed(clock.split(":"))))
    return (int(days or 0) * 86_400 + seconds) / 3600


def cancel(ids: Sequence[str]) -> None:
    """Ask the jobs to stop, which puts their trials back."""
    subprocess.run(["scancel", *ids], check=False, capture_output=True)


def _minutes(cluster: SlurmCluster) -> int:
    return max(1, round(cluster.hours * 60))


def _ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].rpartition("error: ")[2] if lines else "no reason given"
