"""Writes the trained model where ``from_pretrained`` finds it, and the card that says how it was made and measured."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.scenes import KINDS

CARD = """# A small, really trained LLaVA

`LlavaForConditionalGeneration` in float16: CLIP tower with CLS (224 px, 256 visual tokens, features of layer -2 without
CLS), two-layer projector, Qwen2 decoder, word-level vocabulary. It answers short questions about drawn scenes
(`pipelines/data/scenes.py`) and nothing else; words it does not know become `<unk>`.

Made by `python -m pipelines.train_tiny` with `conf/train_tiny.yaml` (seed {seed}, float32 on a CPU) from pictures drawn
by the same code: no outside data, no outside weights. It went on from the model that was in `{start}` before.

## Exact match, greedy, {samples} questions of the test split

The first row is what a user gets: chat template, processor, `generate()`. `keep`: share of the 256 visual tokens that
reach the decoder, kept in one step, at their original positions; the last column is the mean as a share of the first
row's. Lengths and distances from the picture's mean are those of the visual tokens or of the tower's features before
the projector; entropy and variance those of a patch's grey levels. Attention is that of the tower layer that feeds the
projector: column mean of the head mean (received), or the row of the CLS. The oracle keeps the tokens nearest to the
middles of the boxes that the question asks about. In the last row the text sees all visual tokens in the first decoder
layers and none later.

{table}

## Last log line of every stage

Seconds count from the last start or resumption.

```text
{log}
```
"""


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save weights in float16, configs, tokenizer and processor."""
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)


def card_table(rows: dict[str, dict[str, float]]) -> str:
    """Accuracy rows as a Markdown table; the last column compares with the first row."""
    columns = (*KINDS, "mean")
    whole = next(iter(rows.values()))["mean"]
    lines = ["| tokens | " + " | ".join((*columns, "share")) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" for column in columns] + [f"{row['mean'] / whole:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_card(folder: Path, table: str, log_file: Path, config: DictConfig) -> None:
    """Write README.md with the measured table and how each stage ended."""
    last = {line.split()[0]: line for line in log_file.read_text().splitlines()}
    log = "\n".join(last.values())
    samples = config.evaluate.samples
    card = CARD.format(seed=config.seed, start=config.start, samples=samples, table=table, log=log)
    (folder / "README.md").write_text(card)
