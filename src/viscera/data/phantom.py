"""Phantoms: procedural trunks with organs on both sides, tumours, noise and odd grids, written as real data sets are.

For tests, tutorials and claims where no patient's scan may go. Anatomy stands in `knowledge/phantom.toml`, how tissues
look in `knowledge/anatomy.toml`, and lesions are grown as in training. `write_dataset` takes any data-set table, its
layout and its labels, so a new table can be tried before the set is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from viscera.data.anatomy import anatomy
from viscera.data.assemble import LabelTable
from viscera.data.catalogue import LABELS_FROM_FILE, DatasetTable, Group, Source
from viscera.data.dicom_series import write_dicom_series
from viscera.data.layout import case_names, case_path, with_labels_of
from viscera.data.lesions import LesionKind, drawn_lesion, grow_lesion, lesion_kinds
from viscera.data.spatial import rotation
from viscera.data.synthesis import paint
from viscera.errors import SettingError
from viscera.io.atomic import whole_file, write_pieces
from viscera.io.orientation import Reorientation
from viscera.io.volume import Volume
from viscera.io.write import write_image, write_label_map
from viscera.masks import BoolArray
from viscera.shapes import SpacingMm, Triple, triple
from viscera.taxonomy import read_table, taxonomy

Floats = npt.NDArray[np.float64]
MARGIN_MM = 25.0  # air around the body


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What a phantom looks like.

    spacing_mm     of the scan, in its RAS axes
    lesions        how many lesions of kinds that the data set draws, in each scan [least, most]
    variation      how much organs move and change size from patient to patient, as a share
    part           which part of the trunk is scanned, as shares of its height [from, to]
    odd_grids      whether scans are stored in other axis orders, turned a little, away from the origin
    """

    spacing_mm: SpacingMm = (4.0, 4.0, 5.0)
    lesions: tuple[int, int] = (1, 2)
    variation: float = 0.08
    part: tuple[float, float] = (0.0, 1.0)
    odd_grids: bool = True

    def __post_init__(self) -> None:
        if not all(0.5 <= s <= 10 for s in self.spacing_mm):
            raise SettingError(f"The phantom's spacing is {self.spacing_mm} mm; each must lie between 0.5 and 10.")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise SettingError(f"The part of the trunk is {self.part}; it runs from a smaller to a larger share of 1.")


@dataclass(frozen=True, eq=False)
class Phantom:
    """One patient: HU float32 [X, Y, Z] with RAS axes, and a mask of every class and of tissues that are no class.

    Masks overlap as targets do: a tumour's voxels are in its organ's mask too. A class that is not in this patient
    (a tumour) has an empty mask.
    """

    hu: npt.NDArray[np.float32]
    spacing_mm: SpacingMm
    masks: Mapping[str, BoolArray]


