"""The masked loss: learning from what a data set annotates, and from nothing else.

Each class is a yes-or-no question of its own (independent sigmoids), so a scan teaches exactly the classes its data
set annotates. The others are not in the sum at all; their gradient is exactly zero (masked back-propagation,
arXiv 2301.00785, section 3.2). The loss knows classes by position and data sets not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from viscera.errors import SettingError

Voxelwise = Literal["bce", "focal"]
Overlap = Literal["dice", "tversky"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which terms the loss has. The default is the paper's: Dice + binary cross entropy, equally weighted.

    voxelwise      "bce", or "focal" (Lin et al. 2017): cross entropy that looks less at voxels already right
    overlap        "dice" (Milletari et al. 2016), or "tversky" (Salehi et al. 2017): Dice that can fear misses more
    focal_gamma    exponent of the focal term, >= 0; 0 is plain cross entropy
    tversky_alpha  weight of false positives; false negatives weigh 1 - alpha; 0.5 is Dice
    absent         weight of the overlap term for a class that is annotated and not in the patch; it is all or nothing
                   there, and with few scans and many classes it holds back the ones that are in the patch
    smooth         added above and below the overlap's fraction (voxels), so that an absent class has a gradient
    """

    voxelwise: Voxelwise = "bce"
    overlap: Overlap = "dice"
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    absent: float = 1.0
    smooth: float = 1.0

    def __post_init__(self) -> None:
        if self.voxelwise not in ("bce", "focal"):
            raise SettingError(f"The loss's voxelwise term is {self.voxelwise!r}; it must be bce or focal.")
        if self.overlap not in ("dice", "tversky"):
            raise SettingError(f"The loss's overlap term is {self.overlap!r}; it must be dice or tversky.")
        if self.focal_gamma < 0 or not 0 < self.tversky_alpha < 1 or self.absent < 0 or self.smooth <= 0:
            raise SettingError(
                f"focal_gamma is {self.focal_gamma}, tversky_alpha {self.tversky_alpha}, absent {self.absent}, smooth "
                f"{self.smooth}; they must be >= 0, between 0 and 1, >= 0, and > 0."
            )


@dataclass(frozen=True, eq=False)
class MaskedLoss:
    """What one batch gave.

    total      scalar with a graph: the mean over all annotated (scan, class) pairs of both terms' sum
    pairs      int64 [P, 2]: which (scan, class) pairs were annotated, in row-major order
    voxelwise  float32 [P], detached
    overlap    float32 [P], detached
    drawn      bool [P]: whether the class is in the patch at all
    """

    total: torch.Tensor
    pairs: torch.Tensor
    voxelwise: torch.Tensor
    overlap: torch.Tensor
    drawn: torch.Tensor


def masked_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    annotated: torch.Tensor,
    settings: LossSettings | None = None,
    share_of: int | None = None,
) -> MaskedLoss:
    """Dice + cross entropy over the annotated classes of each scan.

    logits     [B, C, X, Y, Z], any floating type; computed in float32
    target     [B, C, X, Y, Z], 0 or 1; never looked at where `annotated` is False
    annotated  bool [B, C]: True = this scan's data set annotates this class
    share_of   divide by this many pairs instead of those of this batch: those of the whole step, of which this batch
               is one part (micro-batches, other processes), so that the parts' totals add up to the step's mean

    With nothing annotated the total is 0 and so is every gradient.
    """
    settings = settings or LossSettings()
    pairs = annotated.nonzero()
    chosen = logits[pairs[:, 0], pairs[:, 1]].flatten(1).float()  # [P, voxels]
    if len(pairs) == 0:
        nothing = chosen.new_zeros(0)
        return MaskedLoss(chosen.sum(), pairs, nothing, nothing, nothing.bool())
    truth = target[pairs[:, 0], pairs[:, 1]].flatten(1).to(chosen.dtype)
    voxelwise = _voxelwise(chosen, truth, settings)
    overlap = _overlap(chosen.sigmoid(), truth, settings)
    drawn = truth.any(1)
    weight = torch.where(drawn, 1.0, settings.absent)
    total = (voxelwise + weight * overlap).sum() / (share_of or len(pairs))
    return MaskedLoss(total, pairs, voxelwise.detach(), overlap.detach(), drawn)


def _voxelwise(logits: torch.Tensor, truth: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """Mean cross entropy per pair: [P, voxels] -> [P]."""
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if settings.voxelwise == "focal":
        # exp(-entropy) is the probability given to the truth.
        entropy = entropy * (1 - torch.exp(-entropy)) ** settings.focal_gamma
    return entropy.mean(1)


def _overlap(probability: torch.Tensor, truth: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """One minus the soft Dice or Tversky index per pair: [P, voxels] -> [P]."""
    alpha = 0.5 if settings.overlap == "dice" else settings.tversky_alpha
    shared = (probability * truth).sum(1)
    false_positive = probability.sum(1) - shared
    false_negative = truth.sum(1) - shared
    below = shared + alpha * false_positive + (1 - alpha) * false_negative + settings.smooth
    return 1 - (shared + settings.smooth) / below
