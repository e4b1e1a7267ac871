"""Images in tiles as LLaVA-NeXT reads them: a base view, then the tiles of the best resolution without its padding."""

from collections.abc import Sequence

from tiny_models.family import Token

PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
SIZES = [(40, 60), (64, 64), (30, 90), (32, 32)]


def tiles_of(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Rows and columns of tiles: those of the pinpoint that shows most of the image, then wastes least."""
    height, width = size

    def fit(point: Sequence[int]) -> tuple[int, int]:
        scale = min(point[0] / height, point[1] / width)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return shown, shown - point[0] * point[1]

    best = max(PINPOINTS, key=fit)
    return best[0] // tile, best[1] // tile


def tile_tokens(size: tuple[int, int], side: int, tile: int) -> list[Token]:
    """Tokens of the high-resolution view, each row with a newline token.

    Args:
        size: (height, width) of the image.
        side: patches along a tile.
        tile: pixels along a tile.
    """
    height, width = size
    down, across = tiles_of(size, tile)
    rows, columns = down * side, across * side
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * columns / width, 7))) // 2
    else:
        left = (columns - int(round(width * rows / height, 7))) // 2
    tokens: list[Token] = []
    for row in range(top, rows - top):
        for column in range(left, columns - left):
            tokens.append({(1 + row // side * across + column // side, row % side, column % side): 1.0})
        tokens.append(None)
    return tokens
