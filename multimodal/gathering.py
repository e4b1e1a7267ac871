"""Tokens of a batch by index."""

from torch import Tensor


def tokens_at(values: Tensor, index: Tensor) -> Tensor:
    """What the tokens of an index carry: ``[images, n, C]`` at ``[images, k]`` → ``[images, k, C]``."""
    return values.gather(1, widened(index, values))


def widened(index: Tensor, values: Tensor) -> Tensor:
    """An index of tokens ``[images, k]`` as ``gather`` and ``scatter`` along tokens want it: ``[images, k, C]``."""
    return index.unsqueeze(-1).expand(-1, -1, values.shape[-1])
