"""The cache: every scan once at the network's grid, compressed in chunks, so that a patch reads only its own.

    <cache>/<set>/<case>-<key>/
        image.b2nd         int16 HU [X, Y, Z], RAS axes, the patient's box at the settings' spacing
        codes.b2nd         uint8 (uint16): what is drawn at each voxel, see drawing.py; never dense channels
        points.npy         for every code a sample of the voxels that hold it, int16 [n, 3]
        entry.json         what the codes mean, geometry, sizes of the files; written last

Images keep their HU: windows, contrast augmentation and another model need them, and they compress to about one
byte a voxel. `key` is a digest of everything the arrays depend on: the bytes of the image and its labels, the
settings, what is split into sides, and the format's version. What a value means in classes is not in it: that is
looked up when the entry is opened, so a corrected table needs no new cache.

An entry is written into a temporary folder and renamed as a whole. Whatever kills a run, a folder with the final
name is complete; what lies under a temporary name is never read and is swept up by a later run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from viscera.data.assemble import LabelTable, label_table
from viscera.data.catalogue import Source
from viscera.data.drawing import (
    CodeArray,
    Drawing,
    Drawn,
    Meaning,
    organs_drawn,
    read_drawing_in_space,
    read_image,
    source_of,
    with_sides,
)
from viscera.data.lateral import midplane
from viscera.data.layout import Case
from viscera.data.synthesis import imagined
from viscera.errors import ImageError, InputError, MissingDependencyError, OutputError, SettingError, VisceraError
from viscera.io.body import find_body
from viscera.io.grid import resample_image, resample_labels
from viscera.io.orientation import to_ras
from viscera.io.stream import sha256_of_file
from viscera.shapes import Box, SpacingMm, Triple, triple

FORMAT = 1  # of an entry; a reader refuses others
HU_RANGE = (-1024, 3071)  # 12 bits, what scanners store without metal extension
CHUNK = (32, 32, 32)
SAMPLED_VOXELS = 1000  # of each code; a lesion of 15 mm at 1.5 mm is about that
_UNFINISHED = ".unfinished-"
_DIGESTS = ".digests"
_STALE_S = 6 * 3600  # a temporary folder of another machine this old belongs to nobody


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How scans are brought to the network's grid.

    spacing_mm    of the grid
    smooth        average over the new voxel's surroundings where an image shrinks (see `io.grid.mean_taps`)
    crop_to_body  keep only the box around the patient (and around everything drawn)
    """

    spacing_mm: SpacingMm = (1.5, 1.5, 1.5)
    smooth: bool = False
    crop_to_body: bool = True

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not all(0.2 <= s <= 10 for s in self.spacing_mm):
            raise SettingError(f"The cache's spacing is {self.spacing_mm} mm; it must be three numbers from 0.2 to 10.")


