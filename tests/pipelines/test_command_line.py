"""What a user types, as it is typed in a shell."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipelines.command_line import quoted, spelt_out
from pipelines.settings import check_settings, register_resolvers

ROOT = Path(__file__).parents[2]
SLOW = ("torch", "transformers", "mlflow", "optuna", "matplotlib")


@given(st.text(alphabet="ab '\"\\,?()[]{}=:#%&~$\n→", min_size=1))
def test_free_text_and_paths_are_read_as_they_were_typed(value):
    argument = quoted(f"data.path={value}")
    read = OverridesParser.create().parse_override(argument).value()
    assert read == value or argument == f"data.path={value}"  # which was in quotes already


@pytest.mark.parametrize(
    "question", ["What's this, (a) or [b]?", "5", "yes", "costs $5 or ${x}?", "a=b: {c}", '"a", b']
)
def test_a_question_is_text_whatever_is_in_it(question):
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        assert compose("config", spelt_out([f"generate.question={question}"])).generate.question == question


def settings_of(*arguments):
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        return check_settings(compose("config", spelt_out(list(arguments))))


def test_the_home_folder_is_meant(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = settings_of(
        "model.path=~/model", "output=~/runs", "storage.path=~", "extensions=[~/my.py]", "data.path=~/data"
    )
    found = [settings.model.path, settings.output, settings.storage.path, *settings.extensions, settings.data.path]
    assert found == [f"{tmp_path}/model", f"{tmp_path}/runs", str(tmp_path), f"{tmp_path}/my.py", f"{tmp_path}/data"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "tiny"),
        (["model=dino"], "dino"),
        (["model.path=some/checkpoint"], "some_checkpoint"),
        (["model=path", "model.path=some/checkpoint"], "some_checkpoint"),
        (["model=qwen2_vl_7b", "model.path=/disk/qwen"], "qwen2_vl_7b"),
    ],
)
def test_a_study_is_named_after_its_model(arguments, name):
    settings = settings_of(*arguments)
    assert settings.model.name == name and settings.study.startswith(f"{name}-")


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("--help", 0, "flowprune"),
        ("search.trials=x", 2, "error: search.trials is 'x'"),
        ("method=nosuch", 2, "choose one of"),
    ],
)
def test_what_is_typed_is_checked_before_anything_slow_is_imported(argument, code, said):
    program = f"""
import sys
from pipelines.__main__ import main
sys.argv = ["flowprune", {argument!r}]
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
slow = set({SLOW!r}) & sys.modules.keys()
sys.exit(f"imported {{slow}}" if slow else code)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    assert said in run.stdout + run.stderr


def test_names_of_stages_are_enough():
    assert spelt_out(["serve", "serve.configs.tenth=runs/a=b"]) == [
        "++serve.configs.tenth='runs/a=b'",
        "stages=[serve]",
    ]
    assert spelt_out(["search", "seed=1", "export"]) == ["seed=1", "stages=[search,export]"]
