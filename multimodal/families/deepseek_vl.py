"""DeepSeek-VL: as LLaVA-1.5, under other names."""

from transformers import PreTrainedModel

from multimodal.families.llava import Llava


class DeepseekVL(Llava):
    """``DeepseekVLForConditionalGeneration``."""

    model_type = "deepseek_vl"

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.base.vision_model
