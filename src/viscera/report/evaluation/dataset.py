"""References as a data set was downloaded: its table says where they lie, what they mean and what is annotated.

Nothing is tuned to a set: whatever the table draws for sure is scored. Where one label stands for both organs of a
pair (`kidneys`), the reference does not tell the sides, so both of the prediction are scored as one group. What the
table leaves undecided (stomach or duodenum) is not scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from viscera.data.catalogue import Source, table_for
from viscera.data.drawing import read_drawing, read_image, source_of
from viscera.data.layout import Case as DatasetCase
from viscera.data.layout import find_cases
from viscera.errors import InputError
from viscera.io.orientation import to_ras
from viscera.masks import MaskSet, SoftMask
from viscera.metrics.score import ClassMasks
from viscera.report.evaluation.cases import Case, Places, listed_cases, listed_maps
from viscera.report.evaluation.grid import Grid, Lookup
from viscera.report.evaluation.labels import LabelTable, MapFile, MaskFiles, Side, parts_of
from viscera.shapes import triple
from viscera.taxonomy import taxonomy


def dataset_cases(table: str, folder: Path, predictions: Path, probabilities: Path | None = None) -> list[Case]:
    """The labelled cases of a data set (`table`: its key, or a .toml file) with their predictions by name.

    Probability maps are looked for beside the predictions, or in the folder `probabilities`.

    Raises InputError if there is no such table, or no case in `folder`.
    """
    found = find_cases(table_for(table), folder)
    if not found.cases:
        raise InputError(f"No case of {found.dataset.title} in {folder} has labels.")
    by_name = listed_cases(predictions) if predictions.is_dir() else {}
    maps = listed_maps(Places(predictions, folder, probabilities=probabilities))
    return [
        Case(
            name=case.name,
            reference=_place(case),
            prediction=by_name.get(case.name),
            image=case.image if case.image is not None and case.image.is_file() else None,
            probabilities=maps.get(case.name),
            data_set=found.dataset.key,
            groups={"group": case.group.name} if len(found.dataset.groups) > 1 else {},
            annotated=tuple(drawn_classes(case)),
            drawn=case,
        )
        for case in found.cases
    ]


def _place(case: DatasetCase) -> Path:
    """The label map, or the folder of the masks."""
    first = next(iter(case.labels.values()))
    return first if len(case.labels) == 1 else first.parent


def drawn_classes(case: DatasetCase) -> dict[str, tuple[Source, ...]]:
    """What a case's labels tell for sure: class, or group of a pair -> the sources that draw it.

    A class that these patients do not have by selection (`free_of`) is there without a source: a true negative.
    """
    pairs = {frozenset(members): group for group, members in taxonomy().groups.items() if len(members) == 2}
    drawn: dict[str, list[Source]] = {key: [] for key in case.group.free_of}
    for source in case.group.sources:
        for key in set(source.right) & set(source.left) & set(case.annotated):
            drawn.setdefault(key, []).append(source)
        sides = frozenset(set(source.right) ^ set(source.left))
        if sides in pairs and sides <= set(case.annotated):
            drawn.setdefault(pairs[sides], []).append(source)
    # Where the organs of a pair were drawn one by one, a cyst in one of them is not "the kidneys".
    of_lesions = [key for key in pairs.values() if key in drawn and all(source.is_lesion for source in drawn[key])]
    return {key: tuple(sources) for key, sources in drawn.items() if key not in of_lesions}


def read_drawn(case: DatasetCase) -> Side:
    """Read the labels of one case of a data set. Raises ImageError."""
    drawn = drawn_classes(case)
    if case.dataset.label_format != "image":
        return _Drawing(case, drawn)
    if not case.group.has_masks:
        values = {key: tuple(int(source.value) for source in sources) for key, sources in drawn.items()}
        return MapFile(case.labels[""], LabelTable(values))
    files: dict[str, list[Path]] = {key: [] for key in drawn}
    for structure, path in case.labels.items():
        source = source_of(case.group.sources, structure)
        for key, sources in drawn.items():
            if source in sources:
                files[key].append(path)
    return MaskFiles(files)


class _Drawing:
    """Labels that came as pictures or DICOM, on the grid of their CT."""

    def __init__(self, case: DatasetCase, drawn: Mapping[str, tuple[Source, ...]]) -> None:
        image = read_image(case)
        array, affine, _ = to_ras(image)
        self.grid = Grid(triple(array.shape), affine)
        self._drawing = read_drawing(case, image)
        self.keys = tuple(drawn)
        self.sha256: str | None = None
        self._drawn = drawn

    def holds(self, key: str) -> bool:
        return any(self._drawing.mask(source.value).any() for source in self._drawn[key])

    def masks(self, keys: Iterable[str], lookup: Lookup) -> ClassMasks:
        found = {}
        for key in keys:
            whole = np.zeros(self.grid.shape, bool)
            for source in (source for part in parts_of(key, self.keys) for source in self._drawn[part]):
                whole |= self._drawing.mask(source.value)
            found[key] = SoftMask.of(lookup(whole))
        x, y, z = lookup.to.spacing_mm
        return MaskSet(lookup.to.shape, (float(x), float(y), float(z)), found)
