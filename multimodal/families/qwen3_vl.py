"""Qwen3-VL: as Qwen2-VL, with features of several tower layers added again after the first language-model layers."""

from multimodal.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``; a video's grids stand between time stamps."""

    model_type = "qwen3_vl"

    @property
    def deepstack_layers(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)


class Qwen3VLMoe(Qwen3VL):
    """``Qwen3VLMoeForConditionalGeneration``."""

    model_type = "qwen3_vl_moe"
