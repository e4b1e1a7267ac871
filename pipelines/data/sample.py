"""One question about pictures or videos, with what is known about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from pipelines.data.pictures import Picture, drawn
from pipelines.data.videos import Video

Role = Literal["system", "user", "assistant"]
Medium = Picture | Video


@dataclass(frozen=True)
class Turn:
    """What one side says: texts, pictures and videos, in their order."""

    role: Role
    parts: tuple[str | Medium, ...]

    @property
    def text(self) -> str:
        """Without what is shown."""
        return " ".join(part.strip() for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Sample:
    """What every data source yields.

    Args:
        turns: the conversation, which ends with the question; no chat markup in it.
        answers: those that are right; none where that is not known.
        kind: the kind of question (for example ``colour``), or None.
        regions: boxes (left, top, right, bottom) in pixels of what the question asks about; empty when unknown.
        where: the row or file, for messages.
        template: options of the model's chat template.
    """

    turns: tuple[Turn, ...]
    answers: tuple[str, ...] = ()
    kind: str | None = None
    regions: tuple[tuple[int, int, int, int], ...] = field(default=())
    where: str = "The sample"
    template: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def asking(cls, image: Image.Image | Picture, question: str, answer: str | None = None, **known: Any) -> "Sample":
        """One question about one picture.

        Args:
            image: the picture.
            question: the user's text.
            answer: the known one, or None.
            known: other arguments of the sample.
        """
        picture = image if isinstance(image, Picture) else drawn(image)
        return cls((Turn("user", (picture, question)),), () if answer is None else (answer,), **known)

    @property
    def media(self) -> list[Medium]:
        """Pictures and videos, in their order."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]

    @property
    def pictures(self) -> list[Picture]:
        """Pictures, in their order."""
        return [each for each in self.media if isinstance(each, Picture)]

    @property
    def videos(self) -> list[Video]:
        """Videos, in their order."""
        return [each for each in self.media if isinstance(each, Video)]

    @property
    def image(self) -> Image.Image:
        """The first picture, or first frame of the first video, as RGB; black where only the processor can read it."""
        first = self.media[0]
        shown = first if isinstance(first, Picture) else first.first
        return Image.new("RGB", (64, 64)) if shown is None else shown.shown()

    @property
    def question(self) -> str:
        """What is asked, in words."""
        return self.turns[-1].text

    @property
    def answer(self) -> str | None:
        """The first right answer."""
        return self.answers[0] if self.answers else None

    def redrawn(self, change: Callable[[Image.Image], Image.Image], name: str) -> "Sample":
        """The same with every picture changed.

        Args:
            change: of one picture.
            name: of the change, which tells the sample from others.
        """
        changed = (
            tuple(part if isinstance(part, str) else part.changed(change, name) for part in turn.parts)
            for turn in self.turns
        )
        return replace(
            self, turns=tuple(Turn(turn.role, parts) for turn, parts in zip(self.turns, changed, strict=True))
        )