@dataclass(frozen=True, eq=False)
class CachedCase:
    """What is known of one entry; its arrays are read from disk piece by piece, in any process.

    voxels       how many voxels hold each code
    first_point  where each code's coordinates begin in the sample (and the last ones end)
    """

    folder: Path
    id: str
    dataset: str
    shape: Triple
    spacing_mm: SpacingMm
    meanings: tuple[Meaning, ...]
    voxels: tuple[int, ...]
    first_point: tuple[int, ...]
    sources: tuple[Source, ...]
    annotated: tuple[str, ...]
    unions: tuple[tuple[str, ...], ...]

    def image(self, box: Box | None = None) -> npt.NDArray[np.int16]:
        """HU of a box (the whole if none is given): int16 [X, Y, Z]; reads only the chunks it touches."""
        out: npt.NDArray[np.int16] = self._array("image.b2nd", box)
        return out

    def codes(self, box: Box | None = None) -> CodeArray:
        """Codes of a box: uint8 or uint16 [X, Y, Z]."""
        out: CodeArray = self._array("codes.b2nd", box)
        return out

    def coordinates(self, code: int) -> npt.NDArray[np.int16]:
        """A sample of the voxels that hold `code`: int16 [n, 3]; reads only that part of the file."""
        points = np.load(self.folder / "points.npy", mmap_mode="r")
        part: npt.NDArray[np.int16] = np.array(points[self.first_point[code] : self.first_point[code + 1]])
        return part

    def table(self, classes: Sequence[str]) -> LabelTable:
        """What the codes mean for a model with these `classes`."""
        return label_table(self.meanings, self.sources, self.annotated, self.unions, classes)

    def drawing(self) -> Drawing:
        """The whole label as codes with their meanings."""
        return Drawing(self.codes(), self.meanings)

    def _array(self, name: str, box: Box | None) -> Any:
        # Opened for each read: it takes 0.1 ms, and thousands of scans would be more open files than allowed.
        opened = _blosc2().open(str(self.folder / name), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return opened[(box or Box.whole(self.shape)).slices]


@dataclass(frozen=True)
class CacheOutcome:
    """How one case ended."""

    case: str
    status: Literal["made", "found", "failed"]
    message: str = ""
    entry: Path | None = None


def cache_cases(
    cases: Sequence[Case],
    cache: Path,
    settings: CacheSettings,
    *,
    workers: int = 1,
    ended: Callable[[CacheOutcome], None] | None = None,
) -> list[CacheOutcome]:
    """Brings every case into the cache; those that are there already are found, not made again.

    A case that cannot be read fails alone. Several runs may fill one cache at once. `ended` hears of every case.
    Raises OutputError if the cache cannot be written, and if a worker process dies (its cases are made next time).
    """
    _blosc2()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The cache folder {cache} cannot be made: {error.strerror}.") from error
    _sweep(cache)
    outcomes: list[CacheOutcome] = []

    def note(outcome: CacheOutcome) -> None:
        outcomes.append(outcome)
        if ended is not None:
            ended(outcome)

    if workers <= 1:
        for case in cases:
            note(cache_case(case, cache, settings))
        return outcomes
    # "spawn": a forked copy of a process that runs torch's threads may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        waiting = {pool.submit(cache_case, case, cache, settings): case for case in cases}
        try:
            for future in as_completed(waiting):
                note(future.result())
        except BrokenProcessPool as error:
            left = len(cases) - len(outcomes)
            raise OutputError(
                f"A worker process was killed (out of memory?) with {left} cases to go. What is finished is kept: "
                "run the same command again, with fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return outcomes


def cache_case(case: Case, cache: Path, settings: CacheSettings) -> CacheOutcome:
    """Makes one entry unless it is there."""
    try:
        final = entry_path(case, cache, settings)
        if final.is_dir():
            return CacheOutcome(case.id, "found", entry=final)
        image, drawing, geometry = prepare_case(case, settings)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=final.parent))
        try:
            _write_entry(temporary, case, image, drawing, geometry, settings)
            _publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return CacheOutcome(case.id, "made", entry=final)
    except (VisceraError, OSError) as error:
        return CacheOutcome(case.id, "failed", str(error))


