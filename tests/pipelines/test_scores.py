"""What an answer is worth, worked out by hand from the benchmarks' definitions."""

import pytest

from multimodal import FlowpruneError
from pipelines.scores import RULES, check_answers, levenshtein, score

TEN = ["yes"] * 2 + ["no"] * 7 + ["maybe"]


@pytest.mark.parametrize(
    ("rule", "answer", "right", "expected"),
    [
        ("exact", " Red. ", ["red"], 1),
        ("exact", "dark  red", ["blue", "dark red"], 1),
        ("exact", "red car", ["red"], 0),
        # Two of ten agree: leaving one of them out, 1/3 (twice); leaving another out, 2/3 (eight times): .6.
        ("vqa", "yes", TEN, 0.6),
        ("vqa", "no", TEN, 1),
        ("vqa", "maybe", TEN, 0.3),  # 0 once, 1/3 nine times
        ("vqa", "Yes.", ["yes"] * 3 + ["no"] * 7, 0.9),  # 2/3 three times, 1 seven times
        ("vqa", "blue", TEN, 0),
        ("vqa", "The two dogs!", ["2 dogs"] * 10, 1),
        ("vqa", "dont know", ["don't know"] * 10, 1),
        ("vqa", "its", ["it's"] * 10, 0),  # two words
        ("vqa", "1,000", ["1000"] * 10, 1),
        ("vqa", "3.5", ["35"] * 10, 0),
        ("vqa", "black-white", ["black white"] * 10, 1),
        ("vqa", "none", ["0"] * 10, 1),
        ("anls", "hello", ["hello"], 1),
        ("anls", "Hella", ["hello"], 0.8),  # one letter of five
        ("anls", "hexyz", ["hello"], 0),  # three of five: less alike than a half
        ("anls", "abxy", ["abcd"], 0.5),  # half alike, which DocVQA's evaluation counts
        ("anls", "kitten", ["sitting", "kitting"], 1 - 2 / 7),
        ("anls", " new   york ", ["New York"], 1),
        ("relaxed", "104", ["100"], 1),
        ("relaxed", "95", ["100"], 1),
        ("relaxed", "94", ["100"], 0),
        ("relaxed", "-100", ["100"], 0),
        ("relaxed", "52%", ["0.5"], 1),
        ("relaxed", "0.01", ["0"], 0),  # no share of nothing
        ("relaxed", "0", ["0"], 1),
        ("relaxed", "Norway", ["norway"], 1),
        ("relaxed", "Norwey", ["norway"], 0),
        ("relaxed", "7", ["x", "7.1"], 1),
        ("choice", "B", ["B"], 1),
        ("choice", "(b)", ["B"], 1),
        ("choice", "B. a cat", ["(B)"], 1),
        ("choice", "B) A dog", ["A"], 0),
        ("choice", "The answer is C.", ["C"], 1),
        ("choice", "Answer: (D) because", ["d"], 1),
        ("choice", "It must be (A), I think", ["A"], 1),
        ("choice", "A cat", ["A"], 0),  # an article
        ("choice", "(A) or (B)", ["B"], 0),
        ("choice", "", ["A"], 0),
    ],
)
def test_scores(rule: str, answer: str, right: list[str], expected: float) -> None:
    assert score(answer, right, rule) == pytest.approx(expected)


def test_letters_that_differ() -> None:
    assert [levenshtein(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", "abc"), ("ab", "ba"))] == [
        3,
        3,
        0,
        2,
    ]


def test_a_rule_that_cannot_grade_says_so() -> None:
    with pytest.raises(FlowpruneError, match=r"here has 1 answers, and data\.score=vqa counts people who agree, of 4"):
        check_answers(["yes"], "vqa", "here")
    with pytest.raises(FlowpruneError, match=r"here has the answer '2', and data\.score=choice takes letters"):
        check_answers(["2"], "choice", "here")
    for rule in RULES:
        check_answers([], rule, "here")
    check_answers(["yes"] * 4, "vqa", "here")
    check_answers(["(A)"], "choice", "here")
