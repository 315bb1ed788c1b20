"""Are tumours found? Per patient, per lesion, and over the probability threshold (FROC).

Patient level: a patient is called positive if any voxel of the class is left after the rules (the Universal Model
paper's rule, arXiv 2301.00785), and is positive if the reference has any.

Lesion level: lesions are the 26-connected components of a mask. A predicted lesion is matched to at most one
reference lesion and the other way round, so that the sum of the pairs' likeness is largest (Hungarian method):

- `overlap`   a pair may match if its IoU reaches `least_iou` (0.1 unless said otherwise: detection in 3-D medical
              images asks for coarse localisation, Baumgartner et al. 2021, nnDetection, arXiv 2106.00817);
- `distance`  a pair may match if the centres of mass lie within `most_mm` of each other; nearer is better.

A matched reference lesion is found; an unmatched predicted lesion is a false positive: one blob over two lesions finds
one of them, and of two pieces in one lesion one is false.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cbrt, inf, nan, pi
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from viscera.components import components
from viscera.errors import SettingError
from viscera.metrics.statistics import Proportion, ratio
from viscera.shapes import SpacingMm

FROC_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # probabilities, from low to high
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan at which LUNA16 reads the curve
SIZE_EDGES_MM = (10.0, 20.0)  # diameters that part small, medium and large lesions
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Matching:
    """When a predicted lesion may be the answer to a reference lesion."""

    by: Literal["overlap", "distance"] = "overlap"
    least_iou: float = 0.1  # overlap only
    most_mm: float = 10.0  # distance only
    smallest_ml: float = 0.0  # lesions below this volume are left out on both sides

    def __post_init__(self) -> None:
        if self.by not in ("overlap", "distance"):
            raise SettingError(f"Lesions are matched by overlap or distance, not by {self.by!r}.")
        if not 0 < self.least_iou <= 1:
            raise SettingError(f"The least IoU of a match is {self.least_iou:g}; it must lie above 0 and at most at 1.")
        if self.most_mm <= 0 or self.smallest_ml < 0:
            raise SettingError("The largest distance of a match must be above 0 mm, the smallest lesion at least 0 ml.")


@dataclass(frozen=True)
class Lesion:
    """One connected component."""

    centre_mm: Point  # centre of mass
    volume_ml: float
    match: int | None = None  # index of its partner in the other list
    iou: float = 0.0  # with its partner

    @property
    def diameter_mm(self) -> float:
        """Diameter of the ball of the same volume."""
        return float(cbrt(6000 * self.volume_ml / pi))


@dataclass(frozen=True)
class LesionMatch:
    """All lesions of one class in one case. `reference[i].match == j` exactly if `predicted[j].match == i`."""

    reference: tuple[Lesion, ...]
    predicted: tuple[Lesion, ...]

    @property
    def found(self) -> int:
        return sum(lesion.match is not None for lesion in self.reference)

    @property
    def false(self) -> int:
        return sum(lesion.match is None for lesion in self.predicted)


def match_lesions(
    reference: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    spacing_mm: SpacingMm,
    matching: Matching | None = None,
    affine: npt.NDArray[np.float64] | None = None,
) -> LesionMatch:
    """Find and match the lesions of two masks (bool or 0/1, [X, Y, Z], same shape).

    `affine` (4x4, voxel index of these arrays -> mm) places the centres; without it they are counted from voxel 0.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"masks of different shapes: reference {reference.shape}, prediction {prediction.shape}")
    if reference.size == 0:
        return LesionMatch((), ())
    matching = matching or Matching()
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    to_mm = np.diag([*spacing_mm, 1.0]) if affine is None else affine
    found = [components(mask) for mask in (reference, prediction)]
    sides = [parts.labels for parts in found]
    sizes, centres, kept = [], [], []
    for parts in found:  # entry 0 stands for the background, so that labels are indices
        sizes.append(np.concatenate([[0], parts.voxels]))
        centres.append(np.vstack([np.zeros(3), parts.centres]) @ to_mm[:3, :3].T + to_mm[:3, 3])
        kept.append(np.flatnonzero(sizes[-1][1:] * voxel_ml >= matching.smallest_ml) + 1)
    both = np.zeros((len(sizes[0]), len(sizes[1])), np.int64)
    shared = (sides[0] > 0) & (sides[1] > 0)
    np.add.at(both, (sides[0][shared], sides[1][shared]), 1)
    overlap = both[np.ix_(*kept)]
    iou = overlap / np.maximum(1, sizes[0][kept[0]][:, None] + sizes[1][kept[1]][None] - overlap)
    if matching.by == "overlap":
        likeness = np.where(iou >= matching.least_iou, iou, 0)
    else:
        mm = np.linalg.norm(centres[0][kept[0]][:, None] - centres[1][kept[1]][None], axis=2)
        # 1 at the same place, falling to just above 0 at the largest distance, which still matches
        likeness = np.where(mm <= matching.most_mm, 1 - mm / (matching.most_mm * (1 + 1e-9)), 0)
    partner = _assign(likeness)
    lesions = []
    for side in (0, 1):
        of = {pair[side]: pair for pair in partner}
        lesions.append(
            tuple(
                Lesion(
                    centre_mm=_point(centres[side][label]),
                    volume_ml=float(sizes[side][label] * voxel_ml),
                    match=of[i][1 - side] if i in of else None,
                    iou=float(iou[of[i]]) if i in of else 0.0,
                )
                for i, label in enumerate(kept[side])
            )
        )
    return LesionMatch(*lesions)


