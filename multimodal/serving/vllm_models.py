"""vLLM's models, reading pruned images as rows of :mod:`multimodal.serving.rows`; imported by vLLM alone.

A rotary embedding of several *equal* axes is one of a single axis, and vLLM takes positions on several axes from the
model: so tokens of a family with one axis keep their own positions, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseProcessingInfo

from multimodal.serving.rows import columns, unpacked

AXES = 3  # that vLLM computes with, equal ones where the family has one


class Rows(BaseProcessingInfo):
    """Lets vLLM refuse images that do not come as rows."""

    own_axes = 1

    def _get_expected_hidden_size(self) -> int | None:
        width = super()._get_expected_hidden_size()
        return None if width is None else width + columns(self.own_axes)


class OwnPositions:
    """Reads the positions of rows; to vLLM, what it calls ``SupportsMRoPE``."""

    supports_mrope = True
    own_axes = 1
    config: Any

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        images = self._rows(kwargs)
        if images is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        return [rows[:, : self.config.get_text_config().hidden_size] for rows in images]

    def _rows(self, inputs: Mapping[str, Any]) -> Sequence[Tensor] | None:
        """Each image's; vLLM's own reading wants as many of each. None: images came as pixels."""
        return inputs.get("image_embeds")

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        handed_over = [(each, each.data["image_embeds"].data) for each in mm_features if "image_embeds" in each.data]
        if len(handed_over) < len(mm_features):
            return self._positions_of_pixels(input_tokens, mm_features)
        positions, read, following = [], 0, 0
        for feature, rows in sorted(handed_over, key=lambda each: each[0].mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            following += start - read
            positions.append(torch.arange(following - (start - read), following).expand(AXES, -1))
            own, span = unpacked(rows, self.own_axes)
            positions.append((own + following).expand(AXES, -1))
            following, read = following + span, start + length
        left = len(input_tokens) - read
        positions.append(torch.arange(following, following + left).expand(AXES, -1))
        return torch.cat(positions, 1), following + left - len(input_tokens)

    def _positions_of_pixels(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        return torch.arange(len(input_tokens)).expand(AXES, -1), 0


class SeveralAxes(OwnPositions):
    """Of a family whose positions have several axes anyway."""

    own_axes = AXES

    def _rows(self, inputs: Mapping[str, Any]) -> Sequence[Tensor] | None:
        rows = inputs.get("image_embeds")
        merged = self.config.vision_config.spatial_merge_size**2
        return None if rows is None else rows.split((inputs["image_grid_thw"].prod(-1) // merged).tolist())

    def _positions_of_pixels(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        return super(OwnPositions, self).get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]


class LlavaRows(Rows, LlavaProcessingInfo):
    """Of LLaVA."""


@MULTIMODAL_REGISTRY.register_processor(LlavaMultiModalProcessor, info=LlavaRows, dummy_inputs=LlavaDummyInputsBuilder)
class Llava(OwnPositions, LlavaForConditionalGeneration):
    """LLaVA-1.5."""


class LlavaNextRows(Rows, LlavaNextProcessingInfo):
    """Of LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextMultiModalProcessor, info=LlavaNextRows, dummy_inputs=LlavaDummyInputsBuilder
)
class LlavaNext(OwnPositions, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


class LlavaOnevisionRows(Rows, LlavaOnevisionProcessingInfo):
    """Of LLaVA-OneVision."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionMultiModalProcessor, info=LlavaOnevisionRows, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class LlavaOnevision(OwnPositions, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision."""


class Qwen2VLRows(Rows, Qwen2VLProcessingInfo):
    """Of Qwen2-VL."""

    own_axes = AXES


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLMultiModalProcessor, info=Qwen2VLRows, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class Qwen2VL(SeveralAxes, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


class Qwen2_5VLRows(Rows, Qwen2_5_VLProcessingInfo):
    """Of Qwen2.5-VL."""

    own_axes = AXES


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor, info=Qwen2_5VLRows, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen2_5VL(SeveralAxes, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""
