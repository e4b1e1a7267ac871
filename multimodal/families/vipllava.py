"""ViP-LLaVA: as LLaVA-1.5, from the features of several tower layers."""

from collections.abc import Sequence

from multimodal.families.llava import Llava


class VipLlava(Llava):
    """``VipLlavaForConditionalGeneration``."""

    model_type = "vipllava"

    @property
    def feature_states(self) -> Sequence[int]:
        return self.config.vision_feature_layers
