"""One 96 x 96 x 96 patch of the released sizes, 32 classes: every runtime against the plain way, same weights.

    python bench/runtimes.py                  U-Net and Swin UNETR
    python bench/runtimes.py unet             only one
    python bench/runtimes.py --cpu-time       on a machine that is not free: CPU seconds of one thread, one call each

Every form runs in a process of its own, alternately; its time is the best of all calls, its memory the operating
system's peak for the process. Times do not depend on what weights have learned, so these are seeded ones; the
differences of bf16 do, and are told, not judged. "Exact" is the fastest form in float32 that differs from the plain way
by 1e-5 at most, for logits spread as those on which this bar was set (standard deviation 0.127).

float32 rounds, in the plain way too: a last line says how far both are from float64 on a patch of 32^3.

A processor without bfloat16 would imitate it for an hour: there only float32 is measured, and the bar of bf16
counts as missed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import torch

from _plain import Plain
from _report import report
from viscera.heap import memory_kept
from viscera.infer.runtime import vision_encoder
from viscera.model.backbones.base import make_backbone
from viscera.model.build import untrained
from viscera.model.precision import has_fast_bf16
from viscera.report.manifest import machine

MODELS = ("unet", "swin_unetr")
SIDE, CLASSES = 96, 32
RUNS, CALLS = 2, 2
CPU_TIME = "--cpu-time" in sys.argv
SIDE_FLOAT64 = 32
HAS_BF16 = has_fast_bf16(torch.device("cpu"))
EVERY_FORM = ("plain", "torch fp32", "torch bf16", "openvino fp32", "openvino bf16")
FORMS = [form for form in EVERY_FORM if HAS_BF16 or not form.endswith("bf16")]
EXACT = "torch fp32"
MOST_DIFFERENCE_SD = 1e-5 / 0.127  # of the logits' standard deviation
BARS = {"exact": 1.6, "torch bf16": 3.4, "best": 6.0}  # times faster than plain


def patch(side: int) -> torch.Tensor:
    return torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))


def caller(name: str, form: str, side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """image -> logits, by the form."""
    model, channels = untrained(name), list(range(CLASSES))
    if form == "plain":
        return Plain(model, channels)
    runtime, precision = form.split()
    encode = vision_encoder(
        model,
        (side, side, side),
        runtime=runtime,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )
    return lambda image: model.decode(*encode(image), channels)


def run_one(name: str, form: str, out: str) -> dict[str, float]:
    """In a child process: some calls on a seeded patch; the logits go to `out`."""
    clock = time.process_time if CPU_TIME else time.perf_counter
    if CPU_TIME:
        torch.set_num_threads(1)
    call, image, times = caller(name, form, SIDE), patch(SIDE), []
    with nullcontext() if form == "plain" else memory_kept(), torch.inference_mode():  # as `predict` does
        for _ in range(1 if CPU_TIME else CALLS):
            start = clock()
            logits = call(image)
            times.append(clock() - start)
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


def rounding(name: str) -> dict[str, float]:
    """In a child process: how far the plain way and ours in float32 are from float64, at most, in sd of the logits."""
    side = max(SIDE_FLOAT64, make_backbone(name, {}).minimum_voxels)
    callers = {form: caller(name, form, side) for form in ("plain", EXACT)}
    double = Plain(untrained(name).double(), list(range(CLASSES)))
    with torch.inference_mode():
        found = {form: call(patch(side)) for form, call in callers.items()}
        true = double(patch(side).double())
    return {form: float((logits - true).abs().max() / true.std()) for form, logits in found.items()}


def child(*task: str) -> dict[str, float]:
    """What a task gives in a fresh process. This one stays small: a child inherits its peak."""
    command = [sys.executable, __file__, "--child", *task, *(["--cpu-time"] if CPU_TIME else [])]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str) -> dict[str, dict[str, float]]:
    """Every form's best time, peak memory, and difference from the plain logits."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if CPU_TIME else RUNS):
            for form in FORMS:
                found = child("run", name, form, str(Path(folder) / form))
                best = rows.get(form, found)
                rows[form] = {key: min(found[key], best[key]) for key in found}
        for form in FORMS[1:]:
            rows[form] |= child("compare", folder, form)
    for row in rows.values():
        row["times_faster"] = rows["plain"]["seconds"] / row["seconds"]
    return rows


def judged(name: str, rows: dict[str, dict[str, float]]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it is met."""

    def fastest(forms: Iterable[str]) -> str:
        return max(forms, key=lambda form: rows[form]["times_faster"])

    exact = [form for form in FORMS if form.endswith("fp32") and apart_sd(rows[form]) <= MOST_DIFFERENCE_SD]
    chosen = {"best": fastest(rows)} | ({"torch bf16": "torch bf16"} if HAS_BF16 else {})
    chosen |= {"exact": fastest(exact)} if exact else {}
    lines = [
        (
            f"{name}: {bar}, {chosen[bar]}, {rows[chosen[bar]]['times_faster']:.2f} x (bar {BARS[bar]} x)",
            rows[chosen[bar]]["times_faster"] >= BARS[bar],
        )
        for bar in BARS
        if bar in chosen
    ]
    if not HAS_BF16:
        lines.append((f"{name}: torch bf16, not measured: this processor computes none", False))
    apart = apart_sd(rows[EXACT])
    lines.append(
        (
            f"{name}: {EXACT} differs by {apart:.1e} sd of the logits at most (bar {MOST_DIFFERENCE_SD:.1e})",
            apart <= MOST_DIFFERENCE_SD,
        )
    )
    return lines


def apart_sd(row: dict[str, float]) -> float:
    """The largest difference from the plain logits, in standard deviations of these."""
    return row["largest_difference"] / row["logit_sd"]


def table(name: str, rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| {name} | s | x faster | peak GB | largest difference, in sd of the logits | r.m.s. difference |",
        "|---|---|---|---|---|---|",
    ]
    for form, row in rows.items():
        apart = (
            "| | " if form == "plain" else (f"| {apart_sd(row):.1e} | {row['rms_difference'] / row['logit_sd']:.1e} ")
        )
        lines.append(f"| {form} | {row['seconds']:.2f} | {row['times_faster']:.2f} | {row['peak_gb']:.2f} {apart}|")
    return "\n".join(lines)


def main() -> int:
    names = [word for word in sys.argv[1:] if not word.startswith("--")] or MODELS
    results = {name: measure(name) for name in names}
    float64 = {name: child("rounding", name) for name in names}
    verdicts = [line for name, rows in results.items() for line in judged(name, rows)]
    place = f"{machine()['cpu']}, {machine()['cores']} cores"
    how = "CPU seconds of one thread, one call" if CPU_TIME else f"best of {RUNS * CALLS} calls"
    text = f"{CLASSES} classes, {SIDE}^3 voxels, {how}; {place}\n\n"
    text += "\n\n".join(table(name, rows) for name, rows in results.items())
    text += "\n\n" + "\n".join(
        f"{name}: from float64, at most, in sd of the logits: "
        + ", ".join(f"{form} {far:.1e}" for form, far in each.items())
        for name, each in float64.items()
    )
    saved = {"machine": machine(), "time": how, "results": results, "from_float64": float64, "bars": BARS}
    return report("runtimes", text, verdicts, saved)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        tasks = {"compare": lambda folder, form: compare(Path(folder), form), "rounding": rounding, "run": run_one}
        job, *details = [word for word in sys.argv[2:] if word != "--cpu-time"]
        print(json.dumps(tasks[job](*details)))
    else:
        raise SystemExit(main())
