"""serving=vllm: what a search may still choose, and who is refused before any work."""

import json

import optuna
import pytest
from hydra import compose, initialize_config_module
from transformers import AutoConfig

from multimodal import FlowpruneError, PruningConfig
from multimodal.costs import Workload
from multimodal.families import geometry_of
from multimodal.layout import Layout
from multimodal.loading import SHIPPED
from multimodal.serving.limits import STOCK_VLLM, VLLM, check_servable
from pipelines.baselines import untuned_config
from pipelines.command_line import spelt_out
from pipelines.restriction import served_method
from pipelines.settings import Settings, check_settings, register_resolvers
from pipelines.space import make_space, method_choices
from search.space import Space

PIXELS = ((0.5,) * 3, (0.5,) * 3)


def settings_of(*overrides: str) -> Settings:
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        return check_settings(compose("config", overrides=spelt_out(list(overrides))))


def space_of(settings: Settings) -> Space:
    geometry = geometry_of(AutoConfig.from_pretrained(SHIPPED["tiny"]))
    return make_space(settings, geometry, Workload(geometry.text_config, [([Layout(((16, 16),))], 20)]), PIXELS)


@pytest.mark.parametrize(
    ("overrides", "searched"),
    [
        ([], {"query_threshold", "entropy_weight", "recycling_cell"}),
        (["method=divprune", "search.merging=[none,nearest]"], {"merging"}),
        (["method=cdpruner", "method.fixed.relevance=0.5"], set()),
        (["method=flowcut"], {"pace", "surplus"}),  # prunes inside the tower, which is ours
        (["method=vflowopt", "search.adaptive=false", "search.schedule=sigmoid", "search.steps=5"], None),
    ],
)
def test_what_is_still_searched(overrides, searched):
    settings = settings_of("serving=vllm", *overrides)
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    config = space_of(settings).suggest(asked)
    check_servable(config, 6, VLLM)
    assert [(step.layer, config.positions) for step in config.schedule] == [(0, "original")]
    assert config.schedule[0].keep_ratio * 256 == pytest.approx(25.6, abs=0.5)  # 0.1 of 256, in whole tokens
    assert searched is None or set(asked.params) - {"vision_layer"} == searched


def test_names_do_not_meet_those_of_the_search_without_it():
    settings, plain = settings_of("serving=vllm"), settings_of()
    assert (settings.study, plain.study) == ("tiny-vflowopt-0.1-vllm", "tiny-vflowopt-0.1")
    assert settings.serving.unrestricted == plain.output == "runs/tiny-vflowopt-0.1"
    assert space_of(settings).describe() != space_of(plain).describe()


def test_published_values_take_one_step():
    settings = settings_of("serving=vllm")
    untuned = untuned_config(served_method(settings), space_of(settings))
    check_servable(untuned, 6)
    assert untuned.method.query_threshold == 39.26
    assert len(untuned_config(settings.method, space_of(settings_of())).schedule) == 3


def test_a_stock_engine_gives_compact_positions():
    config = space_of(settings_of("serving=vllm", "serving.positions=[compact]")).positions
    assert config == ["compact"] == list(STOCK_VLLM.positions)
    with pytest.raises(
        FlowpruneError, match=r"search.positions \['compact'\] are none that serving=vllm gives: add or"
    ):
        space_of(settings_of("serving=vllm", "search.positions=[compact]"))


@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm", "dart"])
def test_methods_that_read_the_language_model_are_refused(method):
    with pytest.raises(FlowpruneError, match=f"cannot take method={method}, which reads layers .*: choose one of cd"):
        method_choices(settings_of("serving=vllm", f"method={method}"))


def test_a_method_is_refused_before_work(flowprune, monkeypatch):
    monkeypatch.setattr("pipelines.model.load_model", None)
    code, printed = flowprune("serving=vllm", "method=fastv")
    assert code == 2 and "Traceback" not in printed
    assert "serving=vllm cannot take method=fastv, which reads layers of the" in " ".join(printed.split())


def test_a_search_finds_what_can_be_served_and_validate_says_what_that_costs(flowprune, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.stages.search.write_ranked", lambda *_: [])  # slow, and tested elsewhere
    common = ("experiment=smoke", "budget.retention=0.3")
    code, printed = flowprune(*common, f"output={tmp_path}/plain", "stages=[search]")
    assert code == 0, printed
    assert len(PruningConfig.from_pretrained(tmp_path / "plain" / "tuned.json").schedule) == 3
    code, printed = flowprune(*common, "serving=vllm", "study=served", f"serving.unrestricted={tmp_path}/plain")
    assert code == 0, printed
    config = PruningConfig.from_pretrained(tmp_path / "run")
    check_servable(config, 5)
    assert config.method.recycling_weight == 0 and config.budget.met == pytest.approx(0.3, abs=1 / 64)
    report = json.loads((tmp_path / "run" / "validation.json").read_text())["contenders"]
    assert report["unrestricted"]["retention"] <= 0.3 and len(report) == 6
    assert "points of accuracy beside the unrestricted config" in " ".join(printed.split())


def test_a_weight_that_is_fixed_is_refused():
    with pytest.raises(FlowpruneError, match=r"method\.fixed\.recycling_weight is 0\.5, and serving=vllm knows no"):
        method_choices(settings_of("serving=vllm", "method.fixed.recycling_weight=0.5"))


def test_a_mixture_keeps_those_that_fit(capsys):
    settings = settings_of("serving=vllm", "method=mixed", "method.among=[vflowopt,fastv,divprune]")
    choices = method_choices(settings)
    assert [(choice.name, choice.fixed) for choice in choices] == [
        ("vflowopt", {"recycling_weight": 0}),
        ("divprune", {}),
    ]
    assert "left out of the mixture: fastv" in capsys.readouterr().out
    with pytest.raises(FlowpruneError, match="cannot take any"):
        method_choices(settings_of("serving=vllm", "method=mixed", "method.among=[dart,fastv]"))
