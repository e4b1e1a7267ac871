"""The shipped model is a fair judge of pruning: what is kept matters, and nothing trivial knows what to keep."""

from functools import cache

import torch

from pipelines.data.scenes import scenes
from pipelines.train_tiny.evaluate import load, pruned
from pipelines.train_tiny.maps import look, oracle, statistics

SAMPLES, TENTH = 120, 0.1
THREE_QUARTERS = 0.75


@cache
def accuracies() -> tuple[dict[str, float], dict[str, float]]:
    """Mean accuracy over the kinds on a tenth of the visual tokens: kept by trivial statistics, and by other maps."""
    model, processor = load("multimodal/tiny")
    samples = list(scenes("heldout", SAMPLES))
    seen = look(model, processor, samples, batch=40)

    def mean(scores: torch.Tensor, ratio: float = TENTH) -> float:
        return pruned(model, processor, samples, seen.tokens, scores, ratio)["mean"]

    trivial = {name: mean(scores) for name, scores in statistics(samples, seen).items()}
    return trivial, {
        "random": mean(torch.rand(seen.cls.shape, generator=torch.Generator().manual_seed(0))),
        "attention received": mean(seen.received),
        "CLS attention": mean(seen.cls),
        "oracle": mean(oracle(samples, seen.tokens.shape[1])),
        "all": mean(seen.cls, ratio=1.0),
    }


def test_no_trivial_statistic_keeps_three_quarters_of_the_accuracy():
    trivial, others = accuracies()
    assert {name: mean for name, mean in trivial.items() if mean > THREE_QUARTERS * others["all"]} == {}


def test_the_model_answers():
    assert accuracies()[1]["all"] > 0.9


def test_the_asked_objects_are_enough():
    others = accuracies()[1]
    assert others["oracle"] > 0.9 * others["all"]


def test_attention_lies_between_chance_and_the_oracle():
    others = accuracies()[1]
    for name in ("attention received", "CLS attention"):
        assert others["random"] + 0.05 < others[name] < others["oracle"] - 0.03


def test_chance_keeps_little_more_than_half():
    others = accuracies()[1]
    assert others["random"] < 0.6 * others["all"]
