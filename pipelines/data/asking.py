"""What is put around every question: a system prompt, words before and after, options of the chat template."""

from dataclasses import replace

from pipelines.data.sample import Sample, Turn
from pipelines.settings import DataSettings


def as_asked(sample: Sample, data: DataSettings) -> Sample:
    """A sample as the model is asked, everywhere alike.

    Args:
        sample: as its source has it; a system prompt of its own stays.
        data: says what is put around it.
    """
    turns = sample.turns
    if data.system and turns[0].role != "system":
        turns = (Turn("system", (data.system,)), *turns)
    question = list(turns[-1].parts)
    texts = [number for number, part in enumerate(question) if isinstance(part, str)]
    if data.prefix:
        question[texts[0]] = _joined(data.prefix, str(question[texts[0]]))
    if data.suffix:
        question[texts[-1]] = _joined(str(question[texts[-1]]), data.suffix)
    turns = (*turns[:-1], Turn("user", tuple(question)))
    return replace(sample, turns=turns, template=data.template)


def _joined(first: str, second: str) -> str:
    """Two texts on lines of their own, unless one brings white space of its own where they meet."""
    apart = first[-1:].isspace() or second[:1].isspace()
    return f"{first}{second}" if apart else f"{first}\n{second}"
