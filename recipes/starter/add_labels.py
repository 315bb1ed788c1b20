"""Adds lungs and the aorta to the scans in which nobody drew them.

    python recipes/starter/add_labels.py DATA

DATA is the folder that recipes/starter/prepare.py fills. For every scan of aorta_points.toml it writes
DATA/trunk/<scan>/image.nii.gz and labels.nii.gz at 3 mm: what was labelled already (pseudo-labels, lung tumors), the
lungs by their density, and the aorta: a tube along points that a person set, as far as the scan's density agrees.
DATA/chest/<scan> is the part of a scan above the domes of liver and spleen, where no organ of the abdomen can be.
public_scans.toml and chests.toml say what the values mean.
"""

from __future__ import annotations

import argparse
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _case import write_case
from scipy import ndimage

from viscera.components import without_small
from viscera.data.lateral import midplane, right_half
from viscera.io.body import find_body
from viscera.io.grid import resample_image, resample_labels
from viscera.io.labels import read_labels
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.io.volume import AIR_HU, Volume
from viscera.masks import BoolArray
from viscera.shapes import Box

HERE = Path(__file__).parent
SPACING_MM = 3.0
AORTA, RIGHT_LUNG, LEFT_LUNG, LUNG_TUMOR = 20, 22, 23, 40
LUNG_HU = -350.0
LUNG_LEAST_ML = 150.0
AIRWAY_HU = -930.0
MUSCLE_HU = 40.0
BEYOND = 1.25  # radii around the points' line in which density decides

Field = npt.NDArray[np.float32]


