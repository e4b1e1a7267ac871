"""The main job against a real server whose address carries a password, and a config fetched from it elsewhere."""

import http.server
import threading
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from multimodal import PruningConfig

SECRET = "pa55-w0rd"
pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("server_job")


@pytest.fixture
def with_server(shared, flowprune, mlflow_server):
    def run(*overrides: str) -> tuple[int, str]:
        uri = f"http://someone:{SECRET}@{mlflow_server.host}"
        named = {override.split("=")[0] for override in overrides}
        base = ["experiment=smoke", "search.batch_size=3", "budget.retention=0.2", "tracking=server"]
        base += [f"tracking.uri={uri}", "tracking.artifacts=null", "tracking.experiment=small", "model.name=served"]
        base += [f"output={shared}/run", f"cache={shared}/cache", f"storage.path={shared}/studies.db"]
        return flowprune(*(each for each in base if each.split("=")[0] not in named), *overrides)

    return run


def test_nothing_kept_or_printed_contains_a_password(with_server, shared, mlflow_server):
    code, printed = with_server()
    assert code == 0, printed
    assert "registered: flowprune-served-retention-0.2/1 (champion)" in " ".join(printed.split())
    assert SECRET not in printed
    places = [shared / "studies.db", *mlflow_server.folder.rglob("*"), *(shared / "run").glob("*")]
    files = [path for path in places if path.is_file() and path.name != "server.log"]
    assert {"mlflow.db", "settings.json", "pruning.json", "studies.db"} <= {path.name for path in files}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert "someone" not in (shared / "run" / "settings.json").read_text()


def test_a_config_is_fetched_on_another_machine(with_server, shared, mlflow_server, tmp_path):
    own = PruningConfig.from_pretrained(shared / "run")
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("small").experiment_id
    [parent] = client.search_runs([experiment], "tags.kind = 'study'")
    elsewhere = (f"output={tmp_path}/other", f"storage.path={tmp_path}/none.db", "model.path=/not/here")
    for origin in (f"run_id={parent.info.run_id}", "registered=flowprune-served-retention-0.2"):
        code, printed = with_server("stages=[export]", origin, *elsewhere)
        assert code == 0, printed
        assert PruningConfig.from_pretrained(tmp_path / "other") == own
    child = client.search_runs([experiment], "tags.kind = 'trial' and tags.trial = '1'")[0]
    code, printed = with_server("stages=[export]", f"run_id={child.info.run_id}", *elsewhere)
    assert code == 0 and PruningConfig.from_pretrained(tmp_path / "other").provenance.trial == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["registered=nope"], r"registered=nope is not in the registry, which has flowprune-served-retention-0.2"),
        (["run_id=nope"], r"knows no flowprune run 'nope': copy its id"),
        (["run_id=x", "registered=y"], r"run_id and registered are both given: give one of them"),
        (["run_id=" + "0" * 32, "tracking.uri=http://127.0.0.1:9"], r"No MLflow tracking store answers at http"),
    ],
)
def test_bad_input_is_one_sentence(overrides, message, with_server):
    code, printed = with_server("stages=[export]", *overrides)
    assert code == 2 and message in " ".join(printed.split()) and SECRET not in printed, printed


def test_a_refused_password_is_one_sentence(with_server):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://someone:{SECRET}@127.0.0.1:{server.server_port}"
        code, printed = with_server("stages=[search]", f"tracking.uri={uri}")
    finally:
        server.shutdown()
    assert code == 2 and "refused the credentials: set MLFLOW_TRACKING_USERNAME and" in " ".join(printed.split())
    assert SECRET not in printed and "Traceback" not in printed
