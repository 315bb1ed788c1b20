"""Classes that were drawn as one: "stomach or duodenum" teaches both, without saying which.

    p(union) = 1 - product of (1 - p(class))        a voxel is in the union if it is in any of its classes

(the marginal of Shi et al. 2021, arXiv 2007.03868, for independent sigmoids). In logits: with S the sum of
softplus(logit), the union's logit is log(exp(S) - 1); of a single class that is its own logit.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from viscera.data.assemble import Batch


def with_unions(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and annotated flags with the batch's unions as further classes, for `masked_loss`.

    logits  [B, C, X, Y, Z] of the batch's classes
    """
    if batch.union_members.shape[1] == 0:
        return logits, batch.target, batch.annotated
    rows = [
        torch.stack([union_logit(scan[members]) for members in unions])
        for scan, unions in zip(logits.float(), batch.union_members, strict=True)
    ]
    return (
        torch.cat([logits, torch.stack(rows).to(logits.dtype)], 1),
        torch.cat([batch.target, batch.union_target], 1),
        torch.cat([batch.annotated, batch.union_members.any(2)], 1),
    )


def union_logit(logits: torch.Tensor) -> torch.Tensor:
    """float32 [M, ...] of M classes -> [...] of their union; zeros for M = 0."""
    if len(logits) == 0:
        return logits.new_zeros(logits.shape[1:])
    total = functional.softplus(logits).sum(0).clamp_min(torch.finfo(logits.dtype).tiny)
    return total + torch.log(-torch.expm1(-total))
