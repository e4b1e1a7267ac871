"""One answer as it grows: characters of several tokens, ends, stops, limits."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipelines.serving.answer import Answer

END = 256


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)} | {"<end>": END}, merges=[]))
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


def told(
    tokenizer, text: str, stops: tuple[str, ...] = (), limit: int = 99, end: bool = True
) -> tuple[list[str], Answer]:
    answer = Answer(tokenizer, [END], stops, limit)
    ids = tokenizer(text)["input_ids"] + [END] * end
    return [answer.add(token) for token in ids], answer


def test_a_character_of_several_tokens_is_told_when_it_is_whole(tokenizer):
    parts, answer = told(tokenizer, "a世界b")
    assert "".join(parts) == "a世界b" and "�" not in "".join(parts)
    assert answer.finish_reason == "stop" and answer.tokens == 9  # with the end


@pytest.mark.parametrize("stop", [("END",), ("EN", "never"), ("xEND",)])
def test_no_part_of_a_stop_is_told(tokenizer, stop):
    parts, answer = told(tokenizer, "an ExENDless day", stop)
    assert "".join(parts) == "an ExENDless day".partition(stop[0])[0]
    assert answer.finish_reason == "stop" and parts[-1] == ""


def test_what_began_like_a_stop_is_told_in_the_end(tokenizer):
    assert "".join(told(tokenizer, "an EN", ("END",))[0]) == "an EN"


def test_a_limit_ends_it(tokenizer):
    parts, answer = told(tokenizer, "abcdef", limit=3)
    assert "".join(parts) == "abc" and answer.finish_reason == "length" and answer.tokens == 3


def test_a_character_cut_off_by_the_limit_is_told_as_the_tokenizer_decodes_it(tokenizer):
    parts, _ = told(tokenizer, "a世", limit=3, end=False)
    assert "".join(parts) == tokenizer.decode(tokenizer("a世")["input_ids"][:3])