def make_phantom(seed: int, settings: PhantomSettings | None = None, lesions: Sequence[str] = ()) -> Phantom:
    """A patient by number: the same seed and settings give the same patient.

    lesions  keys of the lesion classes that may grow in this patient
    """
    settings = settings or PhantomSettings()
    rng = np.random.default_rng([seed, 7])
    tissue_map, palette = _anatomy(settings, rng)
    known = anatomy().tissues
    hu = torch.from_numpy(paint(tissue_map, [known[key] for key in palette], settings.spacing_mm, rng))
    classes = taxonomy().keys
    # A vessel inside an organ is part of it, as readers draw it.
    rows = torch.tensor([[name == key or _lies_in(name, key) for name in palette] for key in classes])
    table = LabelTable(rows, torch.ones(len(classes), dtype=torch.bool), torch.zeros(0, len(classes), dtype=torch.bool))
    codes = torch.from_numpy(tissue_map.astype(np.int32))
    kinds = [_kind(key) for key in lesions]
    for _ in range(int(rng.integers(settings.lesions[0], settings.lesions[1] + 1)) if kinds else 0):
        lesion = drawn_lesion(kinds[int(rng.integers(len(kinds)))], rng)
        # On a coarse grid a lesion must span a few voxels to be seen.
        least = 1.6 * max(settings.spacing_mm)
        radii = tuple(max(radius, least) for radius in lesion.radii_mm)
        lesion = replace(lesion, radii_mm=(radii[0], radii[1], radii[2]), edge_mm=0.5)
        hu, codes, table = grow_lesion(lesion, hu, codes, table, settings.spacing_mm, classes)
    masks = {key: table.rows[row][codes].numpy() for row, key in enumerate(classes)}
    below = np.array([*palette, *["fat"] * (table.rows.shape[1] - len(palette))])
    tissue_names = below[codes.numpy()]
    masks |= {key: tissue_names == key for key in palette if key not in masks and key not in ("air", "fat")}
    return Phantom(hu.numpy(), settings.spacing_mm, masks)


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One patient of a phantom data set."""

    group: Group
    name: str
    phantom: Phantom
    seed: tuple[int, ...]  # of how it is stored


def phantom_cases(
    dataset: DatasetTable, cases: int, seed: int, settings: PhantomSettings | None = None
) -> Iterator[PhantomCase]:
    """The patients of a phantom data set, one at a time: `cases` for each group of the table.

    Patients differ between sets even with one seed, as those of two hospitals do. Only lesions that the group draws
    are grown.
    """
    number = sum(ord(letter) * 31**place for place, letter in enumerate(dataset.key)) % 100_000
    used: set[str] = set()
    for group in dataset.groups:
        lesions = [key for key in group.annotated if taxonomy()[key].is_lesion and key not in group.free_of]
        fresh = (name for name in case_names(group.example) if name not in used)
        for name in islice(fresh, cases):
            used.add(name)
            number += 1
            yield PhantomCase(group, name, make_phantom(seed * 1_000_003 + number, settings, lesions), (seed, number))


def write_dataset(
    dataset: DatasetTable, folder: Path, cases: int, seed: int, settings: PhantomSettings | None = None
) -> list[Path]:
    """Phantom patients laid out and labelled as `dataset` is, into `folder`; the paths of their images.

    See `phantom_cases`; what the table does not know is not drawn.
    """
    settings = settings or PhantomSettings()
    if dataset.labels_from_file:
        _write_dataset_json(folder)
        dataset = with_labels_of(dataset, folder)
    return [_write_case(dataset, case, folder, settings) for case in phantom_cases(dataset, cases, seed, settings)]


# --- anatomy ---------------------------------------------------------------------------------------------------------


def _anatomy(settings: PhantomSettings, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """A tissue map [X, Y, Z] and the tissue keys its numbers stand for."""
    table = read_table("phantom.toml")
    radii, height = np.array(table["body"]["radii_mm"], float), float(table["height_mm"])
    size = rng.uniform(1 - settings.variation, 1 + settings.variation, 3)
    low_mm = np.array([*(-radii - MARGIN_MM), settings.part[0] * height - 30.0])
    high_mm = np.array([*(radii + MARGIN_MM), settings.part[1] * height - 30.0])
    shape = triple((high_mm - low_mm) * size / settings.spacing_mm)
    # Physical millimetres of this patient -> millimetres of the table, bent a little, as no two bodies are alike.
    axes = [
        low + (np.arange(n) + 0.5) * s / k
        for low, n, s, k in zip(low_mm, shape, settings.spacing_mm, size, strict=True)
    ]
    bend = _smooth_field(shape, settings.variation * 60.0, rng)
    x, y, z = (grid + bend[axis] for axis, grid in enumerate(np.meshgrid(*axes, indexing="ij")))
    palette = ["air", "fat", "muscle", "bone"]
    out = np.zeros(shape, np.uint8)
    fat, muscle = float(table["body"]["fat_mm"]) * rng.uniform(0.6, 1.6), float(table["body"]["muscle_mm"])
    for code, inset in ((1, 0.0), (2, fat), (1, fat + muscle)):
        out[(x / (radii[0] - inset)) ** 2 + (y / (radii[1] - inset)) ** 2 < 1] = code
    # Ribs: rings in the muscle, every 30 mm, sinking to the front.
    wall = np.sqrt((x / (radii[0] - fat - muscle / 2)) ** 2 + (y / (radii[1] - fat - muscle / 2)) ** 2)
    out[(np.abs(wall - 1) < 0.05) & (np.mod(z + 0.35 * y, 30.0) < 11) & (z > 215)] = 3
    for row in table["shape"]:
        if row["tissue"] not in palette:
            palette.append(row["tissue"])
        shift = rng.normal(0, settings.variation * 40, 3)
        grow = rng.uniform(1 - settings.variation, 1 + settings.variation)
        out[_inside(row, x - shift[0], y - shift[1], z - shift[2], grow)] = palette.index(row["tissue"])
    return out, palette


def _lies_in(tissue: str, organ: str) -> bool:
    known = taxonomy()
    return tissue in known and organ in known[tissue].inside


def _inside(row: Mapping[str, Any], x: Floats, y: Floats, z: Floats, grow: float) -> BoolArray:
    """Which points lie in a shape of the table."""
    found = np.zeros(x.shape, bool)
    for centre, radii in row.get("ellipsoid", ()):
        away = ((np.array(p) - c) / (r * grow) for p, c, r in zip((x, y, z), centre, radii, strict=True))
        found |= sum(part**2 for part in away) < 1
    points = np.array(row.get("tube", ()), float)
    for start, stop in pairwise(points):
        along = stop - start
        t = ((x - start[0]) * along[0] + (y - start[1]) * along[1] + (z - start[2]) * along[2]) / (along @ along)
        t = t.clip(0, 1)
        away_mm2 = sum((p - s - t * a) ** 2 for p, s, a in zip((x, y, z), start, along, strict=True))
        found |= away_mm2 < (row["radius"] * grow) ** 2
    return found


def _smooth_field(shape: Triple, sd_mm: float, rng: np.random.Generator) -> Floats:
    """A smooth displacement [3, X, Y, Z] in mm."""
    coarse = torch.from_numpy(rng.normal(0, sd_mm, (1, 3, 5, 5, 6)))
    field: Floats = functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0].numpy()
    return field


def _kind(key: str) -> LesionKind:
    kinds = lesion_kinds()
    # Tumours along the hepatic vessels look as liver tumours do.
    return replace(kinds["liver_tumor"], key=key) if key == "hepatic_vessel_tumor" else kinds[key]


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_case(dataset: DatasetTable, case: PhantomCase, folder: Path, settings: PhantomSettings) -> Path:
    group, phantom = case.group, case.phantom
    rng = np.random.default_rng([*case.seed, 11])
    way = _odd_grid(rng) if settings.odd_grids else _PLAIN_GRID
    if dataset.label_format != "image":
        way = replace(way, reorientation=_DICOM_ORDER, turn=np.eye(3))  # slices are stored front to back, right to left
    scan = Volume(np.rint(way.reorientation.undo(phantom.hu)).astype(np.int16), way.affine(phantom))
    image = folder / case_path(group.image or "", case.name)
    if group.image is not None:
        _write_scan(scan, image, is_folder=group.image.endswith("/"))
    for structure, labels in _labels(group, phantom, rng):
        path = folder / case_path(group.label, case.name, structure)
        _write_labels(dataset, way.reorientation.undo(labels), scan, path)
    return image


def _labels(group: Group, phantom: Phantom, rng: np.random.Generator) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """The label map (structure "") or every mask, as a reader of this group draws them: [X, Y, Z], RAS axes."""
    if not group.has_masks:
        # Organs first, lesions over them.
        ordered = sorted(group.sources, key=lambda source: source.is_lesion)
        out = np.zeros(phantom.hu.shape, np.uint8)
        for source in ordered:
            if set(source.classes) <= set(group.annotated) or source.union or not source.classes:
                out[_drawn(source, phantom)] = int(source.value)
        yield "", out
        return
    for source in group.sources:
        must = not group.per_case or not set(source.classes).isdisjoint(group.always)
        if must or rng.random() < 0.8:
            yield source.value.replace("*", "1"), _drawn(source, phantom).astype(np.uint8)


def _drawn(source: Source, phantom: Phantom) -> BoolArray:
    """What a reader draws under this source: its lesion if it is one, else its organs; or a tissue by its name."""
    known = taxonomy()
    keys = [key for key in source.classes if known[key].is_lesion] or [*source.classes, *source.union]
    if not keys:
        tissue = anatomy().of_source(source)
        keys = [tissue.key] if tissue else []
    masks = [phantom.masks[key] for key in keys if key in phantom.masks]
    out: BoolArray = np.any(masks, axis=0) if masks else np.zeros(phantom.hu.shape, bool)
    sides = {known[key].side for key in source.classes if not known[key].is_lesion}
    if len(sides) == 1 and (side := sides.pop()) is not None and any(known[key].is_lesion for key in keys):
        organ = next(key for key in source.classes if known[key].side == side)
        out = out & phantom.masks[organ]
    return out


@dataclass(frozen=True, eq=False)
class _Grid:
    """How a RAS array is stored: axis order and direction, a small turn, and where voxel 0 lies."""

    reorientation: Reorientation
    turn: Floats
    origin_mm: Floats

    def affine(self, phantom: Phantom) -> Floats:
        """The affine of the stored array."""
        ras = np.eye(4)
        ras[:3, :3] = self.turn * np.array(phantom.spacing_mm)
        ras[:3, 3] = self.origin_mm
        out = np.eye(4)
        out[:3, 3] = ras[:3, 3]
        for ras_axis, (scan_axis, flip) in enumerate(
            zip(self.reorientation.axes, self.reorientation.flips, strict=True)
        ):
            out[:3, scan_axis] = ras[:3, ras_axis] * (-1 if flip else 1)
            if flip:
                out[:3, 3] += ras[:3, ras_axis] * (phantom.hu.shape[ras_axis] - 1)
        return out


_DICOM_ORDER = Reorientation((0, 1, 2), (True, True, False))  # LPS


def _odd_grid(rng: np.random.Generator) -> _Grid:
    orders = [Reorientation(triple(axes), flips) for axes in permutations(range(3)) for flips in _FLIPS]
    turn = rotation(tuple(rng.uniform(-6, 6, 3)))
    return _Grid(orders[int(rng.integers(len(orders)))], turn, rng.uniform(-300, 300, 3))


_PLAIN_GRID = _Grid(Reorientation((0, 1, 2), (False, False, False)), np.eye(3), np.zeros(3))
_FLIPS: tuple[tuple[bool, bool, bool], ...] = tuple((a, b, c) for a, b, c in product((False, True), repeat=3))


def _write_scan(scan: Volume, path: Path, *, is_folder: bool) -> None:
    if is_folder:
        write_dicom_series(path, scan.array, scan.affine, intercept=-1024)
    else:
        write_image(scan.array, scan, path)


def _write_labels(dataset: DatasetTable, labels: npt.NDArray[np.uint8], scan: Volume, path: Path) -> None:
    if dataset.label_format == "dicom":
        write_dicom_series(path, labels.astype(np.int16) * 255, scan.affine, intercept=0)
    elif dataset.label_format == "png":
        import SimpleITK as sitk

        path.mkdir(parents=True, exist_ok=True)
        for z in range(labels.shape[2]):
            with whole_file(path / f"liver_GT_{z:03d}.png") as temporary:
                sitk.WriteImage(sitk.GetImageFromArray((labels[:, :, z] != 0).T.astype(np.uint8) * 255), str(temporary))
    else:
        write_label_map(labels, scan, path)


def _write_dataset_json(folder: Path) -> None:
    """The dataset.json of an nnU-Net raw folder with a few organs."""
    about = {
        "name": "phantom",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "liver tumor": 4, "heart": 5},
        "file_ending": ".nii.gz",
    }
    write_pieces(folder / LABELS_FROM_FILE, [json.dumps(about, indent=1).encode()])
