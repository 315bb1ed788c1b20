"""Which prediction belongs to which reference: by name, or by a table.

A folder of predictions or references may hold `CASE.nii.gz` files, folders that viscera wrote
(`CASE/segmentation.nii.gz`, `CASE/masks/`), or folders with one mask per class (`CASE/liver.nii.gz`,
`CASE/segmentations/liver.nii.gz` as TotalSegmentator has them). Probability maps lie in `CASE/probabilities/` beside
the prediction, or as `CASE/liver_tumor.nii.gz` in a folder of their own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from viscera.data.layout import Case as DatasetCase
from viscera.errors import InputError, SettingError
from viscera.report.evaluation.labels import IMAGE_SUFFIXES, canonical, image_name, is_image, mask_files

_MASK_FOLDERS = ("masks", "segmentations")
_PROBABILITY_FOLDER = "probabilities"
_MAP_NAMES = ("segmentation", "labels", "label", "seg")
_SCAN_NAMES = ("ct", "image", "imaging", "scan")
_CHANNEL = "_0000"
_COLUMNS = ("case", "prediction", "reference", "image", "probabilities", "set", "annotated")


@dataclass(frozen=True)
class Case:
    """One scan to score."""

    name: str
    reference: Path  # label map, or folder of masks
    prediction: Path | None  # the same; None if there is none
    image: Path | None = None  # the scan itself, for pictures
    probabilities: Path | None = None  # a folder with one probability map per class, for FROC
    data_set: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)  # further columns of the table: sub-groups
    annotated: tuple[str, ...] | None = None  # classes that were annotated; None: as the settings say
    drawn: DatasetCase | None = None  # the reference as a case of a data set, whose table says what it means


@dataclass(frozen=True)
class Places:
    """Where each kind of file lies: a folder, or (for one case) the file itself."""

    predictions: Path
    references: Path
    images: Path | None = None
    probabilities: Path | None = None  # None: beside the predictions, if they are there


def find_cases(places: Places, table: Path | None = None) -> list[Case]:
    """Every reference with its prediction, sorted by name; with a table, the rows of the table in its order.

    Raises InputError if a place is missing or no case is found, SettingError if the table breaks a rule.
    """
    for place in (places.predictions, places.references, places.images, places.probabilities):
        if place is not None and not place.exists():
            raise InputError(f"There is no {place}.")
    if table is not None:
        return _from_table(table, places)
    if not places.references.is_dir():
        name = image_name(places.references)
        prediction = places.predictions
        maps = _maps_in(places.probabilities or prediction) or places.probabilities
        image = places.images and (_scan_in(places.images) or places.images)
        return [Case(name, places.references, _case_in(prediction) or prediction, image, maps)]
    references = listed_cases(places.references)
    if not references:
        raise InputError(
            f"{places.references} holds no reference: no image ({', '.join(IMAGE_SUFFIXES)}) and no folder with images."
        )
    predictions = listed_cases(places.predictions) if places.predictions.is_dir() else {}
    if not predictions.keys() & references.keys():
        few = [", ".join(sorted(names)[:3]) or "nothing" for names in (predictions, references)]
        raise InputError(
            f"No prediction in {places.predictions} ({few[0]}) has the name of a reference in {places.references} "
            f"({few[1]}). Rename them, or name the pairs in a table with --cases."
        )
    images = listed_scans(places.images) if places.images else {}
    probabilities = listed_maps(places)
    if places.probabilities is not None and not probabilities.keys() & references.keys():
        raise InputError(
            f"{places.probabilities} has no folder named after a reference. It should hold CASE/CLASS.nii.gz, such as "
            f"{min(references)}/liver_tumor.nii.gz."
        )
    return [
        Case(name, reference, predictions.get(name), images.get(name), probabilities.get(name))
        for name, reference in sorted(references.items())
    ]


def listed_cases(folder: Path) -> dict[str, Path]:
    """The cases in `folder`: name -> label map or folder of masks. nnU-Net's channel (_0000) is no part of a name."""
    return _listed(folder, _case_in)


def listed_scans(folder: Path) -> dict[str, Path]:
    """The scans in `folder`: `CASE.nii.gz`, or `CASE/ct.nii.gz` (or image, imaging, scan; or the only image there)."""
    return _listed(folder, _scan_in)


