"""Every command in docs/cluster.md, in its order, on a real Slurm, PostgreSQL and MLflow server."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import engines
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=smoke", "search.sampler=random", "search.trials=4", "search.batch_size=3", "budget.retention=0.2"]
ONE_WORKER = ["cluster.workers=1"]  # each start takes long; test_cluster.py has several


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.usefixtures("unrendered")
def test_every_command_runs(flowprune, slurm, postgres, proxy, mlflow_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGPASSWORD")  # the page says ~/.pgpass
    for name, value in {**slurm, "HOME": str(tmp_path), "PASSWORD": engines.PASSWORD, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    ports = {"5432": str(postgres.port), "13000": str(proxy["port"]), "127.0.0.1:5000": mlflow_server.host}
    text = (ROOT / "docs" / "cluster.md").read_text()
    for written, real in ports.items():
        text = text.replace(written, real)
    done = [run(command, flowprune, monkeypatch) for command in commands(text)]
    assert {"pip", "export", "echo", "chmod", "sudo", "createdb", "mlflow", "ray", "flowprune"} == set(done)


def test_the_slurm_of_the_page_is_the_one_that_tests_run():
    text = (ROOT / "docs" / "cluster.md").read_text()
    [shown] = re.findall(r"```ini\n# /etc/slurm/slurm.conf\n(.*?)```", text, re.DOTALL)
    tested = dict(line.split("=", 1) for line in engines.SLURM_CONF.strip().splitlines())
    places = {"StateSaveLocation", "SlurmdSpoolDir", "SlurmdPidFile", "SlurmdLogFile", "SlurmctldHost"}
    for name, value in (line.split("=", 1) for line in shown.strip().splitlines()):
        assert name in tested
        assert name in places or "=" in value or value == tested[name]


def run(command: str, flowprune, monkeypatch: pytest.MonkeyPatch) -> str:
    program, *arguments = shlex.split(command)
    if program == "export":
        for assignment in arguments:
            monkeypatch.setenv(*assignment.split("=", 1))
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(.*)\]", arguments[1])[0].split(",")) <= set(extras)
    elif program == "sudo":  # the fixture's database has this role
        assert arguments == ["-u", "postgres", "createuser", "--createdb", "--pwprompt", "flowprune"]
    elif program == "mlflow":  # the fixture runs it, with these options
        assert {"server", "--backend-store-uri", "--artifacts-destination", "--host", "--port"} <= set(arguments)
    elif program == "ray" or "cluster=ray" in arguments:
        pass  # test_ray.py runs the search, its fixture the rest
    elif program == "flowprune" and arguments[-1] == "&":  # so does the fixture
        assert arguments[:2] == ["stages=[proxy]", "storage=postgres"]
    elif program == "flowprune":
        more = ONE_WORKER if {"cluster=slurm", "cluster=local"} & set(arguments) else []
        more = [*more, "cluster.cpus=1", "cluster.hours=0.5"] if "cluster=slurm" in arguments else more
        if "storage=grpc" in arguments:  # the fixture's proxy has a database of its own
            more = [*more, "search.trials=6", "study=proxied"]
        named = {argument.split("=")[0] for argument in SMALL}
        kept = [argument for argument in arguments if argument.split("=")[0] not in named]
        bare = ["tracking.uri", "tracking.artifacts"] if "tracking=server" in arguments else []
        code, printed = flowprune(*SMALL, *kept, *more, without=[*bare, "output", "cache", "storage.path"])
        assert code == 0, printed
    else:
        subprocess.run(["bash", "-c", command], check=True)
    return program
