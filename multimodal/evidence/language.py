"""Requests that the language model answers at a pruning step."""

from dataclasses import dataclass
from typing import Literal

from multimodal.evidence.request import LanguageRequest

Rows = Literal["last", "text"]


@dataclass(frozen=True)
class LanguageAttention(LanguageRequest):
    """Attention from chosen rows to the visual tokens still there.

    Args:
        rows: ``last``: the last prompt token's row, the answer is ``[images, n]``; ``text``: those of all text tokens
            of an image's prompt, ``[images, text tokens, n]``, 0 in rows that pad shorter prompts (on the left).
        layer: ``before`` the step, as it ran; or ``next``, the one that the step comes before, as it would attend to
            this prompt if nothing were pruned, which costs one more projection of queries, keys and values.
        heads: their ``mean``; or ``each``, an axis of heads before that of rows or tokens: ``[images, heads, n]``,
            ``[images, heads, text tokens, n]``.
    """

    rows: Rows = "last"
    layer: Literal["before", "next"] = "before"
    heads: Literal["mean", "each"] = "mean"


@dataclass(frozen=True)
class LanguageVectors(LanguageRequest):
    """Queries, keys or values that the layer before the step made of some tokens ``[images, rows, heads, d]``.

    Keys and queries are those that were compared: after rotary embedding.

    Args:
        kind: which; queries have as many heads as the layer, the others as many as it has key heads.
        rows: ``visual``: of the tokens still there; ``last``: of the last prompt token; ``text``: of all text tokens
            of an image's prompt, 0 in rows that pad.
    """

    kind: Literal["queries", "keys", "values"]
    rows: Literal["visual", "last", "text"] = "visual"


@dataclass(frozen=True)
class TextStates(LanguageRequest):
    """Hidden states at the step of the text tokens of an image's prompt ``[images, text tokens, C]``, 0 in rows that
    pad; before the language model, their embeddings."""


@dataclass(frozen=True)
class TextEmbeddings(LanguageRequest):
    """Input embeddings of the text tokens of an image's prompt ``[images, text tokens, C]``, 0 in rows that pad."""


@dataclass(frozen=True)
class VisualEmbeddings(LanguageRequest):
    """Input embeddings of all of an image's patch tokens ``[images, patch tokens, C]``, those pruned since among
    them."""
