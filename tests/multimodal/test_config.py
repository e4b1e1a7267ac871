"""The exported file: what is written is read, and every mistake is one sentence that names the field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from multimodal import FlowpruneError, PruningConfig, PruningStep
from multimodal.methods import Method
from multimodal.testing.oracles import config

GOOD: dict[str, Any] = {
    "schema_version": 1,
    "method": {"name": "vflowopt", "query_threshold": 28.68, "entropy_weight": -0.25, "recycling_cell": 11.76},
    "schedule": [{"layer": 0, "keep_ratio": 0.7233}, {"layer": 9, "keep_ratio": 0.7487}],
    "positions": "compact",
    "merging": None,
    "sinks": "kept",
    "adaptive": None,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "model": {"id": "some/model", "revision": None, "architecture": "LlavaForConditionalGeneration", "layers": 28},
    "budget": {"measure": "retention", "asked": 0.5, "met": 0.4987},
    "provenance": {
        "study": "s",
        "study_id": "0f",
        "trial": 3,
        "calibration_discrepancy": 0.02,
        "objective": "discrepancy",
        "heldout_discrepancy": None,
        "heldout_digest": None,
        "data_digest": "abc",
        "versions": {"torch": "2.14"},
    },
}


def assert_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message and "pydantic" not in message
    assert not re.search(r"[.!?] [A-Z]", message)


@pytest.mark.parametrize(
    "chosen",
    [
        PruningConfig(**GOOD),
        config(),
        config([(0, 1 / 3)], name="uniform", positions="compact"),
        config([(2, 1e-9), (3, 1.0)], name="random", seed=7),
        config(recycling_cell=1.5, recycling_weight=1.0, recycling_count="released", vision_layer=-2),
    ],
    ids=lambda chosen: chosen.method.name,
)
def test_round_trip(chosen: PruningConfig, tmp_path: Path) -> None:
    path = chosen.save_pretrained(tmp_path / "new" / "folder")
    assert path.name == "pruning.json"
    for source in (path, str(path), path.parent, str(path.parent)):
        loaded = PruningConfig.from_pretrained(source)
        assert loaded == chosen
        assert type(loaded.method) is type(chosen.method)
    assert json.loads(path.read_text())["method"] == chosen.method.model_dump()


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    written = json.loads(PruningConfig(**GOOD).save_pretrained(tmp_path).read_text())
    assert written["method"].items() >= GOOD["method"].items()
    assert {key: value for key, value in written.items() if key != "method"} == {
        key: value for key, value in GOOD.items() if key != "method"
    }


def test_the_readme_example() -> None:
    chosen = PruningConfig(
        method={
            "name": "vflowopt",
            "query_threshold": 30.0,
            "entropy_weight": 0.0,
            "recycling_cell": 12.0,
            "recycling_weight": 0.0,
        },
        schedule=[PruningStep(layer=0, keep_ratio=0.3), PruningStep(layer=9, keep_ratio=0.8)],
        positions="original",
    )
    assert chosen.method == PruningConfig(method={"name": "vflowopt"}, schedule=chosen.schedule).method


def changed(path: tuple, value: Any) -> dict:
    """The good config with one value replaced; ``...`` removes it."""
    data = json.loads(json.dumps(GOOD))
    part = data
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return data


MISTAKES = [
    (("typo",), 1, "typo is not a known key"),
    (("self",), 1, "self is not a known key"),
    (("schedule", 1, "ratio"), 0.5, r"schedule\.1\.ratio is not a known key"),
    (("method", "cell"), 3, r"method\.cell is not a known key"),
    (("budget", "ask"), 3, r"budget\.ask is not a known key"),
    (("schedule", 0, "keep_ratio"), 0, r"schedule\.0\.keep_ratio is 0\b.*greater than 0"),
    (("schedule", 0, "keep_ratio"), 1.2, r"schedule\.0\.keep_ratio is 1\.2: .*less than or equal to 1"),
    (("schedule", 0, "keep_ratio"), -0.1, r"schedule\.0\.keep_ratio is -0\.1"),
    (("schedule", 0, "keep_ratio"), float("nan"), r"schedule\.0\.keep_ratio is nan"),
    (("schedule", 0, "keep_ratio"), "much", r"schedule\.0\.keep_ratio is 'much': .*number"),
    (("schedule", 0, "keep_ratio"), None, r"schedule\.0\.keep_ratio is None"),
    (("schedule", 1, "keep_ratio"), ..., r"schedule\.1\.keep_ratio is missing"),
    (("schedule", 1, "layer"), 2.5, r"schedule\.1\.layer is 2\.5: .*integer"),
    (("schedule", 0, "layer"), -1, r"schedule\.0\.layer is -1"),
    (("schedule", 1, "layer"), 0, r"schedule has the layers \[0, 0\].*strictly increasing"),
    (("schedule", 0, "layer"), 11, r"schedule has the layers \[11, 9\].*strictly increasing"),
    (("schedule",), [], "schedule is"),
    (("schedule",), ..., "schedule is missing"),
    (("schedule",), 3, "schedule is 3"),
    (("schedule",), [0.5], r"schedule\.0 is 0\.5"),
    (("positions",), "relative", "positions is 'relative': .*'compact' or 'original'"),
    (("method",), ..., "method is missing"),
    (("method",), "vflowopt", "method is 'vflowopt'"),
    (("method", "name"), "vflow", "'vflow': choose one of .*random.*uniform.*vflowopt"),
    (("method", "name"), ..., "choose one of .*random.*uniform.*vflowopt"),
    (("method", "name"), ["vflowopt"], "choose one of .*random.*uniform.*vflowopt"),
    (("method", "query_threshold"), "high", r"method\.query_threshold is 'high'"),
    (("method", "query_threshold"), -1, r"method\.query_threshold is -1"),
    (("method", "recycling_cell"), 0.5, r"method\.recycling_cell is 0\.5"),
    (("method", "recycling_cell"), float("inf"), r"method\.recycling_cell is inf"),
    (("method", "recycling_weight"), 1.5, r"method\.recycling_weight is 1\.5"),
    (("method", "recycling_count"), "exactly", r"method\.recycling_count is 'exactly'"),
    (("method", "vision_layer"), 0, r"method\.vision_layer is 0"),
    (("image_mean",), 0.5, r"image_mean is 0\.5"),
    (("image_std",), [0.5, float("inf"), 0.5], r"image_std\.1 is inf"),
    (("provenance", "calibration_discrepancy"), float("nan"), r"provenance\.calibration_discrepancy is nan"),
    (("image_mean",), [0.5, "x", 0.5], r"image_mean\.1 is 'x'"),
    (("budget", "asked"), 1.5, r"budget\.asked is 1\.5"),
    (("model", "architecture"), ..., r"model\.architecture is missing"),
    (("provenance", "trial"), "third", r"provenance\.trial is 'third'"),
    (("schema_version",), 2, "schema_version.* 2"),
    (("schema_version",), "one", "schema_version"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES, ids=lambda part: str(part)[:40])
def test_a_mistake_is_one_sentence(path: tuple, value: Any, message: str, tmp_path: Path) -> None:
    data = changed(path, value)
    with pytest.raises(FlowpruneError, match=message) as error:
        PruningConfig(**data)
    assert_one_sentence(str(error.value))

    file = tmp_path / "pruning.json"
    file.write_text(json.dumps(data))
    with pytest.raises(FlowpruneError, match=message) as error:
        PruningConfig.from_pretrained(file)
    assert_one_sentence(str(error.value))
    assert str(file) in str(error.value)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    file = tmp_path / "pruning.json"
    file.write_text(json.dumps(changed(("schema_version",), 2) | {"new_key": 1}))
    with pytest.raises(FlowpruneError, match="schema_version 2, newer than 1: upgrade flowprune") as error:
        PruningConfig.from_pretrained(tmp_path)
    assert_one_sentence(str(error.value))


@pytest.mark.parametrize("content", ["", "not json", "{", "[1, 2]", "3", "null", b"\xff\xfe\x00"], ids=repr)
def test_what_is_no_json_object_is_refused(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "pruning.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FlowpruneError, match="JSON") as error:
        PruningConfig.from_pretrained(file)
    assert_one_sentence(str(error.value))


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (tmp_path, tmp_path / "missing.json", tmp_path / "missing", "nowhere", "./no/where"):
        with pytest.raises(FlowpruneError, match=r"does not exist: give a pruning\.json, a folder") as error:
            PruningConfig.from_pretrained(source)
        assert_one_sentence(str(error.value))
        assert Path(source).name in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FlowpruneError, match=r"No pruning\.json for 'nobody/nothing' here or on the hub") as error:
        PruningConfig.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)


def test_configs_do_not_change() -> None:
    chosen = config()
    for part, field in ((chosen, "positions"), (chosen.method, "name"), (chosen.schedule[0], "layer")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, field, getattr(part, field))


def test_methods_are_listed_once() -> None:
    assert {"vflowopt", "uniform", "random"} <= set(Method.registry)
