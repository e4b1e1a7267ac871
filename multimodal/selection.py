"""What one pruning step leaves of every image: which tokens, and how the others merge into them."""

from typing import NamedTuple

import torch
from torch import Tensor

from multimodal.gathering import tokens_at, widened

CHUNK = 1 << 26  # values on their way at once


class Selection(NamedTuple):
    """A step's decision, before it touches anything that the tokens carry.

    What merges is a list of edges: token ``source`` goes into kept token ``owner`` with weight ``share``. Rules in
    which every token goes into at most one other leave ``source`` out.

    Args:
        kept: sorted indices into the step's tokens ``[images, count]``.
        owner: which of the kept each edge goes into ``[images, edges]``, ``count`` for one that is dropped; a kept
            token needs an edge into itself. None: nothing merges.
        share: weight of each edge ``[images, edges]``; a mean where those of an owner sum to 1.
        source: which of the n tokens each edge starts from ``[images, edges]``; None: edge i from token i.
    """

    kept: Tensor
    owner: Tensor | None = None
    share: Tensor | None = None
    source: Tensor | None = None

    def apply(self, values: Tensor) -> Tensor:
        """What the kept tokens carry, of what all of them did ``[images, n, C]`` → ``[images, count, C]``."""
        images, count = self.kept.shape
        if self.owner is None or self.share is None:
            return tokens_at(values, self.kept)
        merged = torch.zeros(images, count + 1, values.shape[-1], dtype=torch.float32, device=values.device)
        edges = self.owner.shape[1]
        step = edges if self.source is None else max(1, CHUNK // values[:, 0].numel())
        for first in range(0, edges, step):
            part = slice(first, first + step)
            given = values if self.source is None else tokens_at(values, self.source[:, part])
            given = given.float() * self.share[:, part].unsqueeze(-1)
            merged.scatter_add_(1, widened(self.owner[:, part], values), given)
        return merged[:, :count].to(values.dtype)

    def sizes(self, before: Tensor | None = None) -> Tensor | None:
        """How many tokens each stands for ``[images, count]``, float32; None: one.

        Args:
            before: how many each of the n tokens stood for; None: one.
        """
        if self.owner is None:
            return None
        if before is None:
            before = torch.ones((), dtype=torch.float32, device=self.owner.device).expand(self.owner.shape)
        elif self.source is not None:
            before = before.gather(1, self.source)
        images, count = self.kept.shape
        sizes = torch.zeros(images, count + 1, dtype=torch.float32, device=self.owner.device)
        return sizes.scatter_add_(1, self.owner, before)[:, :count]
