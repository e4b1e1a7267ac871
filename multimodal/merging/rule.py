"""The contract of a merging rule: it is told a method and a count, and leaves exactly that many tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal.errors import FlowpruneError, one_sentence
from multimodal.ranges import SearchRange
from multimodal.selection import Selection

if TYPE_CHECKING:
    from multimodal.methods.method import Method, VisualTokens


class MergingRule(BaseModel):
    """How the tokens that a method does not keep merge, at every step, in place of the method's own rule.

    Args:
        rule: its name.
        weight: w; a token that stands for n tokens gets w · log n added to its attention logit in every later layer
            and decoding step. Needs an additive mask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    registry: ClassVar[dict[str, type["MergingRule"]]] = {}
    #: whether it asks the method for the importance of every token, which greedy methods have none of
    needs_score: ClassVar[bool] = False

    rule: str
    weight: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(1,))] = 0.0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        cls.registry[cls.model_fields["rule"].default] = cls

    def reduce(self, method: "Method", tokens: "VisualTokens", count: int) -> Selection:
        """Leave exactly ``count`` tokens of each image, merged ones included."""
        raise NotImplementedError


def merging_named(name: object) -> type[MergingRule]:
    """The rule of that name.

    Raises:
        FlowpruneError: there is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in MergingRule.registry:
        raise FlowpruneError(f"There is no merging rule {name!r}: choose one of {', '.join(MergingRule.registry)}.")
    return MergingRule.registry[name]


def make_merging(values: Mapping[str, Any]) -> MergingRule:
    """A rule from its name and parameters.

    Raises:
        FlowpruneError: there is no such rule, or a parameter is unknown or out of bounds.
    """
    try:
        return merging_named(values.get("rule")).model_validate(dict(values))
    except ValidationError as error:
        raise FlowpruneError(one_sentence(error, "merging.")) from error
