"""PaliGemma and PaliGemma 2: each patch one visual token; images and question attend both ways."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multimodal.errors import FlowpruneError
from multimodal.families.geometry import Geometry
from multimodal.layout import Layout


class PaliGemma(Geometry):
    """``PaliGemmaForConditionalGeneration``; PaliGemma 2's language model has sliding windows."""

    model_type = "paligemma"
    bidirectional = True
    first_position = 1

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": input_ids.new_zeros(input_ids.shape)}

    def bidirectional_blocks(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if (types := inputs.get("token_type_ids")) is None:
            raise FlowpruneError(
                "token_type_ids are missing, which say what of the prompt attends both ways: build the inputs with the "
                "model's own processor."
            )
        return (types[:, -inputs["input_ids"].shape[1] :] != 0).long().neg()

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        images, _, height, width = inputs["pixel_values"].shape
        grid = (height // self.patch_size, width // self.patch_size)
        return [Layout(grids=(grid,), views=(grid[0] * grid[1],))] * images

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        return list(views)
