"""What was found: volume, density and place of every class, and every tumour and cyst one by one."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull, KDTree, QhullError, distance

from viscera.components import Components, components, count_components
from viscera.io.aside import in_slabs
from viscera.io.atomic import whole_file
from viscera.masks import BoolArray
from viscera.report.as_json import write_json
from viscera.report.flags import Flag, organ_flags
from viscera.shapes import Box
from viscera.taxonomy import Structure

SCHEMA = "viscera findings 1"
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lesion:
    """One connected tumour or cyst. Places are RAS mm in the scan's own frame."""

    number: int  # 1 is the largest of its class
    volume_ml: float
    longest_diameter_mm: float  # largest distance between two of its voxel centres, plus one voxel
    axial_diameter_mm: float  # the same within the axial slice where it is longest (RECIST's longest diameter)
    axial_width_mm: float  # extent in that slice at right angles to it
    centre_mm: tuple[float, float, float]
    host: str | None  # key of the organ it lies in or next to; None if none of its organs was found
    mean_hu: float


@dataclass(frozen=True)
class Finding:
    """One class. Volumes count voxels of the scan's own grid."""

    id: int
    key: str
    name: str
    kind: str
    volume_ml: float
    mean_hu: float  # NaN if empty
    sd_hu: float
    components: int
    mean_probability: float  # of the voxels the network called, before the rules; NaN if none
    touches_border: bool  # the scan ends within it: volume and shape are not whole
    centre_mm: tuple[float, float, float] | None  # RAS mm; None if empty
    lesions: tuple[Lesion, ...] = ()  # for tumours and cysts, the largest first
    flags: tuple[Flag, ...] = ()  # what asks for a second look


@dataclass(frozen=True, eq=False)
class Crop:
    """One class on the scan's grid, RAS axes: where its box lies, and which of the box's voxels are in."""

    box: Box
    mask: BoolArray  # any order in memory; quickest in that of a file, x first


