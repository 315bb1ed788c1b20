"""What the values and files of one side (predictions or references) mean, and its masks class by class.

A side is a label map (one file, values by a table) or a folder with one mask per class (classes by file name). Names
become keys of the taxonomy where they mean one; other names stay as they are, so anybody's masks can be scored.

A class may be merged on one side: `kidneys` in the reference is compared with the right and left kidney of a
prediction together, because `kidneys` is a group of the taxonomy.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from viscera.components import components
from viscera.data.catalogue import host_organs
from viscera.errors import ClassNameError, ImageError, SettingError
from viscera.io.labels import read_labels
from viscera.io.volume import Volume
from viscera.masks import BoolArray, MaskSet, SoftMask
from viscera.metrics.score import ClassMasks, LabelMap, box_around
from viscera.names import resolve
from viscera.report.evaluation.grid import Grid, Lookup
from viscera.shapes import Box, triple
from viscera.taxonomy import taxonomy

Labels = npt.NDArray[np.unsignedinteger[Any]]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr")


@dataclass(frozen=True)
class LabelTable:
    """Which values of a label map belong to which class.

    painted  the map was painted: what lies inside an organ (tumours, cysts, vessels of the liver) hides the
             organ's own value there and still belongs to it. True for the label maps that viscera writes.
    """

    values: Mapping[str, tuple[int, ...]]
    painted: bool = False


def own_labels() -> LabelTable:
    """The label maps viscera writes: value = class id, lesions painted over their organs."""
    return LabelTable({s.key: (s.id,) for s in taxonomy()}, painted=True)


@cache
def canonical(name: str) -> str:
    """The key or group of the taxonomy that `name` means; `name` itself if it means none."""
    try:
        keys = {s.key for s in resolve(name)}
    except ClassNameError:
        return name
    if len(keys) == 1:
        return keys.pop()
    return next((group for group, members in taxonomy().groups.items() if set(members) == keys), name)


def read_label_table(path: Path) -> LabelTable:
    """Read which value means which class: a TOML or JSON file of ``name = value`` or ``name = [values]``.

    An nnU-Net or Decathlon `dataset.json` (its `labels`, either way round) is taken as it is. Raises SettingError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SettingError(f"The label table {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SettingError(f"The label table {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    table = table.get("labels", table) if isinstance(table, dict) else {}
    values: dict[str, tuple[int, ...]] = {}
    for name, value in table.items():
        if name.isdecimal() and isinstance(value, str):  # Decathlon: {"1": "liver"}
            name, value = value, int(name)
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(v, int) and v >= 0 for v in listed):
            raise SettingError(
                f"The label table {path} gives {name!r} the value {value!r}; write whole numbers from 1."
            )
        if any(listed):  # 0 is the background
            key = canonical(name)
            values[key] = tuple(sorted({*values.get(key, ()), *(v for v in listed if v)}))
    if not values:
        raise SettingError(f"The label table {path} names no class. Write lines such as: liver = 1")
    return LabelTable(values)


def parts_of(key: str, known: Iterable[str]) -> tuple[str, ...]:
    """Which of the `known` classes make up `key`: itself, or all members of the group it names; () if neither."""
    known = set(known)
    if key in known:
        return (key,)
    members = taxonomy().groups.get(key, ())
    return tuple(members) if members and known.issuperset(members) else ()


class Side(Protocol):
    """One side of one case, read from disk."""

    grid: Grid
    keys: tuple[str, ...]  # classes it can tell
    sha256: str | None  # of the file; None for a folder

    def holds(self, key: str) -> bool:
        """Whether class `key` may have a voxel here; cheap, so a mask file counts without being read."""

    def masks(self, keys: Iterable[str], lookup: Lookup) -> ClassMasks:
        """The masks of `keys` (each made up of own classes, see `parts_of`) on the grid that `lookup` leads to."""


def read_side(path: Path, table: LabelTable) -> Side:
    """Read a label map, or the masks of a folder. Raises ImageError."""
    if path.is_dir():
        return MaskFiles({canonical(image_name(file)): [file] for file in mask_files(path)})
    return MapFile(path, table)


class MapFile:
    """A label map as a side."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        volume = read_labels(path)
        self.grid, self.sha256 = grid_of(volume), volume.provenance.sha256
        self.keys = tuple(table.values)
        self._array: Labels = volume.array
        self._values = dict(table.values)
        if table.painted:
            self._array, self._values = unpainted(self._array, self._values)

    @cached_property
    def _whole(self) -> LabelMap:
        return LabelMap(self._array, self._values)

    def holds(self, key: str) -> bool:
        return not self._whole.box(key).is_empty

    def masks(self, keys: Iterable[str], lookup: Lookup) -> ClassMasks:
        joined = {key: tuple(v for part in parts_of(key, self.keys) for v in self._values[part]) for key in keys}
        return LabelMap(lookup(self._array), joined)


class MaskFiles:
    """One mask file per class, or several, as a side; a class without a file is absent."""

    def __init__(self, files: Mapping[str, Sequence[Path]]) -> None:
        self._files = files
        self.keys = tuple(files)
        first = next(file for of_class in files.values() for file in of_class)
        self.grid = grid_of(read_labels(first))
        self.sha256: str | None = None

    def holds(self, key: str) -> bool:
        return bool(self._files[key])

    def masks(self, keys: Iterable[str], lookup: Lookup) -> ClassMasks:
        found = {}
        for key in keys:
            whole = np.zeros(lookup.to.shape, bool)
            for file in (file for part in parts_of(key, self.keys) for file in self._files[part]):
                volume = read_labels(file)
                if not grid_of(volume).is_same(self.grid):
                    raise ImageError(f"{file} has another grid than the masks beside it.")
                whole |= lookup(volume.array) > 0
            found[key] = SoftMask.of(whole)
        x, y, z = lookup.to.spacing_mm
        return MaskSet(lookup.to.shape, (float(x), float(y), float(z)), found)


def grid_of(volume: Volume) -> Grid:
    """Where a volume's voxels lie."""
    return Grid(volume.shape, volume.affine)


def image_name(path: Path) -> str:
    """A file's name without its image suffix: "liver.nii.gz" -> "liver"."""
    return next((path.name[: -len(s)] for s in IMAGE_SUFFIXES if path.name.lower().endswith(s)), path.name)


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".") and path.is_file()


