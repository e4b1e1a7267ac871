"""What was met over everything that was evaluated."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Self

from multimodal.config import PruningConfig
from multimodal.lmms_eval.conversation import Conversation
from multimodal.runtime.report import SampleReport


@dataclass
class Tally:
    """Sums over prompts, which those of other processes can be added to.

    Args:
        prompts: that showed something.
        retention: sum over them.
        visual_tokens: of the unpruned prompts.
        kv_bytes, kv_bytes_unpruned: of them.
        new_tokens: of all answers.
        seconds: that they took.
    """

    prompts: int = 0
    retention: float = 0.0
    visual_tokens: int = 0
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    def see(
        self, talks: Sequence[Conversation], tokens: Sequence[int], reports: Sequence[SampleReport], seconds: float
    ) -> None:
        """Count a batch.

        Args:
            talks: its prompts.
            tokens: of their answers.
            reports: what pruning did to them; none where it did nothing.
            seconds: that the batch took.
        """
        self.seconds += seconds
        for number, talk in enumerate(talks):
            if not talk.counts:
                continue
            self.new_tokens += tokens[number]
            if reports and (report := reports[number]).visual_tokens:
                self.prompts += 1
                self.retention += report.retention
                self.visual_tokens += report.visual_tokens
                self.kv_bytes += report.kv_bytes
                self.kv_bytes_unpruned += report.kv_bytes_unpruned

    @classmethod
    def total(cls, tallies: Sequence[Self]) -> Self:
        """The sum of several."""
        return cls(*map(sum, zip(*map(astuple, tallies), strict=True)))

    def figures(self, config: PruningConfig | None) -> dict[str, float]:
        """Numbers for the results file, by name: the budget that was asked for, and means over all prompts.

        Args:
            config: how the model was pruned; None: not at all.
        """
        if config is None:
            return {"retention": 1.0, "kv_share": 1.0}
        found = {} if config.budget is None else {f"asked_{config.budget.measure}": config.budget.asked}
        if self.prompts:
            found |= {
                "retention": self.retention / self.prompts,
                "kv_share": self.kv_bytes / self.kv_bytes_unpruned,
                "visual_tokens_unpruned": self.visual_tokens / self.prompts,
            }
        return found
