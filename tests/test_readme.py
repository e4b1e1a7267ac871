"""The README's Python runs as it stands."""

import re
from pathlib import Path

from multimodal import PruningConfig, PruningStep
from multimodal.families import Geometry

ROOT = Path(__file__).parents[1]


def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    [example, by_hand, *_] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert isinstance(_run(by_hand)["config"], PruningConfig)
    schedule = [PruningStep(layer=0, keep_ratio=0.2), PruningStep(layer=3, keep_ratio=0.1)]
    config = PruningConfig(method={"name": "vflowopt", "query_threshold": 1.0}, schedule=schedule)
    config.save_pretrained(tmp_path / "runs" / "tiny-vflowopt-0.1")
    monkeypatch.chdir(tmp_path)
    _run(example.replace("64", "4"))
    unpruned, pruned, report = capsys.readouterr().out.splitlines()
    assert unpruned.rsplit("]")[0] == pruned.rsplit("]")[0]  # the same answers
    assert report.startswith("256 [51, 5] 0.1")


def test_the_table_of_families_is_whole():
    text = (ROOT / "README.md").read_text()
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


def _run(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    return names