def measure(
    structure: Structure,
    crop: Crop,
    hu: npt.NDArray[Any],
    affine: Affine,
    *,
    mean_probability: float = math.nan,
    threshold: float = 0.5,
    hosts: Mapping[str, Crop] | None = None,
    imaged: Box | None = None,
) -> Finding:
    """Measures one class.

    hu         the scan [X, Y, Z], RAS axes; `affine` takes its voxel indices to RAS mm
    threshold  the probability at which the network calls a voxel of this class
    hosts      the organs its lesions may lie in, by key
    imaged     the part of the scan that shows something (`viscera.io.grid.imaged_box`); None: all of it

    An empty class has volume 0, no components, NaN densities and no centre.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    mask = crop.mask
    count = int(mask.sum())
    common: dict[str, Any] = {"id": structure.id, "key": structure.key, "name": structure.name, "kind": structure.kind}
    if count == 0:
        return Finding(
            **common,
            volume_ml=0.0,
            mean_hu=math.nan,
            sd_hu=math.nan,
            components=0,
            mean_probability=mean_probability,
            touches_border=False,
            centre_mm=None,
        )
    # Turned over, since both lie in memory as in a file: numpy picks in the order of the indices.
    values = np.concatenate([part.T[mask[:, :, z].T] for z, part in in_slabs(hu[crop.box.slices])])
    volume_ml, cut = count * voxel_ml, _touches_border(crop, imaged or Box.whole(hu.shape))
    lesions: list[Lesion] = []
    if structure.is_lesion:
        found = components(mask)
        organs = _hosts(found, crop.box, hosts or {}, affine)
        for number, label in enumerate(found.by_size(), start=1):
            box = found.boxes[label - 1]
            one = Crop(box.shifted(crop.box.start), found.labels[box.slices] == label)
            centre_mm = _place(found.centres[label - 1] + crop.box.start, affine)
            lesions.append(_lesion(number, one, centre_mm, organs[label - 1], hu, affine))
    return Finding(
        **common,
        volume_ml=volume_ml,
        mean_hu=float(values.mean(dtype=np.float64)),
        sd_hu=float(values.std(dtype=np.float64)),
        components=len(lesions) if structure.is_lesion else count_components(mask),
        mean_probability=mean_probability,
        touches_border=cut,
        centre_mm=_place(_mean_voxel(mask) + crop.box.start, affine),
        lesions=tuple(lesions),
        flags=organ_flags(
            structure, volume_ml, touches_border=cut, mean_probability=mean_probability, threshold=threshold
        ),
    )


def _touches_border(crop: Crop, imaged: Box) -> bool:
    """Whether any voxel lies in the first or last slice of `imaged`, or beyond, on an axis that has more than one."""
    for axis in range(3):
        first, stop = imaged.start[axis], imaged.stop[axis]
        if stop - first < 2:
            continue
        slices = np.moveaxis(crop.mask, axis, 0)
        before, after = first + 1 - crop.box.start[axis], stop - 1 - crop.box.start[axis]
        if slices[: max(0, before)].any() or slices[max(0, after) :].any():
            return True
    return False


def _mean_voxel(mask: BoolArray) -> npt.NDArray[np.float64]:
    """The mean index of the voxels that are in [3]."""
    plane = mask.sum(axis=2)  # the contiguous axis first
    along = [plane.sum(axis=1), plane.sum(axis=0), np.array([np.count_nonzero(cut) for cut in np.moveaxis(mask, 2, 0)])]
    return np.array([n @ np.arange(len(n)) / n.sum() for n in along])


def _place(voxel: npt.NDArray[np.float64], affine: Affine) -> tuple[float, float, float]:
    x, y, z = affine[:3, :3] @ voxel + affine[:3, 3]
    return (float(x), float(y), float(z))


def _lesion(
    number: int,
    one: Crop,
    centre_mm: tuple[float, float, float],
    host: str | None,
    hu: npt.NDArray[Any],
    affine: Affine,
) -> Lesion:
    densities = hu[one.box.slices][one.mask]
    places = _row_ends(one.mask)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axial, width = _axial_diameters(places, affine)
    return Lesion(
        number=number,
        volume_ml=len(densities) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
        longest_diameter_mm=_longest(places @ affine[:3, :3].T) + float(spacing.min()),
        axial_diameter_mm=axial,
        axial_width_mm=width,
        centre_mm=centre_mm,
        host=host,
        mean_hu=float(densities.mean()),
    )


def _row_ends(mask: BoolArray) -> npt.NDArray[np.intp]:
    """The first and the last voxel of every row along the first axis [N, 3]: no other is an end of a diameter."""
    y, z = np.nonzero(mask.any(axis=0))
    first, last = mask.argmax(axis=0)[y, z], len(mask) - 1 - mask[::-1].argmax(axis=0)[y, z]
    return np.concatenate([np.stack([first, y, z], axis=1), np.stack([last, y, z], axis=1)])


def _longest(points: npt.NDArray[np.float64]) -> float:
    """The largest distance between two of `points` [N, D], mm."""
    corners = _corners(points)
    return float(distance.pdist(corners).max()) if len(corners) > 1 else 0.0


def _corners(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The corners of the convex hull; all points where there is none (too few, or all in a plane)."""
    if len(points) > 3 * points.shape[1]:
        try:
            return points[ConvexHull(points).vertices]
        except QhullError:  # flat: turn it until its thin direction drops out
            centred = points - points.mean(0)
            _, size, turn = np.linalg.svd(centred, full_matrices=False)
            kept = size > 1e-6 * max(size[0], 1e-12)
            if kept.sum() < points.shape[1] and kept.sum() > 1:
                return _corners(centred @ turn[kept].T)
            along = centred @ turn[0]
            return points[[int(along.argmin()), int(along.argmax())]]
    return points


def _axial_diameters(places: npt.NDArray[np.intp], affine: Affine) -> tuple[float, float]:
    """Longest diameter within one axial slice, and the extent across it there; both plus one voxel, mm."""
    turn, _ = np.linalg.qr(affine[:3, :2])  # the slice's own plane: it may lie obliquely
    points = places @ (turn.T @ affine[:3, :3]).T
    best, best_slice = -1.0, points
    for z in np.unique(places[:, 2]):
        flat = points[places[:, 2] == z]
        length = _longest(flat)
        if length > best:
            best, best_slice = length, flat
    voxel = float(np.linalg.norm(affine[:3, :2], axis=0).min())
    if best == 0:
        return voxel, voxel
    corners = _corners(best_slice)
    apart = distance.squareform(distance.pdist(corners))
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    along = (corners[b] - corners[a]) / best
    across = best_slice @ np.array([-along[1], along[0]])
    return best + voxel, float(across.max() - across.min()) + voxel