def entry_path(case: Case, cache: Path, settings: CacheSettings) -> Path:
    """Where this case's entry lies, if it is there, for these settings and the files as they are now."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in case.name)
    return cache / case.dataset.key / f"{safe}-{_key(case, cache, settings)}"


def open_cached(cases: Iterable[Case], cache: Path, settings: CacheSettings) -> tuple[list[CachedCase], list[Case]]:
    """The entries of `cases`, and the cases that have none yet."""
    entries: list[CachedCase] = []
    missing: list[Case] = []
    for case in cases:
        folder = entry_path(case, cache, settings)
        if folder.is_dir():
            entries.append(_open(folder, case))
        else:
            missing.append(case)
    return entries, missing


def prepare_case(case: Case, settings: CacheSettings) -> tuple[npt.NDArray[np.int16], Drawing, dict[str, Any]]:
    """A case at the network's grid: HU int16 [X, Y, Z], its drawing with sides, and where the grid lies.

    A case without an image gets one painted. Raises ImageError for files that cannot be read or do not fit, and for
    label values that the table does not know.
    """
    volume = None if case.image is None else read_image(case)
    drawing, affine = read_drawing_in_space(case, volume)
    require_known(drawing, case)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(x), float(y), float(z))
    grid_mm = settings.spacing_mm
    codes = resample_labels(drawing.codes, spacing, grid_mm)
    if volume is None:
        image = imagined(Drawing(codes, drawing.meanings), case.group.sources, grid_mm, _seed(case))
    else:
        image = resample_image(to_ras(volume)[0], spacing, grid_mm, smooth=settings.smooth)
    box = Box.whole(image.shape)
    if settings.crop_to_body:
        box = find_body(image, grid_mm).box
        drawn = Box.around(codes != 0)
        box = box if drawn.is_empty else box.union(drawn)
    image = image[box.slices]
    codes = np.ascontiguousarray(codes[box.slices])
    drawing = Drawing(codes, drawing.meanings)
    middle = midplane(image, grid_mm, without=organs_drawn(drawing, case.group.sources))
    drawing = with_sides(drawing, case.group.sources, grid_mm, middle)
    low, high = HU_RANGE
    rounded = np.rint(np.clip(image, low, high)).astype(np.int16)
    axes = affine[:3, :3] / np.array(spacing) * np.array(grid_mm)
    grid_affine = np.eye(4)
    grid_affine[:3, :3] = axes
    grid_affine[:3, 3] = affine[:3, 3] + axes @ np.array(box.start)
    return (
        rounded,
        drawing,
        {
            "affine": grid_affine.tolist(),
            "notes": list(volume.provenance.notes) if volume else ["The image was painted from the labels."],
        },
    )


def require_known(drawing: Drawing, case: Case) -> None:
    """Raise ImageError if the labels hold values that the set's table does not explain."""
    unknown = sorted(drawing.values() - set(case.group.value_of) - {""})
    if unknown:
        raise ImageError(
            f"{case.labels['']} holds the values {', '.join(unknown)}, which the table of {case.dataset.key} does not "
            "explain. Add them to its [labels], as { name = ... } if they are no class."
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_entry(
    folder: Path,
    case: Case,
    image: npt.NDArray[np.int16],
    drawing: Drawing,
    geometry: dict[str, Any],
    settings: CacheSettings,
) -> None:
    _compress(image, folder / "image.b2nd")
    _compress(drawing.codes, folder / "codes.b2nd")
    voxels = np.bincount(drawing.codes.ravel(), minlength=len(drawing.meanings))
    points, starts = _sampled(drawing, _seed(case))
    np.save(folder / "points.npy", points)
    entry = {
        "format": FORMAT,
        "case": case.id,
        "shape": image.shape,
        "settings": asdict(settings),
        "meanings": [[[d.value, d.side] for d in meaning] for meaning in drawing.meanings],
        "voxels": voxels.tolist(),
        "first_point": starts.tolist(),
        **geometry,
        "bytes": {name: (folder / name).stat().st_size for name in ("image.b2nd", "codes.b2nd", "points.npy")},
    }
    (folder / "entry.json").write_text(json.dumps(entry, indent=1), encoding="utf-8")


def _seed(case: Case) -> int:
    return int(hashlib.sha256(case.id.encode()).hexdigest()[:8], 16)


def _compress(array: npt.NDArray[Any], path: Path) -> None:
    blosc2 = _blosc2()
    # Zstandard on shuffled bits: 0.9 bytes a voxel of CT, 0.02 of labels; a 96^3 patch opens in 3 ms.
    cparams = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 5,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "nthreads": 1,
    }
    blosc2.asarray(
        np.ascontiguousarray(array), chunks=CHUNK, blocks=CHUNK, urlpath=str(path), mode="w", cparams=cparams
    )


