"""How time and memory grow: with the scan's slices, and with the number of classes.

    python bench/scaling.py            slices and classes
    python bench/scaling.py slices     only one of: slices, classes
    python bench/scaling.py long       the U-Net over 300 and 1024 slices: most of an hour

Slices: scans of 512 x 512 x N, a real CT mirrored along z again and again, through `viscera segment` with the starter
model, file to files. "long": two of them with the U-Net and its 32 classes, without rules. It is seeded, so its masks
are noise that fills the whole grid, which no organ does; FILLED of them stand for a patient's, and no voxel reaches the
threshold of the others.

Classes: network and masks of one scan for 1, 32 and 117 classes. More classes are more text, and no other weights: the
model's own classes are asked for again and again. The starter is measured on the scan of 300 slices, the U-Net (seeded)
on a cube from its middle that eight overlapping windows cover. Times are taken in turns within one process, since a
machine's speed changes from minute to minute, and the mean counts.

Memory is the operating system's peak for a process that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import nibabel as nib
import numpy as np

from _process import run_timed
from _report import report
from viscera.infer.predict import predict
from viscera.infer.prepare import Prepared, prepare
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.model.store import load_model
from viscera.report.manifest import machine, peak_memory_mb
from viscera.shapes import Box
from viscera.workflow.demo import fetch_demo_scan
from viscera.workflow.scan import SegmentSettings, segment_scan, spacing_in_ras

STARTER, UNET = "starter", "unet"
SLICES, SPACING_MM = (100, 300, 600, 1024), (0.78, 0.78, 1.5)
CLASSES = (1, 32, 117)
STANDARD, LONGEST = 300, 1024
MOST_SECONDS, MOST_GROWTH = 10.0, 1.3
MOST_GB = {STARTER: 1.5, UNET: 3.0}
FILLED, NEVER = 4, 1 - 1e-9  # classes that are found, and the threshold of the others
MOST_TIME = {32: 1.15, 117: 1.3}  # times that of one class
MOST_MEMORY = 1.3
ROUNDS = 6  # in which one class, 32 and 117 take turns
CUBE_VOXELS = (144, 144, 144)  # two windows of the U-Net along each axis, half of which they share


def tiled(slices: int, folder: Path) -> Path:
    """A scan of 512 x 512 x `slices`: the demonstration CT, mirrored along z again and again."""
    path = folder / f"{slices}.nii.gz"
    if not path.exists():
        # In a process of its own: for the system, the peak of this one would be that of every process it starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            other.submit(tile, slices, path).result()
    return path


def tile(slices: int, path: Path) -> None:
    """Writes `tiled`'s scan."""
    array = np.asarray(nib.load(fetch_demo_scan()).dataobj).astype(np.int16)
    depth = array.shape[2]
    index = np.arange(slices) % (2 * depth)
    long = np.asfortranarray(array[:, :, np.where(index < depth, index, 2 * depth - 1 - index)])
    nib.save(nib.Nifti1Image(long, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])), path)


def segmented(scan: Path, folder: Path) -> dict[str, float]:
    """`viscera segment` in a fresh process: seconds from its start to its end, peak memory."""
    out = folder / "result"
    command = [sys.executable, "-m", "viscera", "segment", str(scan), "-o", str(out), "-m", STARTER]
    seconds, usage = run_timed([*command, "--quiet", "--overwrite"])
    return {"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def run_long(scan: Path) -> dict[str, float]:
    """In a child process: the U-Net over a scan, file to files."""
    start, model = time.perf_counter(), load_model(UNET)
    model.config = replace(model.config, thresholds=dict.fromkeys(model.config.classes[FILLED:], NEVER))
    result = segment_scan(scan, model, SegmentSettings(post=False))
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "result")
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_memory_mb() / 1000}


def run_classes(name: str, scan: Path, counts: list[int]) -> dict[str, Any]:
    """In a child process: network and masks for so many classes, once each and then in turns, if there are several."""
    model = load_model(name)
    volume = read_volume(scan)
    hu, _, reorientation = to_ras(volume)
    in_windows = model.config.inference.mode == "window"
    prepared = prepare(hu, spacing_in_ras(volume, reorientation), model.config.preprocessing, in_windows=in_windows)
    if in_windows:
        prepared = middle(prepared, CUBE_VOXELS)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(ROUNDS + 1 if len(counts) > 1 else 1):
        for count in counts[turn % len(counts) :] + counts[: turn % len(counts)]:
            start = time.perf_counter()
            predict(model, prepared, list(islice(cycle(model.config.classes), count)))
            times[count].append(time.perf_counter() - start)
    return {"seconds": {count: all_[1:] for count, all_ in times.items()}, "peak_gb": peak_memory_mb() / 1000}


