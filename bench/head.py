"""The class heads: 32 classes on one 96 x 96 x 96 patch, against the direct form.

    python bench/head.py

The direct form repeats the eight feature channels once per class and runs three grouped convolutions, as one would
write it down from the paper. "viscera" is the head in torch, "compiled" the loop by numba that scans in many windows
get (torch's again where numba is not installed). All have the same features and weights. Each form runs in a process
of its own, alternately; its time is the best of all calls (what else the machine does only adds), its extra memory is
what the process's peak grew by in the first call, its output included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from _plain import plain_head
from viscera.model.head import PARAMETERS, WIDTH, ClassHeads, apply_heads
from viscera.report.manifest import machine
from viscera.threads import in_threads

OUT = Path(__file__).parent / "out" / "head.json"
CLASSES, SIDE, RUNS, CALLS = 32, 96, 3, 3
ROWS = 2  # of the compiled form, at once
LEAST_SPEEDUP, MOST_DIFFERENCE, MOST_MEMORY = 10.0, 1e-5, 1.5


def compiled(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """The compiled heads, a few rows at a time as over a scan."""
    heads, logits = ClassHeads(parameters, compiled=True), torch.empty(len(parameters), *features.shape[1:])

    def fill(x: int) -> None:
        logits[:, x : x + ROWS] = heads(features[:, x : x + ROWS])

    in_threads(fill, range(0, features.shape[1], ROWS), features.device)
    return logits


FORMS = {"direct": plain_head, "viscera": apply_heads, "compiled": compiled}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(WIDTH, SIDE, SIDE, SIDE, generator=generator)
    return features, torch.randn(CLASSES, PARAMETERS, generator=generator) / WIDTH**0.5


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_one(form: str) -> dict[str, float]:
    """In a child process: a warm-up on a small patch, then CALLS calls."""
    features, parameters = inputs()
    times = []
    with torch.inference_mode():
        FORMS[form](features[:, :8, :8, :8].contiguous(), parameters)
        before = peak_bytes()
        for _ in range(CALLS):
            start = time.perf_counter()
            FORMS[form](features, parameters)
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                extra = peak_bytes() - before
    return {"seconds": min(times), "extra_bytes": extra}


def compare() -> dict[str, float]:
    """In a child process: how far the forms are apart."""
    features, parameters = inputs()
    with torch.inference_mode():
        expected = plain_head(features, parameters)
        difference = max(float((FORMS[form](features, parameters) - expected).abs().max()) for form in FORMS)
    return {"difference": difference, "logit_sd": float(expected.std())}


def child(task: str) -> dict[str, float]:
    """What `task` (a form, or "compare") gives in a fresh process. This one stays small: a child inherits its peak."""
    command = [sys.executable, __file__, "--child", task]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> int:
    apart = child("compare")
    difference = apart["difference"]
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(RUNS):
        for form in FORMS:
            runs[form].append(child(form))
    seconds = {form: min(run["seconds"] for run in runs[form]) for form in FORMS}
    output_bytes = CLASSES * SIDE**3 * 4
    memory = {form: max(run["extra_bytes"] for run in runs[form]) / output_bytes for form in FORMS}
    speedup = seconds["direct"] / seconds["viscera"]
    passed = speedup >= LEAST_SPEEDUP and difference <= MOST_DIFFERENCE and memory["viscera"] <= MOST_MEMORY
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        json.dumps(
            {
                "machine": machine(),
                "seconds": seconds,
                "memory_outputs": memory,
                "speedup": speedup,
                "runs": runs,
                "largest_difference": difference,
                "logit_sd": apart["logit_sd"],
                "passed": passed,
            },
            indent=2,
        )
    )
    print(f"{CLASSES} classes, {SIDE}^3 voxels, float32; best of {RUNS * CALLS} calls; {machine()['cpu']}")
    print(f"{'form':<10}{'seconds':>9}{'extra memory / output':>24}")
    for form in FORMS:
        print(f"{form:<10}{seconds[form]:>9.3f}{memory[form]:>24.2f}")
    print(f"largest difference {difference:.1e} (bar {MOST_DIFFERENCE:.0e}; the logits' sd is {apart['logit_sd']:.2f})")
    print(
        f"head: {speedup:.1f} x faster (bar {LEAST_SPEEDUP:.0f}), memory {memory['viscera']:.2f} x the output "
        f"(bar {MOST_MEMORY}), compiled {seconds['direct'] / seconds['compiled']:.1f} x faster: "
        f"{'every bar met' if passed else 'A BAR IS MISSED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(compare() if sys.argv[2] == "compare" else run_one(sys.argv[2])))
    else:
        raise SystemExit(main())
