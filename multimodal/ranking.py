"""Which tokens rank highest: what methods are made of. Ties go to the earlier token; nothing waits for the device."""

import torch
from torch import Tensor


def highest(score: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """Sorted indices of the ``count`` highest scores ``[images, count]``.

    Args:
        score: ``[images, n]``.
        count: at most n.
        first: a class of each token ``[images, n]``; those of a higher one come first, whatever their score.
    """
    return ranked(score, first)[:, :count].sort(1).values


def ranked(score: Tensor, first: Tensor | None = None) -> Tensor:
    """Indices of all tokens, highest score first ``[images, n]``; arguments as of :func:`highest`."""
    order = score.argsort(dim=1, descending=True, stable=True)
    if first is None:
        return order
    return order.gather(1, first.gather(1, order).argsort(dim=1, descending=True, stable=True))


def others(chosen: Tensor, tokens: int) -> Tensor:
    """Sorted indices of the tokens that were not chosen ``[images, tokens − chosen]``.

    Args:
        chosen: indices, none twice ``[images, chosen]``.
        tokens: how many there are.
    """
    return (1 - marked(chosen, tokens)).argsort(dim=1, descending=True, stable=True)[:, : tokens - chosen.shape[1]]


def marked(chosen: Tensor, tokens: int) -> Tensor:
    """1 where a token was chosen, else 0 ``[images, tokens]``; arguments as of :func:`others`."""
    return torch.zeros(len(chosen), tokens, dtype=torch.long, device=chosen.device).scatter(1, chosen, 1)


def rank_within(score: Tensor, group: Tensor, groups: int) -> Tensor:
    """Place of each token among those of its group, 0 for the highest score ``[images, n]``.

    Args:
        score: ``[images, n]``.
        group: number of each token's group ``[images, n]``.
        groups: how many there are.
    """
    order = ranked(score, -group)  # group after group
    sizes = torch.zeros(len(score), groups, dtype=torch.long, device=score.device)
    sizes = sizes.scatter_add(1, group, torch.ones_like(group))
    return order.argsort(1) - (sizes.cumsum(1) - sizes).gather(1, group)
