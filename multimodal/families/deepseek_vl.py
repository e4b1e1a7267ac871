"""DeepSeek-VL: as LLaVA-1.5, under other names."""

from multimodal.families.llava import Llava


class DeepseekVL(Llava):
    """``DeepseekVLForConditionalGeneration``."""

    model_type = "deepseek_vl"
    tower_path = "vision_model"
