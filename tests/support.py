"""The table in docs/families.md of what the contract suites really ran: family × kind of prompt × attention backend.

Tests say what they prove with ``record_property("support", …)``; ``pytest --support FILE`` writes the table into FILE.
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from multimodal.testing.contracts import BACKENDS

KINDS = ("image", "several images", "video", "batch", "chat")
SHOWN = {"fake_flash": "flash"}
BEGIN, END = "<!-- support: written by `make support` -->", "<!-- support ends -->"


class Table:
    """Collects claims of passed tests and what failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claims: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for key, value in report.user_properties:
                if key == "support":
                    family, kind, attention, refusal = value
                    self.claims[family, kind][attention].add(refusal if report.passed else "failed")

    def pytest_sessionfinish(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        table = f"{BEGIN}\n{self.markdown()}\n{END}"
        self.path.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")

    def markdown(self) -> str:
        reasons: list[str] = []
        lines = ["| `model_type` | " + " | ".join(KINDS) + " |", "| --- |" + " --- |" * len(KINDS)]
        for family in sorted({family for family, _ in self.claims}):
            cells = [self._cell(family, kind, reasons) for kind in KINDS]
            lines.append(f"| `{family}` | " + " | ".join(cells) + " |")
        notes = [f"{n}. {reason}".replace("fake_flash", "flash_attention") for n, reason in enumerate(reasons, 1)]
        return "\n".join([*lines, "", *notes])

    def _cell(self, family: str, kind: str, reasons: list[str]) -> str:
        ran: list[str] = []
        refused: dict[str, None] = {}
        for attention in BACKENDS:
            outcomes = self.claims[family, kind][attention]
            if outcomes == {""}:
                ran.append(SHOWN.get(attention, attention))
            else:
                refused |= dict.fromkeys(sorted(outcomes - {""}) or ["not tested"])
        marks = []
        for reason in refused:
            if reason not in reasons:
                reasons.append(reason)
            marks.append(f"[{reasons.index(reason) + 1}]")
        return " ".join([", ".join(ran) or "–", *marks])