def middle(prepared: Prepared, window: tuple[int, int, int]) -> Prepared:
    """A piece of this many voxels from the middle of the scan."""
    box = prepared.box
    start = [a + (b - a - w) // 2 for a, b, w in zip(box.start, box.stop, window, strict=True)]
    x, y, z = (max(a, s) for a, s in zip(box.start, start, strict=True))
    stop = [min(b, s + w) for b, s, w in zip(box.stop, (x, y, z), window, strict=True)]
    return prepared.within(Box((x, y, z), (stop[0], stop[1], stop[2])))


def child(name: str, scan: Path, counts: Sequence[int] = ()) -> dict[str, Any]:
    """`run_classes`, or without counts `run_long`, in a fresh process."""
    command = [sys.executable, __file__, "--child", name, str(scan), *map(str, counts)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured_slices(folder: Path) -> dict[int, dict[str, float]]:
    return {slices: segmented(tiled(slices, folder), folder) for slices in SLICES}


def measured_long(folder: Path) -> dict[int, dict[str, float]]:
    return {slices: child(UNET, tiled(slices, folder)) for slices in (STANDARD, LONGEST)}


def measured_classes(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    scan, found = tiled(STANDARD, folder), {}
    for name in (STARTER, UNET):
        memory = {count: child(name, scan, [count])["peak_gb"] for count in CLASSES}
        seconds = child(name, scan, CLASSES)["seconds"]
        found[name] = {
            count: {"seconds": mean(seconds[str(count)]), "rounds_s": seconds[str(count)], "peak_gb": memory[count]}
            for count in CLASSES
        }
    return found


def judged_slices(name: str, rows: dict[int, dict[str, float]]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it is met."""
    usual, growth = rows[STANDARD], rows[LONGEST]["peak_gb"] / rows[STANDARD]["peak_gb"]
    peak, most_gb = usual["peak_gb"], MOST_GB[name]
    lines = [
        (f"{name}: {STANDARD} slices in {peak:.2f} GB (bar {most_gb} GB)", peak <= most_gb),
        (f"{name}: {LONGEST} take {growth:.2f} x their memory (bar {MOST_GROWTH} x)", growth <= MOST_GROWTH),
    ]
    if name == STARTER:
        quick = usual["seconds"] <= MOST_SECONDS
        lines.append((f"{name}: {STANDARD} slices in {usual['seconds']:.1f} s (bar {MOST_SECONDS} s)", quick))
    return lines


def judged_classes(name: str, rows: dict[int, dict[str, Any]]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it is met."""
    lines, one = [], rows[1]
    for count, most in MOST_TIME.items():
        time_ratio, memory_ratio = rows[count]["seconds"] / one["seconds"], rows[count]["peak_gb"] / one["peak_gb"]
        lines.append(
            (f"{name}: {count} classes take {time_ratio:.2f} x the time of one (bar {most})", time_ratio <= most)
        )
        lines.append((f"{name}: and {memory_ratio:.2f} x the memory (bar {MOST_MEMORY})", memory_ratio <= MOST_MEMORY))
    return lines


def table(title: str, rows: dict[int, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {title} | s | peak GB |", "|---|---|---|"]
    lines += [f"| {n} | {r['seconds']:.2f} | {r['peak_gb']:.2f} |" for n, r in rows.items()]
    return "\n".join(lines)


def main() -> int:
    chosen = sys.argv[1:] or ["slices", "classes"]
    tables, verdicts, results = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "slices" in chosen:
            results["slices"] = slices = measured_slices(folder)
            tables.append(table("slices of 512 x 512, starter", slices))
            verdicts += judged_slices(STARTER, slices)
        if "long" in chosen:
            results["long"] = long = measured_long(folder)
            tables.append(table("slices of 512 x 512, U-Net", long))
            verdicts += judged_slices(UNET, long)
        if "classes" in chosen:
            results["classes"] = classes = measured_classes(folder)
            for model, rows in classes.items():
                tables.append(table(f"classes, {model}", rows))
                verdicts += judged_classes(model, rows)
    text = f"{machine()['cpu']}, {machine()['cores']} cores\n\n" + "\n\n".join(tables)
    return report("scaling", text, verdicts, {"machine": machine(), **results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, scan, counts = sys.argv[2], Path(sys.argv[3]), [int(count) for count in sys.argv[4:]]
        print(json.dumps(run_classes(name, scan, counts) if counts else run_long(scan)))
    else:
        raise SystemExit(main())
