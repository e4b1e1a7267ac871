"""Tasks of several rounds: what is asked next depends on what was answered."""

from collections.abc import Callable, Generator
from itertools import count
from typing import Any


def rounds(ask: Callable[..., Any], document: Any) -> Generator[Any, str, list[str]]:
    """Yields the messages of each round and is sent their answer; returns all answers, as the task keeps them.

    Args:
        ask: the task's ``doc_to_messages``, by lmms-eval's protocol.
        document: of the task.
    """
    answers: list[str] = []
    messages, known = ask(document), None
    for number in count(1):
        answers.append((yield messages))
        more = ask(document, round_idx=number, previous_output=list(answers), previous_round_info=known)
        if not (isinstance(more, tuple) and len(more) == 4):  # a task of one round
            break
        messages, ended, kept, known = more
        answers = answers if kept is None else list(kept)
        if ended:
            break
    return answers
