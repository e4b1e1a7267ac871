"""What makes studies comparable in MLflow: a front's budgets, the live curve, views, ends, and what others measured."""

import json
import shlex
import shutil
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from stand_ins import SETTINGS, SPACE, StandIn, make_runs, make_study, make_tracker, work

from multimodal import FlowpruneError
from search.queue import fill
from search.storages import sqlite_storage
from search.study import best_trial, discrepancy, label_study, open_study, study_ids
from search.tracking import Samples, check_store, config_of_run, follow_moved, keep_files, log_found
from search.tuned import check_tuned, tuned_config
from search.worker import run_worker


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs_of(folder: Path, kind: str) -> list:
    client = client_of(folder)
    return list(
        client.search_runs([each.experiment_id for each in client.search_experiments()], f"tags.kind = '{kind}'")
    )


def make_front(folder: Path) -> optuna.Study:
    settings = SETTINGS | {"retention": [0.25, 0.5]}
    storage = sqlite_storage(folder / "studies.db")
    return open_study(storage, "front", settings, "random", early_stopping=False, objectives=2)


def test_a_front_has_a_run_a_budget_that_says_what_a_study_of_one_budget_says(folder):
    study, space = make_front(folder), replace(SPACE, budgets=[0.25, 0.5])
    tracker = make_tracker(folder, study)
    run_worker(study, space, StandIn(), 8, lambda t: tracker.start_trial(t.number), tracker.end_trial)
    tracker.close()
    assert tracker.lost is None
    [parent] = runs_of(folder, "study")
    budgets = {float(run.data.tags["budget"]): run for run in runs_of(folder, "budget")}
    assert set(budgets) == {0.25, 0.5}
    assert "discrepancy" not in parent.data.metrics and parent.data.metrics["trials_done"] == 8
    assert "row" not in parent.data.tags
    for budget, run in budgets.items():
        best = best_trial(study, budget)
        own = [t for t in study.get_trials() if t.user_attrs["config"]["budget"]["asked"] == budget]
        below = [r for r in runs_of(folder, "trial") if r.data.tags["mlflow.parentRunId"] == run.info.run_id]
        assert {int(each.data.tags["trial"]) for each in below} == {trial.number for trial in own}
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.info.status == "FINISHED"
        assert run.data.params["budget"] == str(budget) and run.data.metrics["trials_done"] == len(own)
        assert run.data.metrics["discrepancy"] == pytest.approx(discrepancy(best))
        assert run.data.tags["row"] == "study"
        assert config_of_run(f"sqlite:///{folder}/mlflow.db", run.info.run_id) == tuned_config(study, best)
        assert f"run_id={run.info.run_id}" in parent.data.tags["mlflow.note.content"]
    with pytest.raises(FlowpruneError, match="give the run id of a budget or trial"):
        config_of_run(f"sqlite:///{folder}/mlflow.db", parent.info.run_id)
    assert make_runs(folder, make_front(folder)).sync("FINISHED") == 0