def at_3_mm(folder: Path, image: str, labels: str) -> tuple[Field, npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """The scan in HU and its label map at 3 mm with RAS axes, and their affine; no labels where there is no file."""
    hu, affine, _ = to_ras(read_volume(folder / image))
    x, y, z = (float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    grid = (SPACING_MM,) * 3
    values = to_ras(read_labels(folder / labels))[0] if labels else np.zeros(hu.shape)
    coarse = resample_image(np.maximum(hu, AIR_HU), (x, y, z), grid, smooth=True)
    wider = affine @ np.diag([*(SPACING_MM / np.array([x, y, z])), 1.0])  # the first voxel's centre stays where it is
    return coarse, resample_labels(values, (x, y, z), grid).astype(np.uint8), wider


def lungs(hu: Field) -> tuple[BoolArray, BoolArray]:
    """Right and left lung: what is as light as lung inside the trunk, without the windpipe and gas in the bowel."""
    spacing = (SPACING_MM,) * 3
    body = find_body(hu, spacing)
    inside = body.encloses(Box((0, 0, 0), hu.shape))
    light = ndimage.binary_opening(inside & (hu < LUNG_HU))
    pieces, count = ndimage.label(light)
    index = np.arange(1, count + 1)
    size_ml = ndimage.sum_labels(light, pieces, index) * SPACING_MM**3 / 1000
    median = np.array([np.median(hu[pieces == i]) if size_ml[i - 1] >= LUNG_LEAST_ML else -1000.0 for i in index])
    kept = np.isin(pieces, index[(size_ml >= LUNG_LEAST_ML) & (median > AIRWAY_HU)])
    kept = without_small(kept & ~airway(hu, kept), LUNG_LEAST_ML * 1000 / SPACING_MM**3)
    kept = ndimage.binary_closing(np.pad(kept, 2))[2:-2, 2:-2, 2:-2] & (hu < 0)  # the vessels inside
    right = right_half(kept, spacing, midplane(hu, spacing))
    return right & kept, kept & ~right


def airway(hu: Field, light: BoolArray) -> BoolArray:
    """The windpipe and what of the main bronchi is as wide: the small dark parts of each slice."""
    out = np.zeros(light.shape, bool)
    for z in range(light.shape[2]):
        pieces, count = ndimage.label(light[:, :, z])
        for i in range(1, count + 1):
            piece = pieces == i
            area_mm2 = piece.sum() * SPACING_MM**2
            if area_mm2 < 700 and np.median(hu[:, :, z][piece]) < -850:
                out[:, :, z] |= piece
    return out


def tube(points: npt.NDArray[np.float64], shape: tuple[int, ...], wider: float) -> BoolArray:
    """Spheres along the line through points [N, 4]: x, y, z and radius in voxels."""
    steps = [np.linspace(a, b, 1 + int(np.abs(b - a).max() * 2)) for a, b in pairwise(points)]
    out = np.zeros(shape, bool)
    for x, y, z, radius in np.concatenate(steps):
        reach = radius * wider
        low = np.maximum(np.floor([x - reach, y - reach, z - reach]).astype(int), 0)
        high = np.minimum(np.ceil([x + reach, y + reach, z + reach]).astype(int) + 1, shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        i, j, k = np.ogrid[box]
        out[box] |= (i - x) ** 2 + (j - y) ** 2 + (k - z) ** 2 <= reach**2
    return out


def aorta(hu: Field, affine: npt.NDArray[np.float64], points_mm: list[list[float]], enhanced: bool) -> BoolArray:
    """The tube along the points; with contrast medium, what near it is as bright as its core."""
    world = np.array(points_mm)
    voxels = (np.linalg.inv(affine) @ np.c_[world[:, :3], np.ones(len(world))].T).T[:, :3]
    points = np.c_[voxels, world[:, 3] / SPACING_MM]
    if not enhanced:
        return tube(points, hu.shape, 1.0) & (ndimage.gaussian_filter(hu, 0.5) > -20)
    half_way = (float(np.median(hu[tube(points, hu.shape, 0.5)])) + MUSCLE_HU) / 2
    bright = (ndimage.gaussian_filter(hu, 0.5) > half_way) & tube(points, hu.shape, BEYOND)
    found = ndimage.binary_opening(np.pad(bright, 2, mode="edge"))
    return without_small(ndimage.binary_closing(found)[2:-2, 2:-2, 2:-2], 30)


def labelled(scan: dict[str, Any], data: Path) -> tuple[Field, npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """The scan at 3 mm with everything that is known of it."""
    hu, values, affine = at_3_mm(data / scan["folder"], scan["image"], scan.get("labels", ""))
    tumor = values == scan.get("lung_tumor", -1)
    if "lung_tumor" in scan:
        values[:] = 0
    right, left = lungs(hu)
    values[right & (values == 0)] = RIGHT_LUNG
    values[left & (values == 0)] = LEFT_LUNG
    values[aorta(hu, affine, scan["aorta"], scan["enhanced"]) & ~right & ~left] = AORTA
    values[tumor] = LUNG_TUMOR
    return hu, values, affine


def write(folder: Path, hu: Field, values: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64], first: int) -> None:
    """image.nii.gz and labels.nii.gz of the slices from `first` up."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [0, 0, first, 1])[:3]
    like = Volume(np.rint(np.clip(hu[:, :, first:], AIR_HU, 3071)).astype(np.int16), moved)
    write_case(folder, like, values[:, :, first:])


def slices_below(z_mm: float, affine: npt.NDArray[np.float64]) -> int:
    """How many slices lie below a height."""
    return round((z_mm - float(affine[2, 3])) / SPACING_MM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    for name, scan in tomllib.loads((HERE / "aorta_points.toml").read_text()).items():
        hu, values, affine = labelled(scan, given.data)
        write(given.data / "trunk" / name, hu, values, affine, slices_below(scan.get("from_mm", affine[2, 3]), affine))
        volumes = {value: int((values == value).sum() * SPACING_MM**3 / 1000) for value in np.unique(values)[1:]}
        print(name, "ml by value:", volumes, flush=True)
        if "chest_above_mm" in scan:
            write(given.data / "chest" / name, hu, values, affine, slices_below(scan["chest_above_mm"], affine))


if __name__ == "__main__":
    main()
