"""What validate says: accuracy, leads and the verdict are of the samples whose answers are known, and of no other."""

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from multimodal import PruningConfig
from pipelines.data import Sample
from pipelines.stages import validate

CONFIG = PruningConfig(method={"name": "uniform"}, schedule=[{"layer": 0, "keep_ratio": 0.5}])
OBJECTIVE: Any = SimpleNamespace(
    shares=lambda config: {"retention": 0.5, "kv_share": 0.5, "flops_share": 0.5}, evaluate=lambda config: [0.1]
)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_prefill_seconds", lambda objective, configs: dict.fromkeys(configs, 1.0))


def rows(known: list[str | None], answers: dict[str, list[str]], rule: str = "exact") -> dict[str, validate.Row]:
    samples = [Sample.asking(Image.new("RGB", (2, 2)), "Q", answer, kind="k") for answer in known]
    configs = {name: None if name == "unpruned" else CONFIG for name in answers}
    return validate._rows(samples, answers, configs, OBJECTIVE, rule)


def test_rows_without_answers_count_in_agreement_alone() -> None:
    known = ["a"] * 12 + [None] * 36
    unpruned = ["a"] * 48
    other = ["b"] * 7 + ["a"] * 5 + ["a"] * 18 + ["b"] * 18
    found = rows(known, {"unpruned": unpruned, "tuned": unpruned[:12] + ["b"] * 36, "other": other})
    assert found["tuned"].accuracy == 1 and found["other"].accuracy == pytest.approx(5 / 12)
    assert found["other"].accuracy_by_kind == {"k": pytest.approx(5 / 12)}
    mean, half = found["other"].lead
    assert mean == pytest.approx(7 / 12)  # over all 48 it would be −11/48, and the verdict the other way round
    assert half == pytest.approx(1.96 * (7 / 12 * 5 / 12 * 12 / 11 / 12) ** 0.5)
    assert found["tuned"].agreement == 12 / 48 and found["other"].agreement == 23 / 48
    assert "better than every other" in validate._verdict(found)


def test_without_any_answer_agreement_leads() -> None:
    found = rows([None] * 4, {"unpruned": ["a"] * 4, "tuned": ["a"] * 4, "other": ["a", "b", "b", "b"]})
    assert found["other"].accuracy is None and found["other"].lead[0] == 0.75 and found["other"].accuracy_by_kind == {}


def test_answers_can_be_worth_a_part() -> None:
    found = rows(
        ["hello"] * 2, {"unpruned": ["hello"] * 2, "tuned": ["hella", "hello"], "other": ["x", "helly"]}, "anls"
    )
    assert found["tuned"].accuracy == pytest.approx(0.9) and found["other"].accuracy == pytest.approx(0.4)
    assert found["other"].lead[0] == pytest.approx(0.5)
