"""Requests that the language model answers at a pruning step."""

from dataclasses import dataclass
from typing import Literal

from multimodal.evidence.request import LanguageRequest


@dataclass(frozen=True)
class LanguageAttention(LanguageRequest):
    """Head-mean attention of the layer before the step, from chosen rows to the visual tokens still there.

    Args:
        rows: ``last``: the last prompt token's row, the answer is ``[images, n]``; ``text``: those of all text tokens
            of an image's prompt, ``[images, text tokens, n]``, 0 in rows that pad shorter prompts (on the left).
    """

    rows: Literal["last", "text"] = "last"


@dataclass(frozen=True)
class TextEmbeddings(LanguageRequest):
    """Input embeddings of the text tokens of an image's prompt ``[images, text tokens, C]``, 0 in rows that pad."""