def _hosts(found: Components, box: Box, organs: Mapping[str, Crop], affine: Affine) -> list[str | None]:
    """For each component in `box` the organ that shares most voxels with it, or else the one nearest to its centre.

    All are answered at once: noise has thousands of components.
    """
    organs = {key: organ for key, organ in organs.items() if organ.mask.any()}
    if not organs:
        return [None] * len(found)
    keys = list(organs)
    shared = np.stack([_overlaps(found, box, organ) for organ in organs.values()])
    best = shared.argmax(axis=0)
    alone = shared.max(axis=0) == 0
    if alone.any() and len(organs) > 1:
        centres_mm = (found.centres[alone] + box.start) @ affine[:3, :3].T
        away_mm = np.stack([_surface(organ, affine).query(centres_mm)[0] for organ in organs.values()])
        best[alone] = away_mm.argmin(axis=0)
    return [keys[i] for i in best]


def _overlaps(found: Components, box: Box, organ: Crop) -> npt.NDArray[np.int64]:
    """How many voxels of each component lie in the organ."""
    both = box.shared_with(organ.box)
    if both.is_empty:
        return np.zeros(len(found), np.int64)
    labels = found.labels[both.seen_from(box.start).slices][organ.mask[both.seen_from(organ.box.start).slices]]
    return np.bincount(labels, minlength=len(found) + 1)[1:]


def _surface(organ: Crop, affine: Affine) -> KDTree:
    """The organ's outer voxels as a search tree, mm from the scan's first voxel."""
    mask = organ.mask.T  # as it lies in memory
    places = np.argwhere(mask & ~ndimage.binary_erosion(mask))[:, ::-1] + organ.box.start
    return KDTree(places @ affine[:3, :3].T)


def write_findings(findings: Sequence[Finding], folder: Path, flags: Sequence[Flag] = ()) -> None:
    """findings.json (everything) and findings.csv (a row a class, then a row a lesion) in `folder`.

    flags  those of the scan as a whole
    """
    everything = {"schema": SCHEMA, "frame": "RAS mm", "flags": flags, "findings": findings}
    write_json(everything, folder / "findings.json")
    with whole_file(folder / "findings.csv") as path:
        path.write_text(findings_csv(findings, flags), encoding="utf-8")


COLUMNS = (
    "id",
    "key",
    "name",
    "kind",
    "lesion",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "components",
    "mean_probability",
    "touches_border",
    "centre_x_mm",
    "centre_y_mm",
    "centre_z_mm",
    "longest_diameter_mm",
    "axial_diameter_mm",
    "axial_width_mm",
    "host",
    "flags",
    "scan_flags",
)


def findings_csv(findings: Sequence[Finding], flags: Sequence[Flag] = ()) -> str:
    """One row a class, and below it one row for each of its lesions (column `lesion`: its number).

    Flags are told by their keys: `flags` are the class's own; `scan_flags`, the same in every row, those of the scan.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for finding in findings:
        items: tuple[Finding | Lesion, ...] = (finding, *finding.lesions)
        for item in items:
            row = {**{k: getattr(finding, k) for k in ("id", "key", "name", "kind")}, **asdict(item)}
            row["lesion"] = getattr(item, "number", "")
            row["flags"], row["scan_flags"] = _keys(getattr(item, "flags", ())), _keys(flags)
            if item.centre_mm is not None:
                row |= dict(zip(("centre_x_mm", "centre_y_mm", "centre_z_mm"), item.centre_mm, strict=True))
            writer.writerow({k: _cell(row.get(k)) for k in COLUMNS})
    return text.getvalue()


def _keys(flags: Sequence[Flag]) -> str:
    return ";".join(flag.key for flag in flags)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return "" if value is None else value
