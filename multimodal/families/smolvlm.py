"""SmolVLM: as Idefics3; a video's frames are images."""

from multimodal.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration``."""

    model_type = "smolvlm"
