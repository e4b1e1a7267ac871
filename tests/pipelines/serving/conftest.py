"""Endpoints of the shipped model; scenes, and what generate() answers to them."""

from collections.abc import Iterator

import pytest
from endpoints import SHORT, TINY, VFLOWOPT, Served, on_a_port, served
from stand_in_vllm import StandInVllm

from multimodal import PruningConfig, Recordings, prune
from pipelines.data import Sample
from pipelines.data.scenes import scenes
from pipelines.model import OpenedModel, open_model
from pipelines.prompts import build_inputs, greedy_answers
from pipelines.serving.transformers_engine import TransformersEngine
from pipelines.serving.vllm_engine import VllmEngine
from pipelines.settings import ModelSettings


@pytest.fixture(scope="session")
def opened() -> OpenedModel:
    return open_model(ModelSettings.model_validate(TINY | {"dtype": "float32", "device": "cpu"}))


@pytest.fixture(scope="session")
def configs(opened) -> dict[str, PruningConfig]:
    mean, std = opened.normalization
    steps = {"tenth": [(0, 0.1)], "inner": [(0, 0.3), (2, 0.4)]}
    return {
        name: PruningConfig(
            method=VFLOWOPT,
            schedule=[{"layer": layer, "keep_ratio": ratio} for layer, ratio in schedule],
            image_mean=mean,
            image_std=std,
        )
        for name, schedule in steps.items()
    }


@pytest.fixture(scope="session")
def shown() -> list[Sample]:
    return list(scenes("test", 24))


@pytest.fixture(scope="session")
def expected(opened, configs, shown) -> dict[str, list[str]]:
    """What generate() answers to each scene alone, by config."""
    found = {"none": [greedy_answers(opened, build_inputs(opened, [sample]), SHORT)[0] for sample in shown]}
    for name, config in configs.items():
        with prune(opened.model, config):
            found[name] = [greedy_answers(opened, build_inputs(opened, [sample]), SHORT)[0] for sample in shown]
    return found


@pytest.fixture(scope="session")
def alone(opened, configs) -> Iterator[Served]:
    """engine=transformers."""
    with served(lambda metrics: TransformersEngine(opened, configs, 64, metrics, "tiny"), configs) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def recorded(opened, configs) -> Iterator[Served]:
    """engine=transformers, which reads by recordings."""
    own = Recordings()
    with served(lambda metrics: TransformersEngine(opened, configs, 64, metrics, "tiny", own), configs) as endpoint:
        yield endpoint
    assert len(own)


@pytest.fixture(scope="session")
def stand_in(opened) -> StandInVllm:
    return StandInVllm(opened)


@pytest.fixture(scope="session")
def behind(opened, configs, stand_in) -> Iterator[Served]:
    """engine=vllm, with a stand-in for the vLLM."""
    own = {"tenth": configs["tenth"]}
    with (
        on_a_port(stand_in.app()) as url,
        served(lambda metrics: VllmEngine(opened, own, url, metrics, "tiny", "there", 60), own) as endpoint,
    ):
        yield endpoint