def _listed(folder: Path, inside: Callable[[Path], Path | None]) -> dict[str, Path]:
    cases = {
        path: case
        for path in sorted(folder.iterdir())
        if (case := path if is_image(path) else inside(path)) is not None
    }
    has_channels = all(image_name(path).endswith(_CHANNEL) for path in cases)  # not if case_0000 is the first of many
    found: dict[str, Path] = {}
    for path, case in cases.items():
        name = image_name(path).removesuffix(_CHANNEL if has_channels else "")
        if name in found:
            raise InputError(f"{found[name]} and {case} are both the case {name!r}. Keep one of them there.")
        found[name] = case
    return found


def listed_maps(places: Places) -> dict[str, Path]:
    """The cases that have probability maps: name -> the folder of the maps."""
    folder = places.probabilities or places.predictions
    own = {path.name: path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    beside = {name: maps for name, path in own.items() if (maps := _maps_in(path)) is not None}
    return beside if places.probabilities is None else {**own, **beside}


def _maps_in(folder: Path) -> Path | None:
    """Where the probability maps of one case lie, if the folder has them."""
    maps = folder / _PROBABILITY_FOLDER
    return maps if maps.is_dir() else None


def _case_in(folder: Path) -> Path | None:
    """The masks or the label map in the folder of one case; None if it holds no image."""
    if not folder.is_dir():
        return None
    for inner in _MASK_FOLDERS:
        if (folder / inner).is_dir() and mask_files(folder / inner):
            return folder / inner
    images = mask_files(folder)
    for name in _MAP_NAMES:
        for path in images:
            if image_name(path) == name:
                return path
    return folder if images else None


def _scan_in(folder: Path) -> Path | None:
    """The scan in the folder of one case."""
    images = mask_files(folder) if folder.is_dir() else []
    named = [path for path in images if image_name(path) in _SCAN_NAMES]
    return next(iter(named or images), None) if named or len(images) == 1 else None


def _from_table(table: Path, places: Places) -> list[Case]:
    """The cases of a CSV table: column `case`, and any of prediction, reference, image, probabilities (paths beside the
    table, or names in their folders), set, annotated (classes separated by ; or ,). Other columns are sub-groups."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SettingError(f"The table {table} cannot be read: {error.strerror}.") from error
    if not rows or "case" not in rows[0]:
        raise SettingError(f"The table {table} needs a first line with the column `case`, and one line per case.")
    names = [row["case"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(f"The table {table} has the case {twice[0]!r} twice.")
    listed = {
        "prediction": listed_cases(places.predictions) if places.predictions.is_dir() else {},
        "reference": listed_cases(places.references) if places.references.is_dir() else {},
        "image": listed_scans(places.images) if places.images else {},
        "probabilities": listed_maps(places),
    }
    cases = []
    for row in rows:
        name = row["case"]
        files = {
            kind: _named(row[kind], table, place) if row.get(kind) else place.get(name)
            for kind, place in listed.items()
        }
        reference = files["reference"]
        if reference is None:
            raise SettingError(
                f"The table {table} names the case {name!r}, of which {places.references} has no reference."
            )
        annotated = row.get("annotated") or ""
        cases.append(
            Case(
                name=name,
                reference=reference,
                prediction=files["prediction"],
                image=files["image"],
                probabilities=files["probabilities"],
                data_set=row.get("set") or "",
                groups={key: value for key, value in row.items() if key not in _COLUMNS and value},
                annotated=split_classes(annotated) if annotated.strip() else None,
            )
        )
    return cases


def _named(value: str, table: Path, listed: Mapping[str, Path]) -> Path:
    """The file or folder that a cell names: a case of its folder, or a path (relative to the table)."""
    if value in listed:
        return listed[value]
    path = table.parent / value
    return _case_in(path) or path


def split_classes(text: str | Sequence[str]) -> tuple[str, ...]:
    """Class names separated by commas or semicolons, as keys where the taxonomy knows them."""
    parts = text.replace(";", ",").split(",") if isinstance(text, str) else text
    return tuple(canonical(part.strip()) for part in parts if part.strip())
