"""What one pruning step leaves of every image: which tokens, and how the others merge into them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """A step's decision, before it touches anything that the tokens carry.

    Args:
        kept: sorted indices into the step's tokens ``[images, count]``.
        owner: which of the kept each of the n tokens goes into ``[images, n]``, itself included, ``count`` for one that
            is dropped; None: nothing merges.
        share: weight of each token in its owner ``[images, n]``, summing to 1 over an owner's tokens.
    """

    kept: Tensor
    owner: Tensor | None = None
    share: Tensor | None = None

    def apply(self, values: Tensor) -> Tensor:
        """What the kept tokens carry, of what all of them did ``[images, n, C]`` → ``[images, count, C]``."""
        images, count = self.kept.shape
        if self.owner is None or self.share is None:
            return values.gather(1, self.kept.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        weighted = values.float() * self.share.unsqueeze(-1)
        merged = torch.zeros(images, count + 1, values.shape[-1], dtype=torch.float32, device=values.device)
        merged.scatter_add_(1, self.owner.unsqueeze(-1).expand_as(values), weighted)
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
        images, count = self.kept.shape
        sizes = torch.zeros(images, count + 1, dtype=torch.float32, device=self.owner.device)
        return sizes.scatter_add_(1, self.owner, before)[:, :count]
