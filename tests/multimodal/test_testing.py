"""The suites that users run on their own methods and families: what is right passes, what is wrong is told."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from multimodal.evidence import ReceivedAttention
from multimodal.methods import Method, Selection, VisualTokens
from multimodal.testing import methods as suite
from multimodal.testing.contracts import FAMILIES, covering, rotated

ROOT = Path(__file__).parents[2]
OWN_METHOD = """
from typing import Literal
from torch import Tensor
from multimodal.methods import Method, VisualTokens

class My(Method):
    name: Literal["my"] = "my"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.features.norm(dim=-1)
"""
OWN_FAMILY = """
from dataclasses import replace
from multimodal.testing.tiny_models.llava import FAMILIES as SHIPPED

right = SHIPPED["llava_clip"]
FAMILIES = {"right": right, "wrong": replace(right, tokens=lambda model, inputs: [[None]])}
"""


def pytest_run(folder: Path, arguments: str) -> tuple[int, str]:
    """A documented command, in a user's folder; in a fork, which has torch at once."""

    def run() -> None:
        os.chdir(folder)
        for name in [name for name in sys.modules if name.startswith("multimodal.testing")]:
            del sys.modules[name]  # as nobody has imported it
        warnings.resetwarnings()
        torch.set_grad_enabled(True)
        with (folder / "printed").open("w") as file:
            sys.stdout = sys.stderr = file
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments.split()])
        os._exit(code)

    ran = multiprocessing.get_context("fork").Process(target=run)
    ran.start()
    ran.join()
    assert ran.exitcode is not None
    return ran.exitcode, (folder / "printed").read_text()


def test_a_right_method_passes(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(OWN_METHOD)
    command = "-p multimodal.testing --pyargs multimodal.testing.methods --method my.py:My"
    assert command in (ROOT / "docs" / "add-method.md").read_text()
    code, printed = pytest_run(tmp_path, command)
    assert code == 0 and "13 passed" in printed, printed


def test_a_family_is_told_right_from_wrong(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(OWN_FAMILY)
    command = "-p multimodal.testing --pyargs multimodal.testing.families multimodal.testing.pruning --family my.py"
    assert command in (ROOT / "docs" / "add-family.md").read_text()
    code, printed = pytest_run(tmp_path, command + " -k layouts")
    assert code == 1 and "2 failed, 2 passed" in printed, printed
    assert printed.count("-wrong] - ") == 2, printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--method none.py", "--method: none.py is no Python file that exists"),
        ("--method my.py:Yours", "--method: my.py:Yours has not what is to be tested (it has My)"),
        ("--family my.py", "--family: my.py has not what is to be tested (it has none)"),
    ],
)
def test_what_cannot_be_tested_is_said(option: str, message: str, tmp_path: Path, monkeypatch, pytestconfig) -> None:
    import multimodal.testing as plugin

    (tmp_path / "my.py").write_text(OWN_METHOD)
    monkeypatch.chdir(tmp_path)
    name, given = option.split()
    config = type("Config", (), {"getoption": lambda self, asked: given if asked == name else None})()
    with pytest.raises(pytest.UsageError) as error:
        plugin.pytest_configure(config)
    assert message in str(error.value)
    Method.registry.pop("my", None)


# methods that are wrong


class Wrong(Method):
    """Keeps the longest tokens; what is wrong is overridden."""

    name: Literal["test_wrong"] = "test_wrong"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.features.norm(dim=-1)


class Unsorted(Wrong):
    name: Literal["test_unsorted"] = "test_unsorted"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return super().select(tokens, count).flip(1)


class OneLess(Wrong):
    name: Literal["test_one_less"] = "test_one_less"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return super().select(tokens, max(1, count - 1))


class LookingAtTheBatch(Wrong):
    name: Literal["test_batch"] = "test_batch"

    def score(self, tokens: VisualTokens) -> Tensor:
        return (tokens.features - tokens.features.mean(0)).norm(dim=-1)


class Waiting(Wrong):
    name: Literal["test_waiting"] = "test_waiting"

    def score(self, tokens: VisualTokens) -> Tensor:
        length = super().score(tokens)
        return length if length.max().item() > 1 else -length


class Listing(Wrong):
    name: Literal["test_listing"] = "test_listing"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return torch.tensor(sorted(range(tokens.index.shape[1]), key=lambda token: token)[:count]).repeat(
            len(tokens.index), 1
        )


class Undeclared(Wrong):
    name: Literal["test_undeclared"] = "test_undeclared"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.evidence(ReceivedAttention(-1))


class Changing(Wrong):
    name: Literal["test_changing"] = "test_changing"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.features.mul_(-1).sum(-1)


class Drawing(Wrong):
    name: Literal["test_drawing"] = "test_drawing"

    def score(self, tokens: VisualTokens) -> Tensor:
        return torch.rand(tokens.index.shape)


class ForNothing(Wrong):
    name: Literal["test_for_nothing"] = "test_for_nothing"

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        images, left = tokens.index.shape
        owner = torch.zeros(images, left, dtype=torch.long, device=tokens.index.device)
        return Selection(self.select(tokens, count), owner, torch.ones(owner.shape, device=owner.device) / left)


@pytest.mark.parametrize(
    ("method", "test", "message"),
    [
        (Unsorted, suite.test_it_leaves_as_many_tokens_as_it_is_asked_for_sorted_and_none_twice, "are not sorted"),
        (OneLess, suite.test_it_leaves_as_many_tokens_as_it_is_asked_for_sorted_and_none_twice, r"asked for 2 of 42 "),
        (LookingAtTheBatch, suite.test_an_image_does_not_depend_on_its_batch, "alone keeps .*, in a batch"),
        (Waiting, suite.test_it_does_not_wait_for_the_device, "waits for the device"),
        (Listing, suite.test_it_does_not_wait_for_the_device, "are on cpu"),
        (Undeclared, suite.test_what_it_is_given_stays_as_it_was, "which its evidence does not declare"),
        (Changing, suite.test_what_it_is_given_stays_as_it_was, "has changed tensors that it was given"),
        (Drawing, suite.test_what_it_is_given_stays_as_it_was, "draws from torch's global generator"),
        (ForNothing, suite.test_merged_tokens_stand_for_one_or_more, "a kept token stands for none"),
    ],
)
def test_a_wrong_method_is_told_what_is_wrong(method: type[Method], test: Callable, message: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        test(method())


# which conditions are met


def test_every_pair_of_conditions_is_met() -> None:
    axes = ("abc", "de", "fgh")
    met = covering(*axes)
    assert met[0] == ("a", "d", "f") and len(met) < 3 * 2 * 3
    for first in range(3):
        for second in range(first):
            assert len({(each[first], each[second]) for each in met}) == len(axes[first]) * len(axes[second])


def test_every_condition_is_met_by_many_families() -> None:
    pairs = rotated("abc")
    for condition in "abc":
        assert sum(value == condition for _, value in pairs) >= len(FAMILIES) // 2 - 1
