"""What README and the pages show runs: Python as it stands, command lines as far as Hydra composes them."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from multimodal import PruningConfig, PruningStep
from multimodal.families import Geometry
from multimodal.methods import Method
from pipelines.command_line import spelt_out
from pipelines.settings import register_resolvers

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = [page for page in PAGES if "```python" in page.read_text()]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def found(tmp_path, monkeypatch) -> PruningConfig:
    """What a search found, where the pages look for it."""
    schedule = [PruningStep(layer=0, keep_ratio=0.2), PruningStep(layer=3, keep_ratio=0.1)]
    config = PruningConfig(method={"name": "vflowopt", "query_threshold": 1.0}, schedule=schedule)
    config.save_pretrained(tmp_path / "runs" / "tiny-vflowopt-0.1")
    monkeypatch.chdir(tmp_path)
    return config


@pytest.mark.parametrize("page", EXAMPLES, ids=name_of)
def test_python_runs(page, found, monkeypatch):
    monkeypatch.setattr(Method, "registry", dict(Method.registry))  # the pages' own methods are not kept
    names = {"__name__": "example"}
    for kind, block in FENCE.findall(page.read_text()):
        if kind == "python":
            exec(block.replace("64", "2"), names)


def test_a_page_says_what_pruning_does(found, capsys):
    names: dict = {}
    [answers, report, by_hand, costs, recorded] = [
        block for kind, block in FENCE.findall((ROOT / "docs" / "apply.md").read_text()) if kind == "python"
    ]
    exec(answers.replace("64", "4"), names)
    unpruned, pruned = capsys.readouterr().out.splitlines()
    assert unpruned.rsplit("]")[0] == pruned.rsplit("]")[0]  # the same answers
    exec(report, names)
    assert capsys.readouterr().out.startswith("256\n[51, 5]\n0.1")  # 51 in three layers, 5 in three: 28 of 256
    exec(by_hand + costs, names)
    assert capsys.readouterr().out.startswith("0.22")  # 77 in three layers, 38 in three: 57.5 of 256
    exec(recorded, names)
    assert "Recordings(2 held, " in capsys.readouterr().out


@pytest.fixture(scope="module")
def composed() -> set[tuple[str, ...]]:
    """Command lines that did already; many pages show the same."""
    return set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_compose(page, composed):
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        for command in commands(page.read_text()):
            flags = {"--cfg", "job", "--help", "--multirun", "&"}
            arguments = [each for each in shlex.split(command, comments=True)[1:] if each not in flags]
            if "--multirun" in command:
                arguments = [re.sub(r"^([\w/]+=\w+)(,\w+)+$", r"\1", each) for each in arguments]  # its first run
            if (overrides := tuple(spelt_out(arguments))) not in composed:
                compose("config", overrides=list(overrides))
                composed.add(overrides)


def commands(text: str) -> list[str]:
    """Every line of a page that starts flowprune."""
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    return [each.strip() for each in lines + inline if each.strip().startswith("flowprune ") and "…" not in each]


def test_command_lines_are_found():
    text = "```\nflowprune a=1 \\\n  b=2\n```\nSee `flowprune\nc=3` and `flowprune-tiny`."
    assert commands(text) == ["flowprune a=1    b=2", "flowprune c=3"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_linked_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_table_of_contents():
    named = set(re.findall(r'= "([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.parents}
    methods = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert methods == {name for name, own in Method.registry.items() if own.__module__.startswith("multimodal.methods")}


def test_a_method_page_is_made_from_its_class(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import generated

    lines = list(generated.reference("prumerge"))
    start = lines.index(
        "- **`uniform_share`**: share of the kept tokens (without the sum of the dropped) that lie evenly, "
        "rounded down.  "
    )
    assert lines[start + 1] == "  number ≥ 0, ≤ 1 · default `0.0` · searched from 0 to 1, first 0 and 0.75"
    assert "| prumerge | 85.8 | 39.2 | 24.2 | 55.6 |" in lines  # docs/compare.md's tables
    assert [line.split("(")[0] for line in lines if line.startswith("- `")] == ["- `GlobalAttention", "- `VisionKeys"]
    queries = [line for line in generated.reference("flowcut") if line.startswith("- `LanguageVectors(")]
    assert [re.findall(r"'(\w+)'", line) for line in queries] == [
        *(["queries", "last"], ["keys", "visual"], ["values", "last"], ["values", "visual"])
    ]
    assert "2403.15388" in next(generated.source("prumerge"))


def test_the_table_of_families_is_whole():
    text = (ROOT / "docs" / "families.md").read_text()
    table = text[text.index("<!-- support:") : text.index("<!-- support ends -->")]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    assert {row[0].strip("`") for row in rows[1:]} == set(Geometry.registry)
    reasons = re.findall(r"^\d+\. .+\.$", table, re.MULTILINE)
    for row in rows[1:]:
        for cell in row[1:]:  # what ran on every backend, or a reason
            numbers = re.findall(r"\[(\d+)\]", cell)
            assert cell == "eager, sdpa, flash" or numbers
            assert all(int(number) <= len(reasons) for number in numbers)
    assert "failed" not in table and "not tested" not in table
