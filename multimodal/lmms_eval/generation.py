"""How a task asks for its answers: lmms-eval's ``generation_kwargs``, as transformers takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_NEW_TOKENS = 1024  # where a task does not say
TAKEN = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "temperature",
    "top_p",
    "top_k",
)  # tasks also write advice for other models here, as image_aspect_ratio


def generate_options(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate``: greedy, unless a task asks for a temperature or for samples.

    Args:
        asked: a task's ``generation_kwargs``.
    """
    taken = {name: asked[name] for name in TAKEN if asked.get(name) is not None}
    temperature, sampled = taken.get("temperature"), asked.get("do_sample")
    if temperature == 0 or not (bool(temperature) if sampled is None else sampled):
        taken |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    else:
        taken["do_sample"] = True
    return {"max_new_tokens": MOST_NEW_TOKENS} | taken


def until(answer: str, stops: str | Sequence[str] | None) -> str:
    """An answer up to where the first of a task's ``until`` begins."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        answer = answer.partition(stop)[0] if stop else answer
    return answer.strip()