def _sampled(drawing: Drawing, seed: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Up to `SAMPLED_VOXELS` voxels of every code: points [n, 3] and where each code's begin (and the last ends)."""
    rng = np.random.default_rng(seed)
    flat = drawing.codes.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=len(drawing.meanings)))
    parts: list[npt.NDArray[np.int64]] = []
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        count = min(SAMPLED_VOXELS, int(stop - start))
        parts.append(
            np.sort(order[start + rng.choice(int(stop - start), count, replace=False)]) if count else order[:0]
        )
    points = np.stack(np.unravel_index(np.concatenate(parts), drawing.codes.shape), 1).astype(np.int16)
    return points, np.cumsum([0, *(len(part) for part in parts)])


def _publish(temporary: Path, final: Path) -> None:
    """Gives a complete folder its name; its files reach the disk before the name does."""
    for path in (*temporary.iterdir(), temporary):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():  # another run was faster: its entry is as good
            raise


def _sweep(cache: Path) -> None:
    """Removes what killed runs left behind: temporary folders of processes that are gone."""
    for left in (*cache.glob(f"*/{_UNFINISHED}*"), *cache.glob(f"*/{_DIGESTS}/{_UNFINISHED}*")):
        pid = left.name.removeprefix(_UNFINISHED).split("-")[0]
        try:
            stale = not _is_alive(int(pid)) or time.time() - left.stat().st_mtime > _STALE_S
        except (ValueError, FileNotFoundError):
            continue
        if stale and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif stale:
            left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- reading ---------------------------------------------------------------------------------------------------------


def _open(folder: Path, case: Case) -> CachedCase:
    try:
        entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        whole = entry["format"] == FORMAT and all(
            (folder / name).stat().st_size == size for name, size in entry["bytes"].items()
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"The cache entry {folder} is damaged ({error}). Remove it and run `viscera data cache`."
        ) from error
    if not whole:
        raise InputError(
            f"The cache entry {folder} is damaged: its files have other sizes. Remove it and run `viscera data cache`."
        )
    x, y, z = entry["settings"]["spacing_mm"]
    return CachedCase(
        folder=folder,
        id=case.id,
        dataset=case.dataset.key,
        shape=triple(entry["shape"]),
        spacing_mm=(x, y, z),
        meanings=tuple(tuple(Drawn(value, side) for value, side in meaning) for meaning in entry["meanings"]),
        voxels=tuple(entry["voxels"]),
        first_point=tuple(entry["first_point"]),
        sources=case.group.sources,
        annotated=case.annotated,
        unions=case.group.unions,
    )


# --- the key ---------------------------------------------------------------------------------------------------------


def _key(case: Case, cache: Path, settings: CacheSettings) -> str:
    """A digest of everything an entry's arrays depend on."""
    digests = _Digests(cache / case.dataset.key / _DIGESTS)
    files = [("image", case.image)] if case.image else []
    files += [
        (name, path)
        for name, path in sorted(case.labels.items())
        if not name or source_of(case.group.sources, name) is not None
    ]
    about = {
        "format": FORMAT,
        "settings": asdict(settings),
        "files": [(name, digests.of(path)) for name, path in files],
        "masks": [s.value for s in case.group.sources if case.group.has_masks],
        # Sides depend on what else is drawn of the same organs.
        "sides": [
            (s.value, s.right, s.left) for s in case.group.sources if any(t.is_split for t in case.group.sources)
        ],
        "label_format": case.dataset.label_format,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


class _Digests:
    """SHA-256 of files, remembered by path, size and time of change, so that a second run reads no voxels."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path) -> str:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        if not files:
            raise ImageError(f"{path} holds no file.")
        stamps = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        note = self._folder / hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]
        try:
            return note.read_text(encoding="ascii")
        except OSError:
            pass
        parts = [sha256_of_file(p) for p in files]
        digest = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{_UNFINISHED}{os.getpid()}-{note.name}")
        temporary.write_text(digest, encoding="ascii")
        os.replace(temporary, note)
        return digest


def _one_thread() -> None:
    """A worker of several uses one thread."""
    import torch

    torch.set_num_threads(1)


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError as error:
        raise MissingDependencyError(
            "The cache needs blosc2, which is not installed. Run: pip install 'viscera[train]'"
        ) from error
    return blosc2
