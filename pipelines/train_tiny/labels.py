"""What a scene says about each patch, in words of the vocabulary, and its picture as a tensor.

Every patch has five slots: colour, shape, glyph (digit or letter), row and column. The words serve as class labels for
the tower and, summed as embeddings, as the *symbolic* picture for the decoder and as first target of the projector.
"""

import numpy as np
import torch
from torch import nn

from pipelines.data.scenes import SIZE, Item, Scene, render
from pipelines.train_tiny.model import BACKGROUND, PAD, VOCABULARY

SLOTS = ("colour", "shape", "glyph", "row", "column")
NOTHING = VOCABULARY[PAD]
IGNORED = -100
HEART = 0.36


def patch_words(scene: Scene, patch: int) -> np.ndarray:
    """Word ids of every patch: [patches, 5].

    The patches at the heart of an item name it, those at its edge are ``IGNORED``; an empty slot is ``NOTHING``.
    """
    side = SIZE // patch
    centres = (np.mgrid[:side, :side].reshape(2, -1).T[:, ::-1] + 0.5) * patch
    words = np.full((side * side, len(SLOTS)), NOTHING)
    words[:, 0] = VOCABULARY[BACKGROUND]
    items = scene.distractors + scene.objects
    for item in items:
        words[np.abs(centres - item.centre).max(axis=1) < (item.size + patch) / 2] = IGNORED
    for item in items:
        heart = max(HEART * item.size, patch * 0.71)
        words[np.linalg.norm(centres - item.centre, axis=1) < heart] = _item_words(item)
    return words


def _item_words(item: Item) -> list[int]:
    return [VOCABULARY[word or PAD] for word in (item.colour, item.shape, item.glyph, *item.place)]


def scene_words(scene: Scene) -> np.ndarray:
    """Which words a caption of the scene would hold, multi-hot: [vocabulary]."""
    hot = np.zeros(len(VOCABULARY), np.float32)
    for item in scene.objects + scene.distractors:
        hot[_item_words(item)[:3]] = 1
    hot[NOTHING] = 0
    return hot


def edges_as_background(words: torch.Tensor) -> torch.Tensor:
    """Call the edges of items background: [..., 5] -> [..., 5]."""
    edge = words.new_tensor([VOCABULARY[BACKGROUND]] + [NOTHING] * (len(SLOTS) - 1))
    return torch.where(words == IGNORED, edge, words)


def symbolic_picture(words: torch.Tensor, embedding: nn.Embedding) -> torch.Tensor:
    """The sum of a patch's words as embeddings, edges as background: [..., 5] -> [..., hidden]."""
    words = edges_as_background(words)
    return (embedding(words) * (words != NOTHING).unsqueeze(-1)).sum(dim=-2)


def pictures(scenes: list[Scene]) -> torch.Tensor:
    """Pixel values exactly as the processor makes them: [scenes, 3, 224, 224]."""
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
