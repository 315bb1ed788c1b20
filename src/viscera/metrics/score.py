"""All numbers of one case: overlap, surface and volume per class, on label maps or on masks that overlap.

A class is looked at only inside the box around its two masks, and its surfaces are measured once. Empty
masks are answered by the table in `edge_cases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from viscera.masks import BoolArray
from viscera.metrics.edge_cases import METRICS
from viscera.metrics.surface import average_distance_mm, robust_hausdorff_mm, surface_dice, surface_distances
from viscera.shapes import Box, SpacingMm, Triple, triple

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Score:
    """One class of one case. A NaN is "not scored": see the table of empty masks in `edge_cases.py`."""

    dice: float  # 0-1
    nsd: float  # 0-1, surface Dice at tolerance_mm
    hd95_mm: float  # area-weighted 95th percentile of the surface distances, the larger direction
    asd_mm: float  # average symmetric surface distance
    volume_error_ml: float  # prediction minus reference
    volume_error_percent: float  # of the reference's volume
    sensitivity: float  # 0-1, share of the reference's voxels that were found
    precision: float  # 0-1, share of the predicted voxels that are right
    specificity: float  # 0-1, share of the other voxels of the whole grid that were left alone
    reference_ml: float
    prediction_ml: float
    tolerance_mm: float  # what the nsd allows


class ClassMasks(Protocol):
    """Masks of several classes on one grid: a `LabelMap`, or a `viscera.masks.MaskSet`, whose classes may overlap."""

    shape: Triple

    def box(self, key: str) -> Box:
        """The smallest box around class `key`; empty where it has no voxel."""

    def crop(self, key: str, box: Box) -> BoolArray:
        """Which voxels of `box` belong to class `key`: bool of the box's shape."""


class LabelMap:
    """Classes as the values of one integer array [X, Y, Z]; a class may own several values.

    `values` maps each class to its values (1 or more). Values of no class are background.
    """

    def __init__(self, array: IntArray, values: Mapping[str, tuple[int, ...]]) -> None:
        from scipy.ndimage import find_objects

        if any(v < 1 for vs in values.values() for v in vs):
            raise ValueError("0 is the background: the values of a class are 1 or more")
        self.array = array
        self.values = values
        self.shape = triple(array.shape)
        # NIfTI arrays lie in memory with x running fastest: walked the other way they take ten times as long.
        turned = array.strides[0] < array.strides[-1]
        last = max((v for vs in values.values() for v in vs), default=0)
        found = find_objects(array.T if turned else array, max_label=last)
        spans = [o and (o[::-1] if turned else o) for o in found]
        self._boxes = [Box(triple(s.start for s in o), triple(s.stop for s in o)) if o else None for o in spans]

    def box(self, key: str) -> Box:
        boxes = [box for v in self.values[key] if (box := self._boxes[v - 1])]
        return box_around(boxes)

    def crop(self, key: str, box: Box) -> BoolArray:
        part = self.array[box.slices]
        values = self.values[key]
        return np.asarray(part == values[0] if len(values) == 1 else np.isin(part, values))


def box_around(boxes: list[Box]) -> Box:
    """The smallest box around all `boxes`, leaving out empty ones."""
    around = Box((0, 0, 0), (0, 0, 0))
    for box in boxes:
        if not box.is_empty:
            around = box if around.is_empty else around.union(box)
    return around


def score_masks(
    reference: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    spacing_mm: SpacingMm,
    tolerance_mm: float,
    voxels: int | None = None,
) -> Score:
    """Score one predicted mask (bool or 0/1, [X, Y, Z]) against its reference of the same shape.

    `voxels` is the size of the whole grid if the masks were cut out of one; only specificity depends on it.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"masks of different shapes: reference {reference.shape}, prediction {prediction.shape}")
    reference, prediction = reference.astype(bool, copy=False), prediction.astype(bool, copy=False)
    n_reference, n_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    n_both = int(np.count_nonzero(reference & prediction))
    n_outside = (reference.size if voxels is None else voxels) - n_reference
    n_false = n_prediction - n_both
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    values: dict[str, float] = {
        "volume_error_ml": (n_prediction - n_reference) * voxel_ml,
        "specificity": (n_outside - n_false) / n_outside if n_outside else float("nan"),
    }
    if n_reference and n_prediction:
        distances = surface_distances(reference, prediction, spacing_mm)
        values |= {
            "dice": 2 * n_both / (n_reference + n_prediction),
            "nsd": surface_dice(distances, tolerance_mm),
            "hd95_mm": robust_hausdorff_mm(distances),
            "asd_mm": average_distance_mm(distances),
            "volume_error_percent": 100 * (n_prediction - n_reference) / n_reference,
            "sensitivity": n_both / n_reference,
            "precision": n_both / n_prediction,
        }
    else:
        laid_down = {key: m.at_empty(n_reference == 0, n_prediction == 0) for key, m in METRICS.items()}
        values |= {key: value for key, value in laid_down.items() if value is not None}
    return Score(
        **values, reference_ml=n_reference * voxel_ml, prediction_ml=n_prediction * voxel_ml, tolerance_mm=tolerance_mm
    )


def score_classes(
    reference: ClassMasks,
    prediction: ClassMasks,
    spacing_mm: SpacingMm,
    tolerance_mm: Mapping[str, float],
) -> dict[str, Score]:
    """Score every class of `tolerance_mm` (class -> NSD tolerance) that both sides must know, in that order.

    Raises ValueError if the two grids differ in shape.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"grids of different shapes: reference {reference.shape}, prediction {prediction.shape}")
    voxels = int(np.prod(reference.shape))
    scores = {}
    for key, tolerance in tolerance_mm.items():
        box = box_around([reference.box(key), prediction.box(key)])
        scores[key] = score_masks(reference.crop(key, box), prediction.crop(key, box), spacing_mm, tolerance, voxels)
    return scores
