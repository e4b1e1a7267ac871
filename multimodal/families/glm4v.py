"""GLM-4.1V and GLM-4.6V: as Qwen2-VL, but the frames of a video have the placeholders of images."""

from multimodal.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """``Glm4vForConditionalGeneration``; a batch has images or videos, since the model tells their tokens not apart."""

    model_type = "glm4v"

    @property
    def video_token_id(self) -> int:
        return self.image_token_id


class Glm46V(Glm4V):
    """``Glm46VForConditionalGeneration``."""

    model_type = "glm46v"
