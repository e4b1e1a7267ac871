"""Exported configs in the model registry, and configs read back as data."""

import json
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from stand_ins import make_study, make_tracker, work

from multimodal import FlowpruneError, PruningConfig
from search.study import best_trial, done_trials
from search.tracking import config_of_run, config_registered, register
from search.tuned import tuned_config

NAME = "flowprune-tiny-retention-0.25"


@pytest.fixture
def uri(folder) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def study(folder) -> optuna.Study:
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    work(study, 3, tracker=tracker)
    tracker.close()
    return study


def exported(
    study: optuna.Study, folder: Path, heldout: float | None, trial: int | None = None, data: str | None = None
) -> Path:
    chosen = best_trial(study) if trial is None else done_trials(study)[trial]
    config = tuned_config(study, chosen)
    origin = config.provenance.model_copy(update={"heldout_discrepancy": heldout, "heldout_digest": data})
    return config.model_copy(update={"provenance": origin}).save_pretrained(folder / "export")


def test_the_champion_is_the_best_of_a_model_and_budget(study, folder, uri):
    versions = {}
    for heldout, expected in [(None, None), (0.3, 0.3), (0.1, 0.1), (0.2, 0.1), (None, 0.1)]:
        path = exported(study, folder, heldout)
        found = register(uri, study, "tiny", path)
        assert found.name == NAME and found.is_champion == (expected == heldout)
        assert versions.setdefault(heldout, found.version) == found.version
        assert register(uri, study, "tiny", path) == found  # again: no second version
        assert config_registered(uri, NAME).provenance.heldout_discrepancy == expected
        assert config_registered(uri, f"{NAME}/{found.version}") == PruningConfig.from_pretrained(path)
    assert len(set(versions.values())) == 4
    assert config_registered(uri, f"{NAME}@champion").provenance.heldout_discrepancy == 0.1
    other = register(uri, study, "other", path)
    assert other.is_champion and other.name != NAME


def test_only_figures_of_the_same_samples_compete(study, folder, uri):
    """Least first would be 0.1 of old samples; the latest version's samples count."""
    champions = []
    for heldout, data in [(0.1, "old"), (0.3, "new"), (0.2, "new"), (0.25, "new"), (0.05, "old")]:
        register(uri, study, "tiny", exported(study, folder, heldout, data=data))
        champions.append(config_registered(uri, NAME).provenance.heldout_discrepancy)
    assert champions == [0.1, 0.3, 0.2, 0.2, 0.05]


def test_a_config_is_read_back_from_any_run(study, folder, uri):
    client = MlflowClient(uri)
    parent = study.user_attrs["mlflow_run"]
    assert config_of_run(uri, parent) == tuned_config(study, best_trial(study))
    path = exported(study, folder, None)
    client.log_artifact(parent, str(path))
    assert config_of_run(uri, parent) == PruningConfig.from_pretrained(path)
    experiment = client.get_run(parent).info.experiment_id
    for run in client.search_runs([experiment], "tags.kind = 'trial'"):
        assert config_of_run(uri, run.info.run_id).provenance.trial == int(run.data.tags["trial"])


def test_what_is_unknown_is_one_sentence(study, folder, uri):
    register(uri, study, "tiny", exported(study, folder, None))
    for registered in ("nope", f"{NAME}@nobody", f"{NAME}/7", "a/b/c", "../x", "file:///etc/passwd", ""):
        with pytest.raises(FlowpruneError, match=rf"is not in the registry, which has {NAME}: give NAME"):
            config_registered(uri, registered)
    for run_id in ("x", "../../etc", "0" * 32, "0" * 31):
        with pytest.raises(FlowpruneError, match=r"knows no flowprune run .*: copy its id"):
            config_of_run(uri, run_id)


def test_what_comes_back_is_checked(study, folder, uri):
    client, parent = MlflowClient(uri), study.user_attrs["mlflow_run"]
    found = register(uri, study, "tiny", exported(study, folder, None))
    [stored] = (folder / "artifacts").rglob("exports/*/pruning.json")
    stored.write_text(stored.read_text().replace("vflowopt", "uniform"))
    with pytest.raises(FlowpruneError, match=r"was changed after it was registered: export it again"):
        config_registered(uri, NAME)
    client.set_model_version_tag(NAME, found.version, "digest", "../../../../etc")
    with pytest.raises(FlowpruneError, match=r"is not flowprune's: choose another"):
        config_registered(uri, NAME)
    bad = folder / "pruning.json"
    for text in ("{", "[]", '"x"', json.dumps({"method": {"name": "os.system"}}), "[" * 100_000):
        bad.write_text(text)
        client.log_artifact(parent, str(bad))
        with pytest.raises(FlowpruneError, match=r"pruning\.json of run .* is not a valid config .*: export it again"):
            config_of_run(uri, parent)
    foreign = client.create_run(client.get_run(parent).info.experiment_id)
    with pytest.raises(FlowpruneError, match=r"knows no flowprune run"):
        config_of_run(uri, foreign.info.run_id)
