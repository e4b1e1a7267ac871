"""Images in tiles as LLaVA-NeXT reads them: a base view, then the tiles of the best resolution without its padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from multimodal.testing.tiny_models.family import IMAGE_TOKEN, VISION, Media, Token, square

PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
SIZES = [(40, 60), (64, 64), (30, 90), (32, 32)]
SIDE, TILE = 8, VISION["image_size"]  # patches and pixels along a tile


def tiles_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles: those of the pinpoint that shows most of the image, then wastes least."""
    height, width = size

    def fit(point: Sequence[int]) -> tuple[int, int]:
        scale = min(point[0] / height, point[1] / width)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return shown, shown - point[0] * point[1]

    best = max(PINPOINTS, key=fit)
    return best[0] // TILE, best[1] // TILE


def image_tokens(size: tuple[int, int]) -> list[Token]:
    """Tokens of the base view, then of the high-resolution one, each row of that with a newline token."""
    height, width = size
    down, across = tiles_of(size)
    rows, columns = down * SIDE, across * SIDE
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * columns / width, 7))) // 2
    else:
        left = (columns - int(round(width * rows / height, 7))) // 2
    tokens = square(0, SIDE, SIDE)
    for row in range(top, rows - top):
        for column in range(left, columns - left):
            tokens.append({(1 + row // SIDE * across + column // SIDE, row % SIDE, column % SIDE): 1.0})
        tokens.append(None)
    return tokens


def views(size: tuple[int, int]) -> int:
    down, across = tiles_of(size)
    return 1 + down * across


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    size = SIZES[number % len(SIZES)]
    pixels = torch.randn(1, views(size), 3, TILE, TILE, generator=generator)
    return Media({"pixel_values": pixels, "image_sizes": torch.tensor([size])}, [IMAGE_TOKEN] * len(image_tokens(size)))


def tokens(video_tokens: Callable[[int], list[Token]], model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    images = [image_tokens(tuple(size)) for size in inputs["image_sizes"].tolist()] if "image_sizes" in inputs else []
    return images + [video_tokens(len(frames)) for frames in inputs.get("pixel_values_videos", ())]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    shown = []
    if "image_sizes" in inputs:
        for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True):
            shown += [[picture] for picture in pixels[: views(tuple(size))]]
    return shown + [[frame] for frames in inputs.get("pixel_values_videos", ()) for frame in frames]
