"""How fast and how lean the metrics are: Dice, NSD and HD95 of 25 organs in one 512x512x200 scan.

Side by side in one run, on the same label maps: viscera, DeepMind's `surface-distance` and MONAI
(`compute_surface_dice` with use_subvoxels, `compute_hausdorff_distance`, `compute_dice`), the latter two organ by
organ as their documentation shows. The label maps are made by rule: 25 organ-sized ellipsoids with a bumpy
surface, the prediction moved and resized by a few per cent. The three must agree.

    python bench/metrics.py            # the bars: >= 4x, >= 10x, extra memory <= 2x the two label maps
    python bench/metrics.py --small    # a quarter of the size, no bars
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

SPACING_MM = (0.8, 0.8, 1.5)
TOLERANCE_MM = 2.0
ORGANS = 25
BARS = {"surface-distance": 4.0, "MONAI": 10.0}
MEMORY_BAR = 2.0
# Half-axes in mm of 25 organs, from liver and lungs to adrenal glands.
SIZES_MM = [(75, 60, 70), (60, 75, 85), (60, 75, 85), (60, 45, 60), (45, 35, 45), (30, 30, 55), (30, 30, 55)]
SIZES_MM += [(12, 12, 110), (12, 12, 90), (60, 18, 20), (35, 30, 35), (35, 30, 30), (25, 25, 25), (25, 25, 25)]
SIZES_MM += [(30, 20, 35), (18, 15, 30), (12, 10, 60), (10, 6, 14), (10, 6, 14), (15, 10, 12), (40, 12, 10)]
SIZES_MM += [(20, 18, 25), (16, 16, 40), (30, 25, 30), (8, 8, 12)]


def label_map(shape: tuple[int, int, int], change: float) -> npt.NDArray[np.uint8]:
    """25 bumpy ellipsoids as values 1-25, uint8; `change` (0-1) moves and resizes each by up to that share."""
    rng = np.random.default_rng(5)
    labels = np.zeros(shape, np.uint8)
    scale = shape[0] / 512
    for value, size_mm in enumerate(SIZES_MM, start=1):
        centre = rng.uniform(0.15, 0.85, 3) * shape
        wobble = rng.uniform(-1, 1, 6) * change
        radius = np.array(size_mm) * scale / SPACING_MM * (1 + wobble[:3])
        centre = centre + wobble[3:] * radius
        start = np.maximum(0, (centre - 1.3 * radius).astype(int))
        stop = np.minimum(shape, (centre + 1.3 * radius).astype(int) + 2)
        grid = np.ogrid[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        x, y, z = ((g - c) / r for g, c, r in zip(grid, centre, radius, strict=True))
        bumps = 0.12 * np.sin(6 * x + value) * np.sin(5 * y) * np.cos(4 * z)
        part = labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        part[(x * x + y * y + z * z + bumps) < 1] = value
    return labels


Answer = dict[int, tuple[float, float]]  # organ -> (Dice, NSD); HD95 is computed by all, but MONAI weighs no areas


def by_viscera(reference: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> Answer:
    from viscera.metrics.score import LabelMap, score_classes

    values = {str(organ): (organ,) for organ in range(1, ORGANS + 1)}
    maps = LabelMap(reference, values), LabelMap(prediction, values)
    scores = score_classes(*maps, SPACING_MM, dict.fromkeys(values, TOLERANCE_MM))
    return {int(organ): (score.dice, score.nsd) for organ, score in scores.items()}


def by_surface_distance(reference: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> Answer:
    import surface_distance as sd

    answer = {}
    for organ in range(1, ORGANS + 1):
        a, b = reference == organ, prediction == organ
        distances = sd.compute_surface_distances(a, b, SPACING_MM)
        sd.compute_robust_hausdorff(distances, 95)
        nsd = sd.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
        answer[organ] = (float(sd.compute_dice_coefficient(a, b)), float(nsd))
    return answer


def by_monai(reference: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> Answer:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    answer = {}
    for organ in range(1, ORGANS + 1):
        a, b = (torch.from_numpy(m == organ)[None, None] for m in (reference, prediction))
        compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=SPACING_MM)
        nsd = compute_surface_dice(
            b, a, [TOLERANCE_MM], include_background=True, spacing=SPACING_MM, use_subvoxels=True
        )
        answer[organ] = (float(compute_dice(b, a)), float(nsd))
    return answer


TOOLS: dict[str, Any] = {"viscera": by_viscera, "surface-distance": by_surface_distance, "MONAI": by_monai}


def run_one(tool: str, folder: Path) -> dict[str, Any]:
    """Time one tool in this process: seconds, memory beyond the label maps, and its answer."""
    reference, prediction = np.load(folder / "reference.npy"), np.load(folder / "prediction.npy")
    bars = np.repeat(np.arange(1, ORGANS + 1, dtype=np.uint8), 4)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    TOOLS[tool](bars, bars)  # imports and tables are not what is measured
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    answer = TOOLS[tool](reference, prediction)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "extra_memory": (peak - before) / (2 * reference.nbytes), "answer": answer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="128x128x50, no bars")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (128, 128, 50) if options.small else (512, 512, 200)
    if options.one:
        print(json.dumps(run_one(options.one[0], Path(options.one[1]))))
        return 0

    results = {}
    with TemporaryDirectory() as folder:
        for name, change in (("reference", 0.0), ("prediction", 0.06)):
            labels = label_map(shape, change)
            assert np.isin(range(ORGANS + 1), labels).all(), "an organ is hidden by the others: use another seed"
            np.save(Path(folder, name), labels)
        for tool in TOOLS:  # each in a process of its own, so that peak memory is its own
            command = [sys.executable, __file__, "--one", tool, folder]
            results[tool] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    ours = results["viscera"]
    difference = max(
        abs(a - b)
        for tool in BARS
        for organ, pair in ours["answer"].items()
        for a, b in zip(pair, results[tool]["answer"][organ], strict=True)
    )
    print(f"{ORGANS} organs, {'x'.join(map(str, shape))} voxels of {SPACING_MM} mm: Dice + NSD + HD95")
    print(f"{'tool':18} {'seconds':>8} {'ours is':>9} {'memory beyond the label maps':>30}")
    for tool, result in results.items():
        ratio = result["seconds"] / ours["seconds"]
        print(f"{tool:18} {result['seconds']:8.2f} {ratio:8.1f}x {result['extra_memory']:26.2f} x them")
    print(f"largest difference in Dice or NSD: {difference:.1e}")

    failed = [] if difference <= 1e-5 else [f"the tools differ by {difference:.1e} (at most 1e-5)"]
    if not options.small:
        for tool, bar in BARS.items():
            ratio = results[tool]["seconds"] / ours["seconds"]
            if ratio < bar:
                failed.append(f"{ratio:.1f}x faster than {tool} (at least {bar:g}x)")
        if ours["extra_memory"] > MEMORY_BAR:
            failed.append(f"memory {ours['extra_memory']:.2f}x the label maps (at most {MEMORY_BAR:g}x)")
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    for result in results.values():
        del result["answer"]
    (out / "metrics.json").write_text(
        json.dumps({"shape": shape, "difference": difference, "tools": results}, indent=1)
    )
    print("FAILED: " + "; ".join(failed) if failed else "all bars met" if not options.small else "no bars at this size")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