def test_the_curve_is_the_least_so_far_and_views_sort_by_what_every_trial_has(folder):
    study = make_study(folder, early_stopping=False)
    label_study(study, model="tiny", data="scenes", trials=5)
    tracker = make_tracker(folder, study)
    work(study, 5, tracker=tracker)
    tracker.close()
    [parent] = runs_of(folder, "study")
    client = client_of(folder)
    history = client.get_metric_history(parent.info.run_id, "best_discrepancy")
    found = {point.step: point.value for point in history}
    done = sorted(study.get_trials(), key=lambda trial: trial.datetime_complete)
    assert len(history) == 5
    assert found == dict(enumerate(accumulate((trial.value for trial in done), min), 1))
    assert parent.data.tags["best_trial"] == str(best_trial(study).number)
    assert parent.data.params.items() >= {"model": "tiny", "data": "scenes", "trials": "5", "budget": "0.25"}.items()
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(parent.data.tags)
    tags = client.get_experiment(parent.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    trials = json.loads(tags[f"mlflow.sharedViewState.{parent.info.run_id}"])
    assert trials["orderByKey"] == "metrics.`discrepancy`" and trials["orderByAsc"]
    studies = json.loads(tags["mlflow.sharedViewState.studies"])
    assert len(client.search_runs([parent.info.experiment_id], studies["searchFilter"])) == 1
    assert {"params.`model`", "metrics.`heldout_accuracy`", "metrics.`speed_up`"} <= set(studies["selectedColumns"])


def test_the_command_in_a_description_is_whole(folder):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    work(study, 2, tracker=tracker)
    tracker.close()
    [parent] = runs_of(folder, "study")
    line = parent.data.tags["mlflow.note.content"].split("`")[1]
    given = dict(word.split("=", 1) for word in shlex.split(line)[1:])
    assert given["tracking.uri"] == f"sqlite:///{folder}/mlflow.db" and given["stages"] == "[export]"
    assert config_of_run(given["tracking.uri"], given["run_id"]).provenance.trial == best_trial(study).number


def test_cancelled_is_killed_and_never_touches_what_ended(folder):
    study = make_study(folder)
    work(study, 2)
    make_runs(folder, study).sync("RUNNING")
    make_runs(folder, study).sync("KILLED")
    assert runs_of(folder, "study")[0].info.status == "KILLED"
    make_runs(folder, study).sync(None)
    assert runs_of(folder, "study")[0].info.status == "KILLED"
    make_runs(folder, study).sync("FINISHED")
    make_runs(folder, study).sync("KILLED")
    assert runs_of(folder, "study")[0].info.status == "FINISHED"


class EndsMeanwhile:
    """A client of a worker that takes a trial for running which ends, with the study, before it has said so."""

    def __init__(self, client: MlflowClient, end) -> None:
        self.client, self.end = client, end

    def __getattr__(self, name: str):
        if name == "update_run" and self.end is not None:
            end, self.end = self.end, None
            end()
        return getattr(self.client, name)


def test_who_says_running_of_a_study_that_ended_meanwhile_mends_it(folder):
    study = make_study(folder)
    work(study, 1)
    make_runs(folder, study).sync("FINISHED")
    fill(study, 2)
    running = study.ask()
    runs = make_runs(folder, study)

    def end() -> None:
        study.tell(running.number, state=optuna.trial.TrialState.FAIL)
        make_runs(folder, make_study(folder)).sync("FINISHED")

    runs._client = EndsMeanwhile(runs._client, end)
    runs.sync("FINISHED")
    assert runs_of(folder, "study")[0].info.status == "FINISHED"


def test_what_stages_find_and_their_samples_are_logged_once(folder):
    study, uri = make_study(folder), f"sqlite:///{folder}/mlflow.db"
    make_tracker(folder, study).close()
    samples = Samples("scenes", "heldout", "0123456789abcdef", 12)
    for accuracy in (0.5, 0.5, 0.25):
        log_found(uri, study, None, {"heldout_accuracy": accuracy}, samples)
    [parent] = runs_of(folder, "study")
    assert parent.data.metrics["heldout_accuracy"] == 0.25
    assert len(client_of(folder).get_metric_history(parent.info.run_id, "heldout_accuracy")) == 2
    [dataset] = client_of(folder).get_run(parent.info.run_id).inputs.dataset_inputs
    assert dataset.dataset.digest == samples.digest and dataset.tags[0].value == "heldout"


def test_a_config_of_another_study_is_refused(folder, tmp_path_factory):
    study = make_study(folder)
    elsewhere = make_study(tmp_path_factory.mktemp("elsewhere"))
    work(study, 1)
    config, path = tuned_config(study, best_trial(study)), folder / "tuned.json"
    check_tuned(study, config, path)
    assert config.provenance.study_id == study_ids(study)[0]
    with pytest.raises(FlowpruneError, match=r"tuned\.json is not of the study 's' .*its study has the id"):
        check_tuned(elsewhere, config, path)
    dearer = config.model_copy(update={"budget": config.budget.model_copy(update={"asked": 0.5})})
    with pytest.raises(FlowpruneError, match=r"its budget is retention 0\.5"):
        check_tuned(study, dearer, path)
    origin = config.provenance.model_copy(update={"data_digest": "other"})
    with pytest.raises(FlowpruneError, match="calibration samples have the digest other"):
        check_tuned(study, config.model_copy(update={"provenance": origin}), path)


@pytest.mark.parametrize("broken", ["text", "folder"])
def test_a_database_that_cannot_be_opened_is_said_at_once(broken, tmp_path):
    path = tmp_path / "mlflow.db"
    path.mkdir() if broken == "folder" else path.write_text("no database, but long enough to be read as one" * 50)
    began = time.monotonic()
    with pytest.raises(FlowpruneError, match=r"No MLflow tracking store answers at sqlite:///.*: start it"):
        check_store(f"sqlite:///{path}", "e")
    assert time.monotonic() - began < 8


def test_a_project_that_was_moved_finds_its_files(folder, tmp_path_factory):
    study = make_study(folder)
    make_tracker(folder, study).close()
    (folder / "tuned.json").write_text("{}")
    keep_files(f"sqlite:///{folder}/mlflow.db", study, [folder / "tuned.json"])
    moved = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(folder, moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    assert follow_moved(uri, moved / "artifacts") == 0  # a copy: the first is there yet
    (folder / "artifacts").rename(folder / "gone")
    assert follow_moved(uri, moved / "artifacts") > 0
    assert follow_moved(uri, moved / "artifacts") == 0
    run_id = study.user_attrs["mlflow_run"]
    assert [file.path for file in MlflowClient(uri).list_artifacts(run_id)] == ["tuned.json"]
    assert not (folder / "artifacts").exists()
