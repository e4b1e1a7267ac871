"""What an answer is worth, in [0, 1], as benchmarks define it: texts in, a number out."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import mean

from multimodal import FlowpruneError

VQA_PEOPLE = 4  # the fewest answers of which three others can agree with one
CLOSE = 0.05  # relative difference of numbers that ChartQA takes
LIKE = 0.5  # least similarity that counts for ANLS
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"} | {
    "seven": "7", "eight": "8", "nine": "9", "ten": "10"
}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
OTHER_WORDS = {"its", "were", "well", "hell", "shell", "ill", "id", "shed", "wed"}  # without an apostrophe


def score(answer: str, right: Sequence[str], rule: str) -> float:
    """What an answer is worth.

    Args:
        answer: the model's.
        right: those that are right, at least one.
        rule: a name of :data:`RULES`.
    """
    return RULES[rule](answer, right)


def exact(answer: str, right: Sequence[str]) -> float:
    """1 for an answer that is a right one, but for case, spaces and full stops."""
    return float(any(_plain(answer) == _plain(each) for each in right))


def _plain(answer: str) -> str:
    return " ".join(answer.lower().strip(" .").split())


def vqa(answer: str, right: Sequence[str]) -> float:
    """VQA accuracy (Goyal et al., 2017): right if three people say so, averaged over all but one of them."""
    given, people = _spoken(answer), [_spoken(each) for each in right]
    agree = [each == given for each in people]
    return mean(min((sum(agree) - own) / 3, 1.0) for own in agree)


def _spoken(text: str) -> str:
    """As the benchmark's own evaluation compares answers: no punctuation and articles, digits, lower case."""
    text = " ".join(text.split())
    found = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or re.search(r"\d,\d", text) else " ")
    words = re.sub(r"\.(?!\d)", "", found).lower().split()
    return " ".join(_contracted(NUMBERS.get(word, word)) for word in words if word not in ("a", "an", "the"))


def _contracted(word: str) -> str:
    """A contraction without its apostrophe, unless that is another word."""
    bare = word.replace("'", "")
    return word if bare in OTHER_WORDS else bare


def anls(answer: str, right: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (Biten et al., 2019), as DocVQA's evaluation computes it."""
    given = " ".join(answer.lower().split())
    best = max(_similarity(given, " ".join(each.lower().split())) for each in right)
    return best if best >= LIKE else 0.0


def _similarity(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    return 1 - levenshtein(first, second) / longest if longest else 1.0


def levenshtein(first: str, second: str) -> int:
    """Letters to insert, delete or replace to make one text the other."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        following = [number]
        for (diagonal, above), other in zip(pairwise(row), second, strict=True):
            following.append(min(above + 1, following[-1] + 1, diagonal + (letter != other)))
        row = following
    return row[-1]


def relaxed(answer: str, right: Sequence[str]) -> float:
    """Relaxed accuracy (Masry et al., 2022, ChartQA): numbers may be 5 % off, texts may not."""
    return float(any(_close(answer.strip(), each.strip()) for each in right))


def _close(answer: str, right: str) -> bool:
    given, target = _number(answer), _number(right)
    if given is None or not target:
        return answer.lower() == right.lower()
    return abs(given - target) / abs(target) <= CLOSE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def choice(answer: str, right: Sequence[str]) -> float:
    """1 if the option that an answer chooses is a right letter: ``B``, ``(b)``, ``B. a cat``, ``the answer is B``."""
    return float(chosen_letter(answer) in {each.strip(" ().").upper() for each in right})


def chosen_letter(answer: str) -> str | None:
    """The letter of the option that an answer chooses; None where it names none, or several."""
    text = answer.strip()
    for pattern in (r"\(?([A-Za-z])\)?[.:)]?", r"\(?([A-Za-z])[.:)](?![A-Za-z]).*", r"\(([A-Za-z])\).*"):
        if found := re.fullmatch(pattern, text, re.DOTALL):
            return found[1].upper()
    if found := re.search(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-Z])\b", text, re.IGNORECASE):
        return found[1].upper()
    named = set(re.findall(r"\(([A-Z])\)", text))
    return named.pop() if len(named) == 1 else None


RULES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "vqa": vqa,
    "anls": anls,
    "relaxed": relaxed,
    "choice": choice,
}


def check_answers(right: Sequence[str], rule: str, where: str) -> None:
    """Say whether a rule can grade by these answers.

    Args:
        right: the answers; none: nothing is graded.
        rule: a name of :data:`RULES`.
        where: the row, for messages.

    Raises:
        FlowpruneError: it cannot; names the row.
    """
    if rule == "vqa" and 0 < len(right) < VQA_PEOPLE:
        raise FlowpruneError(
            f"{where} has {len(right)} answers, and data.score=vqa counts people who agree, of {VQA_PEOPLE} or more: "
            "set data.score=exact."
        )
    if rule == "choice" and (other := [each for each in right if not re.fullmatch(r"\(?[A-Za-z]\)?\.?", each)]):
        raise FlowpruneError(
            f"{where} has the answer {other[0]!r}, and data.score=choice takes letters: name the option's letter."
        )
