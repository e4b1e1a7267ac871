"""Conversations as LLaVA, ShareGPT and chat messages write them, and the places of pictures in their texts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multimodal import FlowpruneError
from pipelines.data.media import Origin, Place
from pipelines.data.sample import Medium, Role, Turn
from pipelines.data.videos import Video

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_MARKS = re.compile("(<image>|<video>)")


@dataclass(frozen=True)
class Spot:
    """A place in a text for a picture or video that is named elsewhere."""

    mark: str


@dataclass
class Draft:
    """A turn whose spots are not filled yet."""

    role: Role
    parts: list[str | Medium | Spot] = field(default_factory=list)

    @property
    def words(self) -> str:
        """Its texts together."""
        return " ".join(part.strip() for part in self.parts if isinstance(part, str)).strip()


def read_turns(value: Any, name: str, origin: Origin) -> tuple[list[Draft], str]:
    """The turns up to the last question, and what is answered to that, if anything.

    Args:
        value: one question, or a list of turns.
        name: of its column.
        origin: the row.

    Raises:
        FlowpruneError: there is no question, or a turn is strange; names the row.
    """
    if isinstance(value, str):
        turns = [Draft("user", _split(value))]
    else:
        listed = enumerate(value) if isinstance(value, list) else ()
        turns = [_turn(turn, (name, number), origin) for number, turn in listed]
    after = ""
    while turns and turns[-1].role != "user":
        after = turns.pop().words
    if not turns or not turns[-1].words:
        raise FlowpruneError(f"{origin.where} has no question: every row needs an image and a question.")
    return turns, after


def _turn(turn: Any, place: Place, origin: Origin) -> Draft:
    if not isinstance(turn, Mapping):
        raise FlowpruneError(f"{origin.where} has a turn that is no object: give each its role and content.")
    who = turn.get("from") or turn.get("role")
    key = "value" if turn.get("value") is not None else "content"
    if not isinstance(who, str) or who not in ROLES:
        raise FlowpruneError(f"{origin.where} has a turn of {who!r}: only {', '.join(ROLES)} take part.")
    said, draft = turn.get(key), Draft(ROLES[who])
    for number, part in enumerate(said if isinstance(said, list) else [said]):
        draft.parts += _part(part, (*place, key, number), origin)
    return draft


def _part(part: Any, place: Place, origin: Origin) -> list[str | Medium | Spot]:
    if part is None or isinstance(part, str):
        return _split(part or "")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return _split(part["text"])
    if kind in ("image", "image_url", "video"):
        held = next((key for key in (kind, "path", "url") if part.get(key)), None)
        if held is None:
            return [Spot(f"<{kind.removesuffix('_url')}>")]
        if kind == "video":
            return [*origin.videos(part[held], part.get("fps"))]
        return [*origin.pictures(part[held], (*place, held))]
    raise FlowpruneError(f"{origin.where} has a turn with a part of type {kind!r}: give text, image or video.")


def _split(text: str) -> list[str | Medium | Spot]:
    return [Spot(part) if _MARKS.fullmatch(part) else part for part in _MARKS.split(text) if part]


def filled(drafts: Sequence[Draft], shown: Sequence[Medium], where: str) -> tuple[Turn, ...]:
    """The turns with what is shown in its spots; where the text has none, it comes before the first question.

    Args:
        drafts: at least one of the user's.
        shown: pictures and videos, in their order.
        where: the row, for messages.

    Raises:
        FlowpruneError: the text has other spots than there are pictures or videos.
    """
    left: dict[str, list[Medium]] = {"<image>": [], "<video>": []}
    for medium in shown:
        left["<video>" if isinstance(medium, Video) else "<image>"].append(medium)
    first = next(draft for draft in drafts if draft.role == "user")
    for mark, media in left.items():
        spots = sum(part == Spot(mark) for draft in drafts for part in draft.parts)
        if not spots:
            first.parts[:0] = media
        elif spots != len(media):
            raise FlowpruneError(f"{where} has {spots} {mark} in its text and names {len(media)}: make them as many.")
    turns = (
        Turn(draft.role, _trimmed([left[p.mark].pop(0) if isinstance(p, Spot) else p for p in draft.parts]))
        for draft in drafts
    )
    return tuple(turn for turn in turns if turn.parts)


def ask(question: str, shown: Sequence[Medium], where: str) -> Turn:
    """A question about what is shown, which comes first, or where the text says.

    Raises:
        FlowpruneError: the text has other spots than there are pictures or videos.
    """
    [turn] = filled([Draft("user", _split(question))], shown, where)
    return turn


def _trimmed(parts: list[str | Medium]) -> tuple[str | Medium, ...]:
    """Without the white space around all texts together, such as the line break after LLaVA's placeholder."""
    texts = [number for number, part in enumerate(parts) if isinstance(part, str)]
    for number in texts[:1]:
        parts[number] = str(parts[number]).lstrip()
    for number in texts[-1:]:
        parts[number] = str(parts[number]).rstrip()
    return tuple(part for part in parts if part != "")
