"""Twenty scans in one folder, in one call, against twenty calls of one scan each, with the starter model.

    python bench/folder.py
    python bench/folder.py 6           six scans

The scans are the demonstration CT at half its resolution, each shifted a little, so that none is the same as another.
One call loads the program and the model once, and reads, computes and writes side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from viscera.report.manifest import machine
from viscera.workflow.demo import fetch_demo_scan

OUT = Path(__file__).parent / "out" / "folder.json"
SCANS, LEAST_SPEEDUP = 20, 1.3


def scans_in(folder: Path, count: int) -> list[Path]:
    """So many scans of about 256 x 256 x 133."""
    image = nib.load(fetch_demo_scan())
    array = np.asarray(image.dataobj).astype(np.int16)[::2, ::2]
    affine = image.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    paths = []
    for number in range(count):
        paths.append(folder / f"scan{number:02}.nii.gz")
        nib.save(nib.Nifti1Image(np.roll(array, number, axis=0), affine), paths[-1])
    return paths


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "viscera", "segment", *arguments, "--quiet"], check=True)
    return time.perf_counter() - start


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SCANS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scans").mkdir()
        paths = scans_in(folder / "scans", count)
        # Half of the single calls before and half after: whatever else the machine does meets both.
        half = count // 2
        single = sum(seconds(str(path), "-o", str(folder / "single" / path.stem)) for path in paths[:half])
        together = seconds(str(folder / "scans"), "-o", str(folder / "together"))
        single += sum(seconds(str(path), "-o", str(folder / "single" / path.stem)) for path in paths[half:])
    speedup = single / together
    passed = speedup >= LEAST_SPEEDUP
    OUT.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "scans": count, "single_s": single, "together_s": together, "speedup": speedup}
    OUT.write_text(json.dumps({**record, "passed": passed}, indent=2))
    print(f"{count} scans of 256 x 256 x 133, starter; {machine()['cpu']}, {machine()['cores']} cores")
    print(f"{count} calls {single:.1f} s, one call {together:.1f} s")
    print(f"folder: {speedup:.2f} x faster (bar {LEAST_SPEEDUP}): {'every bar met' if passed else 'A BAR IS MISSED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
