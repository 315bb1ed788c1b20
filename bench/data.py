"""Patches for training: milliseconds each, bytes of the cache, and how that compares with MONAI on the same files.

    python bench/data.py

Both sides crop 96^3 patches around organs from the same phantom CT at 1.5 mm and give 32 binary targets, one thread.
MONAI keeps the prepared scans in memory (CacheDataset, RandCropByPosNegLabeld, RandAffined, AsDiscreted); viscera
reads its compressed cache from disk. Scans are phantoms, whose noise compresses as that of real scans does.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from viscera.data.assemble import collate, lookup
from viscera.data.cache import CachedCase, CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import dataset_table
from viscera.data.layout import Case, find_cases
from viscera.data.lesions import LesionSettings
from viscera.data.loader import PatchSource
from viscera.data.phantom import PhantomSettings, write_dataset
from viscera.data.sampling import PatchSampler, SamplingSettings
from viscera.data.transforms import NONE, PAPER, STRONG, AugmentSettings
from viscera.report.manifest import machine
from viscera.taxonomy import taxonomy

OUT = Path(__file__).parent / "out" / "data.json"
WINDOW_HU = (-175.0, 250.0)
DENSE_BYTES = 32  # a voxel, of one uint8 channel a class
LARGEST_CACHE_SHARE = 1 / 20
CLASSES = taxonomy().keys
PATCHES = 24


def milliseconds(make: Callable[[int], object]) -> float:
    """Median time of one call, the first left out."""
    times = []
    for number in range(PATCHES + 1):
        start = time.perf_counter()
        make(number)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1000


def ours(entries: list[CachedCase], side: int, augment: AugmentSettings) -> float:
    """Milliseconds for a patch with its targets."""
    sampler = PatchSampler(entries, CLASSES, SamplingSettings(patch_voxels=(side,) * 3), 0)
    source = PatchSource(sampler, augment, WINDOW_HU)

    def batch(number: int) -> object:
        patch = source[number]
        return collate([patch.image], [patch.codes], [patch.table], [patch.case])

    return milliseconds(batch)


def monai(cases: list[Case], side: int, with_affine: bool) -> float:
    """Milliseconds for a patch with its targets, scans prepared and kept in memory beforehand."""
    import monai.transforms as mt
    from monai.data import CacheDataset

    keys = ["image", "label"]
    steps: list[mt.Transform] = [
        mt.LoadImaged(keys, ensure_channel_first=True),
        mt.Orientationd(keys, axcodes="RAS"),
        mt.Spacingd(keys, pixdim=(1.5, 1.5, 1.5), mode=("bilinear", "nearest")),
        mt.ScaleIntensityRanged("image", *WINDOW_HU, 0.0, 1.0, clip=True),
        mt.CropForegroundd(keys, source_key="image"),
        mt.RandCropByPosNegLabeld(keys, "label", (side,) * 3, pos=2, neg=1, num_samples=1),
    ]
    if with_affine:
        turn = tuple(np.deg2rad(STRONG.turn_degrees))
        steps.append(mt.RandAffined(keys, prob=1.0, rotate_range=turn, scale_range=0.2, mode=("bilinear", "nearest")))
    steps.append(mt.AsDiscreted("label", to_onehot=len(CLASSES) + 1))
    files = [{"image": str(case.image), "label": str(case.labels[""])} for case in cases]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = CacheDataset(files, mt.Compose(steps), progress=False)
        return milliseconds(lambda number: dataset[number % len(files)])


def main() -> int:
    torch.set_num_threads(1)
    lesions = AugmentSettings(**{**vars(STRONG), "lesions": LesionSettings(probability=1.0, anywhere=True)})
    recipes = {"none": NONE, "paper": PAPER, "strong": STRONG, "strong + a lesion": lesions}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_dataset(dataset_table("amos"), folder / "amos", 2, 0, PhantomSettings(spacing_mm=(1.0, 1.0, 2.5)))
        cases = list(find_cases(dataset_table("amos"), folder / "amos").cases)
        start = time.perf_counter()
        cache_cases(cases, folder / "cache", CacheSettings())
        cache_s = (time.perf_counter() - start) / len(cases)
        entries = open_cached(cases, folder / "cache", CacheSettings())[0]
        voxels = sum(int(np.prod(entry.shape)) for entry in entries)
        size = sum(path.stat().st_size for entry in entries for path in entry.folder.iterdir())
        share = size / (voxels * DENSE_BYTES)
        rows = {f"{side}^3 {name}": ours(entries, side, r) for side in (64, 96) for name, r in recipes.items()}
        theirs = {f"96^3 {name}": monai(cases, 96, affine) for name, affine in (("none", False), ("affine", True))}
        codes = torch.from_numpy(entries[0].codes()[:96, :96, :96].astype(np.int32))
        table = entries[0].table(CLASSES)
        rows["96^3 lookup of 32 targets alone"] = milliseconds(lambda _: lookup(table.rows, codes))
    plain, moved = theirs["96^3 none"] / rows["96^3 none"], theirs["96^3 affine"] / rows["96^3 strong"]
    print(
        f"{machine()['cpu']}, one thread; {len(entries)} scans of {voxels / len(entries) / 1e6:.0f} M voxels at 1.5 mm"
    )
    for name, ms in rows.items():
        print(f"viscera  {name:<34}{ms:8.1f} ms a patch")
    for name, ms in theirs.items():
        print(f"MONAI    {name:<34}{ms:8.1f} ms a patch")
    print(f"caching a scan takes {cache_s:.1f} s and {size / voxels:.2f} bytes a voxel")
    met = share <= LARGEST_CACHE_SHARE and plain >= 1 and moved >= 1
    result = {"machine": machine(), "ms": rows, "monai_ms": theirs, "cache_share_of_dense": share, "cache_s": cache_s}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({**result, "speedup": {"crop": plain, "augmented": moved}}, indent=2))
    print(
        f"data: cache 1/{1 / share:.0f} of dense targets (bar 1/20), {plain:.1f}x MONAI for crops, {moved:.1f}x for "
        f"augmented patches (bar 1x): {'every bar met' if met else 'A BAR IS MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
