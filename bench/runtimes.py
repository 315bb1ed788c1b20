"""One 96 x 96 x 96 patch of the released sizes, 32 classes: every runtime against the plain way, same weights.

    python bench/runtimes.py                  U-Net and Swin UNETR
    python bench/runtimes.py unet             only one

Every form runs in a process of its own, alternately; its time is the best of all calls, its memory the operating
system's peak for the process. Times do not depend on what weights have learned, so these are seeded ones; the
differences of bf16 do, and are told, not judged.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from _plain import Plain
from viscera.infer.runtime import vision_encoder
from viscera.model.build import untrained
from viscera.report.manifest import machine

OUT = Path(__file__).parent / "out"
MODELS = ("unet", "swin_unetr")
SIDE, CLASSES = 96, 32
RUNS, CALLS = 2, 2
FORMS = ("plain", "torch fp32", "torch bf16", "openvino fp32", "openvino bf16")
EXACT, MOST_DIFFERENCE = "torch fp32", 1e-5
BARS = {EXACT: 1.6, "torch bf16": 3.4, "best": 6.0}  # times faster than plain


def run_one(name: str, form: str, out: Path) -> dict[str, float]:
    """In a child process: CALLS calls on a seeded patch; the logits go to `out`."""
    model = untrained(name)
    channels = list(range(CLASSES))
    image = torch.rand(1, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if form == "plain":
            call: Any = Plain(model, channels)
        else:
            runtime, precision = form.split()
            encode = vision_encoder(
                model,
                (SIDE, SIDE, SIDE),
                runtime=runtime,  # type: ignore[arg-type]
                precision=precision,  # type: ignore[arg-type]
                device=torch.device("cpu"),
            )

            def call(window: torch.Tensor) -> torch.Tensor:
                return model.decode(*encode(window), channels)

        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            logits = call(image)
            times.append(time.perf_counter() - start)
    torch.save(logits[0], out)
    return {"seconds": min(times), "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}


def compare(folder: Path, form: str) -> dict[str, float]:
    """In a child process: how far a form's logits are from the plain ones."""
    plain, found = torch.load(folder / "plain"), torch.load(folder / form)
    return {
        "largest_difference": float((found - plain).abs().max()),
        "rms_difference": float((found - plain).square().mean().sqrt()),
        "logit_sd": float(plain.std()),
    }


def child(*task: str) -> dict[str, float]:
    """What a task gives in a fresh process. This one stays small: a child inherits its peak."""
    command = [sys.executable, __file__, "--child", *task]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str) -> dict[str, dict[str, float]]:
    """Every form's best time, peak memory, and difference from the plain logits."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RUNS):
            for form in FORMS:
                found = child(name, form, str(Path(folder) / form))
                best = rows.get(form, found)
                rows[form] = {key: min(found[key], best[key]) for key in found}
        for form in FORMS[1:]:
            rows[form] |= child("compare", folder, form)
    for row in rows.values():
        row["times_faster"] = rows["plain"]["seconds"] / row["seconds"]
    return rows


def judged(name: str, rows: dict[str, dict[str, float]]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it is met."""
    best = max(rows, key=lambda form: rows[form]["times_faster"])
    lines = [
        (
            f"{name}: {form} {rows[form]['times_faster']:.2f} x (bar {BARS[form]} x)",
            rows[form]["times_faster"] >= BARS[form],
        )
        for form in (EXACT, "torch bf16")
    ]
    lines.append(
        (
            f"{name}: best, {best}, {rows[best]['times_faster']:.2f} x (bar {BARS['best']} x)",
            rows[best]["times_faster"] >= BARS["best"],
        )
    )
    apart = rows[EXACT]["largest_difference"]
    lines.append(
        (f"{name}: {EXACT} differs by {apart:.1e} at most (bar {MOST_DIFFERENCE:.0e})", apart <= MOST_DIFFERENCE)
    )
    return lines


def table(name: str, rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| {name} | s | x faster | peak GB | largest difference | in sd of the logits |",
        "|---|---|---|---|---|---|",
    ]
    for form, row in rows.items():
        apart = (
            "| | "
            if form == "plain"
            else (f"| {row['largest_difference']:.1e} | {row['largest_difference'] / row['logit_sd']:.1e} ")
        )
        lines.append(f"| {form} | {row['seconds']:.2f} | {row['times_faster']:.2f} | {row['peak_gb']:.2f} {apart}|")
    return "\n".join(lines)


def main() -> int:
    results = {name: measure(name) for name in sys.argv[1:] or MODELS}
    verdicts = [line for name, rows in results.items() for line in judged(name, rows)]
    place = f"{machine()['cpu']}, {machine()['cores']} cores"
    text = f"{CLASSES} classes, {SIDE}^3 voxels, best of {RUNS * CALLS} calls; {place}\n\n"
    text += "\n\n".join(table(name, rows) for name, rows in results.items())
    text += "\n\n" + "\n".join(f"- {'met' if met else 'MISSED'}: {line}" for line, met in verdicts) + "\n"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "runtimes.json").write_text(json.dumps({"machine": machine(), "results": results, "bars": BARS}, indent=2))
    (OUT / "runtimes.md").write_text(text)
    print(text)
    passed = all(met for _, met in verdicts)
    print("runtimes:", "every bar met" if passed else "A BAR IS MISSED")
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        task = sys.argv[2:]
        print(
            json.dumps(
                compare(Path(task[1]), task[2]) if task[0] == "compare" else run_one(task[0], task[1], Path(task[2]))
            )
        )
    else:
        raise SystemExit(main())
