"""What a scene says about each patch, in words of the vocabulary, and its picture as a tensor.

Every patch has five slots: colour, shape, glyph (digit or letter), row and column. A patch is called what is seen there
and no more: the glyph where the glyph is, the shape around it, and elsewhere the ground, by its shade and texture. So
no object is known from one patch alone, and the ground is named as fully as the objects are. The words serve as class
labels for the tower and, summed as embeddings, as the *symbolic* picture for the decoder and as first target of the
projector.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.data.describing import place_of
from pipelines.data.scenes import SIZE, Scene, render
from pipelines.train_tiny.model import PAD, VOCABULARY

SLOTS = ("colour", "shape", "glyph", "row", "column")
NOTHING = VOCABULARY[PAD]
IGNORED = -100
GROUND, EDGE, FILL, GLYPH = range(4)
GLYPH_REACH, FILL_REACH = 0.3, 0.5


def patch_labels(scenes: list[Scene], patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Word ids [scenes, patches, 5], ``NOTHING`` in an empty slot, and the role of every patch [scenes, patches].

    The role is ``GLYPH`` or ``FILL`` in the middle of an item, ``EDGE`` around it and ``GROUND`` elsewhere. An edge has
    the words of the ground.
    """
    words, roles = zip(*(_labels(scene, patch) for scene in scenes), strict=True)
    return torch.from_numpy(np.stack(words)), torch.from_numpy(np.stack(roles))


def _labels(scene: Scene, patch: int) -> tuple[np.ndarray, np.ndarray]:
    side = SIZE // patch
    centres = (np.mgrid[:side, :side].reshape(2, -1).T[:, ::-1] + 0.5) * patch
    grounds = np.array([_ids(ground.shade, ground.texture, PAD) for ground in scene.grounds])
    places = np.array([_ids(*place_of(x, y)) for x, y in centres.tolist()])
    words = np.concatenate([grounds[scene.ground_at(*centres.T)], places], axis=1)
    roles = np.full(len(centres), GROUND)
    for item in scene.items:
        roles[np.abs(centres - item.centre).max(axis=1) < (item.size + patch) / 2] = EDGE
    for item in scene.items:
        away = np.linalg.norm(centres - item.centre, axis=1) / item.size
        glyph, fill = away < GLYPH_REACH, (away >= GLYPH_REACH) & (away < FILL_REACH)
        words[fill] = _ids(item.colour, item.shape, PAD, *item.place)
        words[glyph] = _ids(item.colour, PAD, item.glyph, *item.place)
        roles[fill], roles[glyph] = FILL, GLYPH
    return words, roles


def _ids(*words: str) -> list[int]:
    return [VOCABULARY[word] for word in words]


def scene_words(scenes: list[Scene]) -> torch.Tensor:
    """Which words a caption of each scene would hold, multi-hot: [scenes, vocabulary]."""
    hot = torch.zeros(len(scenes), len(VOCABULARY))
    for row, scene in zip(hot, scenes, strict=True):
        for item in scene.items:
            row[_ids(item.colour, item.shape, item.glyph)] = 1
        for ground in scene.grounds:
            row[_ids(ground.shade, ground.texture)] = 1
    return hot


def symbolic_picture(words: torch.Tensor, embedding: nn.Embedding) -> torch.Tensor:
    """The sum of a patch's words as embeddings, all sums made equally long: [..., 5] -> [..., hidden]."""
    sums = (embedding(words) * (words != NOTHING).unsqueeze(-1)).sum(dim=-2)
    return F.normalize(sums, dim=-1) * sums.norm(dim=-1).mean()


def pictures(scenes: list[Scene]) -> torch.Tensor:
    """Pixel values exactly as the processor makes them: [scenes, 3, 224, 224]."""
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
