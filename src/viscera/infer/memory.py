"""How much memory a scan takes, told before it is taken, and the tiling that stays below a limit.

    program + weights + scan + network's grid + network at work + finished masks

(a large scan is in a file as soon as it is read: `viscera.io.aside`).

What can be chosen is only the network at work: one pass or windows, how large the windows are, and how many logits
are averaged at once. The rest is as it is, so a limit below it cannot be kept. The numbers are in
`knowledge/memory.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

from viscera.errors import SettingError
from viscera.infer.window import BUFFER_VALUES, SLAB, window_starts
from viscera.io.aside import ASIDE_BYTES
from viscera.model.universal import UniversalModel
from viscera.shapes import Triple, triple
from viscera.taxonomy import read_table

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}
_FEATURES = 8  # kept of every voxel of a waiting window
_BUFFER_BYTES = 2 * 4  # a logit: the sum over windows, and what is made of it
_SCAN_BYTES = 2  # a voxel of the scan as int16; a scan that needs float32 takes twice that
_GRID_BYTES = 4 + 2  # a voxel of the network's grid: the image as float32, its densities as int16
_RESAMPLED_BYTES = 4  # the same before it is cut to the body
_MASK_BYTES = 2  # a voxel of the grid: soft masks of organs that lie side by side, and their pieces before joining
_LABEL_BYTES = 1  # a voxel of the scan in the label map
_LARGEST_CLASS_BYTES = 2  # a voxel of the scan while the largest class is brought back to it and measured

LARGEST_PASS_VOXELS = 16_000_000  # a larger scan goes through windows; at 3 mm these are 0.43 cubic metres


@dataclass(frozen=True)
class Tiling:
    """How the network goes over an image.

    window        voxels of a window; None: the whole image in one pass
    buffer_values logits made at once; of one class at least
    """

    window: Triple | None
    buffer_values: int = BUFFER_VALUES


@dataclass(frozen=True)
class Sizes:
    """What the memory of a run depends on, in voxels: the scan, the network's grid, and what of it the network sees."""

    scan: Triple
    grid: Triple
    image: Triple


@cache
def _table() -> dict[str, Any]:
    return read_table("memory.toml")


def padded_size(size: Triple, multiple: int, minimum: int) -> Triple:
    """`size` with each side rounded up to what a backbone can divide."""
    return triple(max(minimum, -(-n // multiple) * multiple) for n in size)


def bytes_of(text: str) -> int:
    """A size as people write it: ``2GB``, ``1500 MB``, ``2GiB``, ``800M`` -> bytes. Raises SettingError for others."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None or not (size := int(float(found[1]) * _UNITS[found[2] or ""])):
        raise SettingError(f"{text!r} is not a size of memory; write it as 2GB, 1500MB or 2GiB.")
    return size


def needed_bytes(
    model: UniversalModel, sizes: Sizes, tiling: Tiling, overlap: float, precision: str, runtime: str
) -> int:
    """The peak of a process that segments one scan, by the model above."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    held: int = 1_000_000 * _table()["program_mb"] + 2 * weights
    if runtime == "openvino":
        held += 1_000_000 * _table()["openvino_mb"] + weights
    image = prod(sizes.image)
    scan = _SCAN_BYTES * prod(sizes.scan)
    preparing = _RESAMPLED_BYTES * (prod(sizes.grid) + image)
    network = _GRID_BYTES * image + _at_work(model, sizes.image, tiling, overlap, precision) + _MASK_BYTES * image
    after = (_GRID_BYTES + _MASK_BYTES) * image + (_LABEL_BYTES + _LARGEST_CLASS_BYTES) * prod(sizes.scan)
    later = max(preparing, network, after)
    return held + (max(scan, later) if scan >= ASIDE_BYTES else scan + later)


def _at_work(model: UniversalModel, image: Triple, tiling: Tiling, overlap: float, precision: str) -> int:
    """The network's own share: one window (or pass), the features of the windows that wait, the averaging."""
    table = _table()["working_bytes_per_voxel"]
    each: int = table.get(model.config.backbone, table["other"])[precision]
    kept = _FEATURES * (2 if precision == "bf16" else 4)
    if tiling.window is None:
        slab, waiting = SLAB, 0
        voxels = prod(padded_size(image, model.backbone.multiple, model.backbone.minimum_voxels))
    else:
        voxels = prod(tiling.window)
        x, y, z = (window_starts(n, w, overlap) for n, w in zip(image, tiling.window, strict=True))
        slab = min(SLAB, max(b - a for a, b in pairwise([*z, max(image[2], tiling.window[2])])))
        # Slices of windows above one another that wait at once: of each what lies above the row that is computed.
        depth = tiling.window[2]
        slices = max(sum(max(0, first + depth - now) for first in z if first <= now) for now in z)
        waiting = voxels // depth * slices * kept * len(x) * len(y)
    averaged = max(tiling.buffer_values, image[0] * image[1] * slab)  # at least one class
    return voxels * (each + kept) + waiting + averaged * _BUFFER_BYTES


def chosen_tiling(
    model: UniversalModel, sizes: Sizes, overlap: float, precision: str, runtime: str, max_bytes: int | None = None
) -> Tiling:
    """The best tiling whose memory stays within `max_bytes` (None: no limit), from the model's own downwards.

    Raises SettingError, which names the least that works, if none does.
    """
    candidates = list(_candidates(model, sizes.image))
    if max_bytes is None:
        return candidates[0]
    needs = [needed_bytes(model, sizes, tiling, overlap, precision, runtime) for tiling in candidates]
    for tiling, need in zip(candidates, needs, strict=True):
        if need <= max_bytes:
            return tiling
    least = -(-min(needs) // 10_000_000) / 100
    raise SettingError(
        f"This scan needs at least {least:.2f} GB with the model {model.config.name!r}, and --max-memory allows "
        f"{max_bytes / 1e9:.2f} GB. Allow {least:.2f}GB, take a smaller model, or cut the scan."
    )


def _candidates(model: UniversalModel, image: Triple) -> Iterator[Tiling]:
    """Tilings from the best to the smallest: one pass, the model's own windows, smaller ones; each with less buffer."""
    inference = model.config.inference
    if inference.mode == "whole" and prod(image) <= LARGEST_PASS_VOXELS:
        yield from (Tiling(None), Tiling(None, 1))
    multiple, least = model.backbone.multiple, model.backbone.minimum_voxels
    known: list[Triple] = []
    for part in (1.0, 0.75, 0.5):
        window = triple(max(least, round(n * part) // multiple * multiple) for n in inference.patch_voxels)
        if window not in known:
            known.append(window)
            yield from (Tiling(window), Tiling(window, 1))
