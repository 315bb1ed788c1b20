"""Whole path, file to files, on the demonstration CT: seconds and peak memory of `viscera segment`.

    python bench/segment.py            both models (the 19 M U-Net takes minutes on two cores)
    python bench/segment.py lite       only one

Each model runs in a process of its own; peak memory is the operating system's figure for that process. The weights
are seeded, not trained: time and memory do not depend on what the weights have learned, except that noise gives the
rules and the writing more to do than organs would.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from _process import run_timed
from viscera.report.manifest import machine
from viscera.workflow.demo import demo_scan, fetch_demo_scan

OUT = Path(__file__).parent / "out" / "segment.json"


@dataclass(frozen=True)
class Bar:
    """What a run must stay below; None: not judged."""

    seconds: float | None
    peak_gb: float


BARS = {"lite": Bar(seconds=20.0, peak_gb=2.0), "unet": Bar(seconds=None, peak_gb=3.0)}


@dataclass(frozen=True)
class Run:
    """One measured run."""

    model: str
    seconds: float
    peak_gb: float
    stages_s: dict[str, float]
    passed: bool


def measure(model: str, scan: Path, bar: Bar) -> Run:
    """Segments `scan` with `model` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "viscera", "segment", str(scan), "-o", folder, "-m", model, "--quiet"]
        seconds, usage = run_timed(command)
        record = json.loads((Path(folder) / "run.json").read_text())
    peak_gb = usage.ru_maxrss * 1024 / 1e9
    passed = peak_gb <= bar.peak_gb and (bar.seconds is None or seconds <= bar.seconds)
    return Run(model, seconds, peak_gb, record["timings_s"], passed)


def main() -> int:
    chosen = sys.argv[1:] or list(BARS)
    scan = fetch_demo_scan()
    runs = [measure(model, scan, BARS[model]) for model in chosen]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"machine": machine(), "runs": [asdict(run) for run in runs]}, indent=2))
    print(f"{demo_scan().description}; {machine()['cpu']}, {machine()['cores']} cores")
    print(f"{'model':<12}{'seconds':>9}{'bar':>7}{'peak GB':>9}{'bar':>6}   slowest stages")
    for run in runs:
        bar = BARS[run.model]
        slow = sorted(run.stages_s.items(), key=lambda item: -item[1])[:3]
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slow)
        limit = "-" if bar.seconds is None else f"{bar.seconds:.0f}"
        print(f"{run.model:<12}{run.seconds:>9.1f}{limit:>7}{run.peak_gb:>9.2f}{bar.peak_gb:>6.1f}   {stages}")
    passed = all(run.passed for run in runs)
    print("segment:", "every bar met" if passed else "A BAR IS MISSED")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