def _assign(likeness: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs (row, column) with the largest sum of `likeness`; only pairs above 0."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(likeness, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if likeness[r, c] > 0]


def _point(values: npt.NDArray[np.float64]) -> Point:
    x, y, z = values
    return (float(x), float(y), float(z))


@dataclass(frozen=True)
class PatientDetection:
    """Patient-level counts of one class, with what follows from them."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def sensitivity(self) -> Proportion:
        return Proportion.of(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Proportion:
        return Proportion.of(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> Proportion:
        return Proportion.of(self.true_positive, self.true_positive + self.false_positive)

    @property
    def f1(self) -> float:
        return ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def detect_patients(cases: Iterable[tuple[bool, bool]]) -> PatientDetection:
    """Count patients from (is positive, was called positive)."""
    pairs = [(bool(truth), bool(call)) for truth, call in cases]
    return PatientDetection(
        true_positive=pairs.count((True, True)),
        false_positive=pairs.count((False, True)),
        false_negative=pairs.count((True, False)),
        true_negative=pairs.count((False, False)),
    )


@dataclass(frozen=True)
class SizeBin:
    """Reference lesions of one size: how many there are and how many were found."""

    from_mm: float  # diameter; from_mm <= diameter < below_mm
    below_mm: float
    found: Proportion

    @property
    def label(self) -> str:
        if self.from_mm == 0:
            return f"< {self.below_mm:g} mm"
        return f"{self.from_mm:g}-{self.below_mm:g} mm" if self.below_mm < inf else f">= {self.from_mm:g} mm"


@dataclass(frozen=True)
class LesionDetection:
    """Lesion-level result of one class over all cases."""

    cases: int
    sensitivity: Proportion  # of the reference lesions
    precision: Proportion  # of the predicted lesions
    by_size: tuple[SizeBin, ...]

    @property
    def f1(self) -> float:
        return ratio(2 * self.sensitivity.count, self.sensitivity.total + self.precision.total)

    @property
    def false_per_case(self) -> float:
        return ratio(self.precision.total - self.precision.count, self.cases)


def detect_lesions(cases: Sequence[LesionMatch], size_edges_mm: Sequence[float] = SIZE_EDGES_MM) -> LesionDetection:
    """Sum up the lesions of one class over all cases; sizes are parted at these diameters."""
    lesions = [lesion for case in cases for lesion in case.reference]
    found = sum(case.found for case in cases)
    predicted = sum(len(case.predicted) for case in cases)
    bins = []
    for low, high in zip((0.0, *size_edges_mm), (*size_edges_mm, inf), strict=True):
        of_size = [lesion for lesion in lesions if low <= lesion.diameter_mm < high]
        bins.append(SizeBin(low, high, Proportion.of(sum(x.match is not None for x in of_size), len(of_size))))
    return LesionDetection(
        cases=len(cases),
        sensitivity=Proportion.of(found, len(lesions)),
        precision=Proportion.of(found, predicted),
        by_size=tuple(bins),
    )


@dataclass(frozen=True)
class FrocPoint:
    """Lesion detection at one probability threshold, over all cases."""

    threshold: float
    sensitivity: float
    false_per_case: float


def froc(thresholds: Sequence[float], cases: Sequence[Sequence[LesionMatch]]) -> tuple[FrocPoint, ...]:
    """The FROC curve: for each threshold, from the lesions of every case at it (`cases[case][threshold]`)."""
    points = []
    for i, threshold in enumerate(thresholds):
        result = detect_lesions([case[i] for case in cases])
        points.append(FrocPoint(threshold, result.sensitivity.value, result.false_per_case))
    return tuple(points)


def froc_score(points: Sequence[FrocPoint], rates: Sequence[float] = FROC_RATES) -> float:
    """Mean sensitivity at these numbers of false positives per case (LUNA16's competition metric).

    At each rate the best threshold that keeps to it counts; 0 where none does. NaN without a reference lesion.
    """
    if not points or any(np.isnan(p.sensitivity) for p in points):
        return nan
    best = [max((p.sensitivity for p in points if p.false_per_case <= rate), default=0.0) for rate in rates]
    return float(np.mean(best))


def match_at_thresholds(
    reference: npt.NDArray[Any],
    probability: npt.NDArray[Any],
    spacing_mm: SpacingMm,
    thresholds: Sequence[float],
    matching: Matching | None = None,
) -> tuple[LesionMatch, ...]:
    """The lesions of one case at every threshold: `probability` (0-1, [X, Y, Z]) >= threshold is in."""
    return tuple(match_lesions(reference, probability >= t, spacing_mm, matching) for t in thresholds)
