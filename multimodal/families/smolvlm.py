"""SmolVLM: as Idefics3; a video's frames are images."""

from torch import Tensor
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from multimodal.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration``; of images that are all 0, the model reads one."""

    model_type = "smolvlm"
    connector = SmolVLMConnector

    def tiles(self, pixels: Tensor) -> int:
        return max(super().tiles(pixels), 1)
