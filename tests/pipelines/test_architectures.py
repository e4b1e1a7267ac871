"""conf/model describes the models that were published: sizes as their papers and hub pages give them."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForImageTextToText

from multimodal.families import geometry_of, modules_of

CONF = Path(__file__).parents[2] / "conf/model"
# billions of parameters, layers, hidden size, key-value heads, layers of the tower, visual tokens of a large picture
PUBLISHED = {
    "gemma3_4b": (4.30, 34, 2560, 4, 27, 256),
    "glm_4_1v_9b": (10.29, 40, 4096, 2, 24, None),
    "idefics3_8b": (8.46, 32, 4096, 8, 27, None),
    "internvl3_8b": (7.94, 28, 3584, 4, 24, None),
    "llava_1_5_7b": (7.06, 32, 4096, 32, 24, 576),
    "llava_next_7b": (7.06, 32, 4096, 32, 24, 2928),
    "llava_next_video_7b": (7.06, 32, 4096, 32, 24, 2928),
    "llava_onevision_7b": (8.03, 28, 3584, 4, 26, 3699),
    "paligemma2_3b": (3.03, 26, 2304, 4, 27, 1024),
    "qwen2_5_vl_7b": (8.29, 28, 3584, 4, 32, None),
    "qwen2_vl_7b": (8.29, 28, 3584, 4, 32, None),
    "qwen3_vl_8b": (8.77, 36, 4096, 8, 27, None),
    "smolvlm2_2b": (2.25, 24, 2048, 32, 27, None),
}


def test_every_published_model_is_here():
    assert set(PUBLISHED) == {path.stem for path in CONF.glob("*.yaml")} - {"tiny", "dino", "path"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_architecture_is_the_published_one(name):
    billions, layers, hidden, heads, tower, visual = PUBLISHED[name]
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml").architecture)
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    modules, text = modules_of(model), config.get_text_config()
    parameters = sum(each.numel() for each in {id(each): each for each in model.parameters()}.values())
    assert round(parameters / 1e9, 2) == billions
    assert (len(modules.text_layers), text.hidden_size, text.num_key_value_heads) == (layers, hidden, heads)
    assert modules.geometry.vision_layers == tower
    assert geometry_of(config).image_token_id < model.get_input_embeddings().weight.shape[0]
    found = sum(layout.visual_tokens for layout in geometry_of(config).layouts(geometry_of(config).random_image()))
    assert visual in (None, found)
