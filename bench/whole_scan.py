"""A whole real scan at 1.5 mm, file to masks: the plain way in fp32 beside viscera, same weights, same scan.

    python bench/whole_scan.py                      the whole scan: the plain way takes most of an hour on two cores
    python bench/whole_scan.py --share 0.3          the middle 30 % of its slices
    python bench/whole_scan.py --model NAME         other weights: a name of `viscera models` or a file
    python bench/whole_scan.py --cpu-time           on a machine that is not free: CPU seconds of one thread

The plain way: every slice of the network's grid, MONAI's sliding windows with overlap 0.5, all classes at once, fp32;
each class brought back to the scan at full size. Ours: `viscera.segment` as it comes. The rules are off on both sides,
so that the masks of the networks are compared (`bench/rules.py` measures the rules).

Time and memory do not depend on what weights have learned, so they are measured with the released-size U-Net, which
comes here with seeded random numbers. Whether masks agree does depend on it: noise near a threshold flips at the
slightest rounding. So agreement is measured and judged with the starter model, which is trained, made to go over
overlapping windows as the U-Net does; with trained weights under --model it is judged on these, too. Each side runs in
a process of its own; memory is the operating system's peak for it. What the exporter of the runtime does once for all
scans is done before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from _report import report
from viscera.infer.predict import InferenceSettings
from viscera.infer.prepare import windowed
from viscera.infer.runtime import vision_encoder
from viscera.io.grid import resample_image
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.model.store import load_model
from viscera.model.universal import UniversalModel
from viscera.report.manifest import machine, peak_memory_mb
from viscera.workflow.demo import fetch_demo_scan
from viscera.workflow.scan import SaveSettings, SegmentSettings, Stopwatch, segment_scan, spacing_in_ras

LEAST_SPEEDUP, AIM, LEAST_DICE, MOST_GB, LEAST_NETWORK = 6.0, 10.0, 0.995, 3.0, 0.85
LEAST_ML = 1.0  # a class smaller than this is not judged
PLAIN_OVERLAP = 0.5
AGREEMENT = "starter"  # trained, but on more than the 144 mm that a window of the U-Net shows
AGREEMENT_WINDOW = (96, 96, 96)
CPU_TIME = "--cpu-time" in sys.argv
clock = time.process_time if CPU_TIME else time.perf_counter


def model_of(name: str) -> UniversalModel:
    model = load_model(name)
    if name == AGREEMENT:
        inference = replace(model.config.inference, mode="window", patch_voxels=AGREEMENT_WINDOW, overlap=PLAIN_OVERLAP)
        model.config = replace(model.config, inference=inference)
    return model


def packed(mask: Any) -> Any:
    return np.packbits(np.asarray(mask, bool))


def run_plain(name: str, scan: Path, out: Path) -> dict[str, Any]:
    """In a child process: the plain way; a mask of every class goes to `out`."""
    from _plain import Plain

    model = model_of(name)
    start = clock()
    volume = read_volume(scan)
    hu, _, reorientation = to_ras(volume)
    grid_mm = model.config.preprocessing.spacing_mm
    image = resample_image(hu, spacing_in_ras(volume, reorientation), grid_mm, smooth=model.config.preprocessing.smooth)
    windowed(image, model.config.preprocessing.window_hu)
    with torch.inference_mode():
        plain = Plain(model, range(len(model.config.classes)))
        began = clock()
        logits = plain.scan(torch.from_numpy(image)[None, None], model.config.inference.patch_voxels, PLAIN_OVERLAP)
        network = clock() - began
        masks = {}
        for key, logit in zip(model.config.classes, logits, strict=True):
            # Both grids share the centre of voxel 0; beyond the last voxel its value holds.
            probability = resampled_back(logit.sigmoid(), grid_mm, hu.shape, spacing_in_ras(volume, reorientation))
            masks[key] = packed(reorientation.undo((probability >= model.config.thresholds.get(key, 0.5)).numpy()))
    np.savez(out, **masks)
    return {
        "seconds": clock() - start,
        "network_s": network,
        "peak_gb": peak_memory_mb() / 1000,
    }


def resampled_back(array: torch.Tensor, from_mm: Any, shape: Any, to_mm: Any) -> torch.Tensor:
    """`array` [X, Y, Z] linearly interpolated on the scan's grid, all of it at once."""
    for axis in range(3):
        at = (torch.arange(shape[axis]) * (to_mm[axis] / from_mm[axis])).clamp(max=array.shape[axis] - 1)
        low = at.long().clamp(max=max(array.shape[axis] - 2, 0))
        part = (at - low).view([-1 if a == axis else 1 for a in range(3)])
        high = (low + 1).clamp(max=array.shape[axis] - 1)
        array = array.index_select(axis, low) * (1 - part) + array.index_select(axis, high) * part
    return array


def run_ours(name: str, scan: Path, out: Path) -> dict[str, Any]:
    """In a child process: viscera from file to files, then a mask of every class to `out`."""
    model, watch = model_of(name), Stopwatch(clock=clock)
    start = clock()
    result = segment_scan(scan, model, SegmentSettings(post=False), watch=watch)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "result", SaveSettings(masks=True), watch=watch)
    found = {
        "seconds": clock() - start,
        "network_s": watch.seconds["Network"],
        "peak_gb": peak_memory_mb() / 1000,
        "used": result.record["used"],
    }
    np.savez(out, **{s.key: packed(result.mask(s.key)) for s in result.classes})
    return found


