"""Quality flags: what in a result asks for a second look. Limits and words are in `knowledge/flags.toml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.data.anatomy import anatomy
from viscera.io.aside import in_slabs
from viscera.taxonomy import Structure, read_table

_SAMPLE_VOXELS = 1_000_000  # enough for shares


@dataclass(frozen=True)
class Flag:
    """One reason to look again."""

    key: str  # for programs: an entry of flags.toml
    remark: str  # a few words for a table
    sentence: str  # for people


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return read_table("flags.toml")


def _flag(part: str, key: str, **values: Any) -> Flag:
    row = _table()[part][key]
    return Flag(key, row["remark"].format(**values), row["sentence"].format(**values))


def organ_flags(
    structure: Structure,
    volume_ml: float,
    *,
    touches_border: bool,
    mean_probability: float = math.nan,
    threshold: float = 0.5,
) -> tuple[Flag, ...]:
    """The flags of one class; a class that was not found has none.

    mean_probability  0-1, of the voxels the network called; NaN: not known
    threshold         the probability at which a voxel of this class counts as in
    """
    if volume_ml == 0:
        return ()
    flags = []
    if touches_border:
        flags.append(_flag("organ", "cut_by_scan", name=structure.name))
    limits = anatomy().tissues[structure.key].volume_ml
    if limits is not None and (volume_ml > limits[1] or (volume_ml < limits[0] and not touches_border)):
        values = {"volume_ml": volume_ml, "least_ml": limits[0], "most_ml": limits[1]}
        flags.append(_flag("organ", "implausible_volume", name=structure.name, **values))
    if _certainty(mean_probability, threshold) < _table()["organ"]["low_probability"]["least"]:
        told = {"probability": mean_probability, "threshold": threshold}
        flags.append(_flag("organ", "low_probability", name=structure.name, **told))
    return tuple(flags)


def _certainty(probability: float, threshold: float) -> float:
    """`probability` on the scale on which `threshold` is 0.5; NaN stays NaN."""
    odds = probability * (1 - threshold)
    return odds / (odds + (1 - probability) * threshold)


def scan_flags(
    hu: npt.NDArray[Any], voxel_volume_mm3: float, *, organs_asked: int, organs_found: int
) -> tuple[Flag, ...]:
    """The flags of a whole scan `hu` [X, Y, Z] in HU, and of how many organs were asked for and found in it."""
    flags = []
    limits = _table()["scan"]["not_body_ct"]
    tissue = _tissue(hu, voxel_volume_mm3, limits)
    if (
        tissue["dense_ml"] < limits["least_dense_ml"]
        or tissue["fat"] < limits["least_fat"]
        or tissue["soft"] < limits["least_soft"]
        or tissue["fat"] + tissue["soft"] < limits["least_tissue"]
    ):
        flags.append(_flag("scan", "not_body_ct", **tissue))
    if organs_found == 0 and organs_asked >= _table()["scan"]["nothing_found"]["least_organs"]:
        flags.append(_flag("scan", "nothing_found", organs=organs_asked))
    return tuple(flags)


def _tissue(hu: npt.NDArray[Any], voxel_volume_mm3: float, limits: Mapping[str, Any]) -> dict[str, float]:
    """ml denser than air, and which shares of that are as dense as fat and as soft tissue; from a raster of voxels."""
    step = max(1, round((hu.size / _SAMPLE_VOXELS) ** (1 / 3)))
    sample = np.concatenate([np.array(part) for _, part in in_slabs(hu[::step, ::step, ::step])], 2)
    dense = sample[sample > limits["dense_hu"]]

    def share(span: tuple[float, float]) -> float:
        return float(((dense >= span[0]) & (dense <= span[1])).mean()) if dense.size else 0.0

    return {
        "dense_ml": dense.size / sample.size * hu.size * voxel_volume_mm3 / 1000,
        "fat": share(limits["fat_hu"]),
        "soft": share(limits["soft_hu"]),
    }