def mask_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def unpainted(array: Labels, values: Mapping[str, tuple[int, ...]]) -> tuple[Labels, dict[str, tuple[int, ...]]]:
    """A painted label map made readable: for each class all values that belong to it, what hides it included.

    What lies inside an organ without sides belongs to it (`host_organs`). Where the hosts are the two sides of a pair,
    each connected piece belongs to the side it touches most: its voxels get values of their own, in a copy of
    `array`. A piece that touches neither belongs to no host.
    """
    classes = taxonomy()
    full = {key: list(own) for key, own in values.items()}
    on_sides: dict[tuple[str, ...], list[str]] = {}
    for key in values:
        hosts = tuple(host for host in host_organs(key) if host in values) if key in classes else ()
        if len(hosts) == 2 and classes[hosts[0]].pair == hosts[1]:
            on_sides.setdefault(hosts, []).append(key)
        else:
            for host in hosts:
                full[host] += values[key]

    own = LabelMap(array, values)
    spare = max(int(array.max()), *(v for vs in values.values() for v in vs)) + 1
    for hosts, inner in on_sides.items():
        outer = box_around([own.box(key) for key in inner])
        if outer.is_empty:
            continue
        outer = outer.grown(1, within=own.shape)
        if array is own.array:
            array = array.astype(np.result_type(array, np.min_scalar_type(spare + 2 * len(values))))
        for box, piece in _pieces(np.logical_or.reduce([own.crop(key, outer) for key in inner])):
            place = box.shifted(outer.start)
            around = _grown(piece) & ~piece
            touching = [int((own.crop(host, place) & around).sum()) for host in hosts]
            if any(touching):
                side = touching.index(max(touching))
                for i, key in enumerate(inner):
                    array[place.slices][piece & own.crop(key, place)] = spare + 2 * i + side
        for i, key in enumerate(inner):
            for side, host in enumerate(hosts):
                full[host].append(spare + 2 * i + side)
                full[key].append(spare + 2 * i + side)
        spare += 2 * len(inner)
    return array, {key: tuple(of_key) for key, of_key in full.items()}


def _pieces(mask: BoolArray) -> Iterator[tuple[Box, BoolArray]]:
    """The 26-connected pieces of `mask`: the box around each with a voxel to spare, and which of its voxels are in."""
    found = components(mask)
    for label, tight in enumerate(found.boxes, start=1):
        box = tight.grown(1, within=triple(mask.shape))
        yield box, found.labels[box.slices] == label


def _grown(mask: BoolArray) -> BoolArray:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, np.ones((3, 3, 3), bool)), bool)
