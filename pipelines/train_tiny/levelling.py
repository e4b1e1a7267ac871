"""Penalties that keep trivial statistics of visual tokens, and in part attention, from telling where items are."""

import torch

from pipelines.train_tiny.labels import EDGE, FILL, GLYPH

PARTS = (0.55, 0.8)
SOFTNESS = 0.2


def tell_tale(tokens: torch.Tensor, roles: torch.Tensor) -> torch.Tensor:
    """How far a token's length and its distance from the mean token tell its role: a mean of squared correlations.

    Squared deviations are correlated as well, or items could be the longest and the shortest tokens at once. Edges of
    items do not count.

    Args:
        tokens: visual tokens, [pictures, patches, width].
        roles: what each patch is, [pictures, patches].
    """
    counted = (roles != EDGE).float()
    told = []
    for offset in (0.0, tokens.mean(dim=1, keepdim=True)):
        statistic = _standard((tokens - offset).norm(dim=-1).log(), counted)
        for value in (statistic, _standard(statistic.square(), counted)):
            for role in (GLYPH, FILL):
                told.append((value * _standard((roles == role).float(), counted) * counted).sum(1) / counted.sum(1))
    return torch.stack(told).square().mean()


def gaze(attention: torch.Tensor, roles: torch.Tensor) -> torch.Tensor:
    """How far the share of items among the tenth of the patches with most attention is from ``PARTS``, squared.

    A tower trained on labels looks at little else than items, so that the attention received would be an oracle, and
    its CLS may as well look elsewhere. Real towers' attention knows the objects in part; this one's is made to.

    Args:
        attention: attention on each patch, received and of the CLS, [2, pictures, patches].
        roles: what each patch is, [pictures, patches].
    """
    levels = torch.stack([_standard(each.log(), torch.ones_like(each)) for each in attention])
    least = levels.detach().topk(levels.shape[-1] // 10, dim=-1).values[..., -1:]
    kept = ((levels - least) / SOFTNESS).sigmoid()
    told = (kept * (roles >= FILL)).sum(dim=-1) / kept.sum(dim=-1)
    return (told - torch.tensor(PARTS)[:, None]).square().mean()


def _standard(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Values with mean 0 and variance 1 over the counted patches of each picture."""
    total = counted.sum(dim=1, keepdim=True)
    centred = values - (values * counted).sum(dim=1, keepdim=True) / total
    return centred / ((centred.square() * counted).sum(dim=1, keepdim=True) / total + 1e-8).sqrt()