def warm_up(name: str, _scan: Path, _out: Path) -> dict[str, Any]:
    """In a child process: what a runtime does once for all scans (export and keep)."""
    model = model_of(name)
    settings = InferenceSettings().resolved()
    vision_encoder(
        model,
        model.config.inference.patch_voxels,
        runtime=settings.runtime,
        precision=settings.precision,
        device=torch.device(settings.device),
    )
    return {"trained": model.config.trained, "overlap": model.config.inference.overlap}


def agreement(plain: Path, ours: Path, voxel_ml: float) -> dict[str, dict[str, float]]:
    """Dice and volume of every class that the plain way finds."""
    found = {}
    with np.load(plain) as a, np.load(ours) as b:
        for key in a.files:
            first, second, both = (
                int(np.unpackbits(bits).sum(dtype=np.int64)) for bits in (a[key], b[key], a[key] & b[key])
            )
            if first:
                found[key] = {"ml": first * voxel_ml, "dice": 2 * both / (first + second)}
    return found


TASKS = {"plain": run_plain, "ours": run_ours, "warm up": warm_up}


def child(task: str, name: str, scan: Path, out: Path) -> dict[str, Any]:
    """What a task gives in a fresh process."""
    command = [sys.executable, __file__, "--child", task, name, str(scan), str(out)]
    if CPU_TIME:
        command.append("--cpu-time")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def cropped(scan: Path, share: float, folder: Path) -> Path:
    """The middle `share` of the scan's slices, as a file."""
    image = nib.load(scan)
    slices = image.shape[2]
    kept = max(1, round(slices * share))
    start = (slices - kept) // 2
    path = folder / "crop.nii.gz"
    nib.save(image.slicer[:, :, start : start + kept], path)
    return path


def compared(name: str, scan: Path, folder: Path) -> dict[str, Any]:
    """Both sides on one scan."""
    about = child("warm up", name, scan, folder / "none")
    ours, plain = (child(side, name, scan, folder / f"{side}.npz") for side in ("ours", "plain"))
    volume = nib.load(scan)
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    return {
        "model": name,
        **about,
        "plain": plain,
        "ours": ours,
        "times_faster": plain["seconds"] / ours["seconds"],
        "network_share": ours["network_s"] / ours["seconds"],
        "agreement": agreement(folder / "plain.npz", folder / "ours.npz", voxel_ml),
    }


def judged(timed: dict[str, Any], agreeing: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it is met."""
    lines = [
        (
            f"{timed['times_faster']:.2f} x faster than the plain way (bar {LEAST_SPEEDUP} x, aim {AIM} x)",
            timed["times_faster"] >= LEAST_SPEEDUP,
        ),
        (f"peak {timed['ours']['peak_gb']:.2f} GB (bar {MOST_GB} GB)", timed["ours"]["peak_gb"] <= MOST_GB),
        (
            f"the network takes {timed['network_share']:.0%} of the time (bar {LEAST_NETWORK:.0%})",
            timed["network_share"] >= LEAST_NETWORK,
        ),
    ]
    for found in agreeing:
        large = {key: row for key, row in found["agreement"].items() if row["ml"] >= LEAST_ML}
        worst = min(large, key=lambda key: large[key]["dice"])
        dice = large[worst]["dice"]
        worst_dice = f"least Dice with the plain way {dice:.4f} ({worst}), of {len(large)} classes"
        lines.append((f"{found['model']}: {worst_dice} from {LEAST_ML} ml on (bar {LEAST_DICE})", dice >= LEAST_DICE))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="a whole scan: the plain way beside viscera")
    parser.add_argument("--share", type=float, default=1.0, help="of the scan's slices, the middle ones")
    parser.add_argument("--model", default="unet")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread instead of the clock's")
    parser.add_argument("--agreement-only", action="store_true", help="leave out the model that takes long")
    chosen = parser.parse_args()
    whole = fetch_demo_scan()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agreeing = [compared(AGREEMENT, whole, folder)]
        for key, row in agreeing[0]["agreement"].items():
            print(f"{AGREEMENT}: {key:<22}{row['ml']:>10.1f} ml  Dice {row['dice']:.4f}")
        if chosen.agreement_only:
            return 0
        scan = whole if chosen.share >= 1 else cropped(whole, chosen.share, folder)
        timed = compared(chosen.model, scan, folder)
    if timed["trained"]:
        agreeing.append(timed)
    verdicts = judged(timed, agreeing)
    place = f"{machine()['cpu']}, {machine()['cores']} cores"
    text = f"{chosen.model}, {chosen.share:.0%} of the slices of the demonstration scan, at 1.5 mm; {place}\n\n"
    text += f"| side | {'CPU s' if CPU_TIME else 's'} | of these the network | peak GB |\n|---|---|---|---|\n"
    for side in ("plain", "ours"):
        row = timed[side]
        text += f"| {side} | {row['seconds']:.1f} | {row['network_s']:.1f} "
        text += f"| {row['peak_gb']:.2f} |\n"
    if chosen.share < 1:
        text += (
            "\nOnly a part of the scan was run: the ratio holds for it, and the memory of the whole scan is higher.\n"
        )
    if not timed["trained"]:
        text += f"\n{chosen.model} has random weights: its masks are noise, so agreement is that of {AGREEMENT}.\n"
    record = {"machine": machine(), "share": chosen.share, "timed": timed, "agreement": agreeing}
    return report("whole_scan", text.rstrip(), verdicts, record)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        task, name, scan, out = sys.argv[2:6]
        if CPU_TIME:
            torch.set_num_threads(1)
        print(json.dumps(TASKS[task](name, Path(scan), Path(out))))
    else:
        raise SystemExit(main())
