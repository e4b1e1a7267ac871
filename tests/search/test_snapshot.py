"""A study survives being written and made anew; nothing else is taken for one."""

import json

import optuna
import pytest
from optuna.trial import TrialState
from stand_ins import StandIn, make_study, work

from multimodal import FlowpruneError
from search.snapshot import dump_study, restore_study
from search.storages import journal_storage, sqlite_storage


def test_a_study_comes_back_whole(tmp_path):
    study = make_study(tmp_path)
    for weight in (0.3, -1.0, 0.31):
        study.enqueue_trial({"entropy_weight": weight})
    work(study, 3, StandIn(samples=24))
    study.ask()  # running: a failed one stands for it
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    for storage in (journal_storage(tmp_path / "journal"), sqlite_storage(tmp_path / "other.db")):
        restored = restore_study(storage, "s", dump_study(study))
        assert restored.user_attrs == study.user_attrs and restored.directions == study.directions
        ours, theirs = restored.get_trials(), study.get_trials()
        assert [trial.number for trial in ours] == [0, 1, 2, 3, 4] and ours[3].state == TrialState.FAIL
        for number in (0, 1, 2, 4):
            assert vars(ours[number]) | {"_trial_id": 0} == vars(theirs[number]) | {"_trial_id": 0}


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: [],
        lambda plain: plain["trials"][0].pop("state"),
        lambda plain: plain["trials"][0].update(state="__class__"),
        lambda plain: plain["trials"][0].update(distributions={"x": '{"name": "os", "attributes": {}}'}),
        lambda plain: plain["trials"][0].update(start="yesterday"),
        lambda plain: plain["trials"][0].update(values=None),
        lambda plain: plain.update(directions=["UP"]),
    ],
)
def test_anything_else_is_refused_and_leaves_no_study(change, tmp_path):
    study = make_study(tmp_path)
    work(study, 1)
    plain = json.loads(dump_study(study))
    changed = change(plain)
    storage = sqlite_storage(tmp_path / "other.db")
    text = json.dumps(changed if changed == [] else plain)
    with pytest.raises(FlowpruneError, match=r"study\.json is not a valid study \(.*\): choose another run_id"):
        restore_study(storage, "s", text)
    assert optuna.get_all_study_names(storage) == []
