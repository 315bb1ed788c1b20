"""A training step on whole 96^3 patches: how much of it is the network, how much everything around it.

    python bench/train.py

The lightest packaged network (`lite`, all 15 classes of amos, strong augmentation) is the hardest case: the quicker the
network, the more the rest weighs. The network's part is forward pass, loss, backward pass and update of its weights;
the rest is waiting for patches, drawing and augmenting, averaging weights and keeping the books. Cache size and
patches beside MONAI's are in bench/data.py.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from viscera.data.catalogue import dataset_table
from viscera.data.phantom import PhantomSettings, write_dataset
from viscera.report.manifest import machine
from viscera.train import loop
from viscera.train.loop import Listener, Report
from viscera.train.recipe import recipe_from
from viscera.workflow.training import make_plan, run

OUT = Path(__file__).parent / "out" / "train.json"
LEAST_NETWORK_SHARE = 0.90
WARM, MEASURED = 4, 16  # steps


class Stopwatch:
    """Adds up the time within some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def main() -> int:
    watch = Stopwatch()
    loop.step_loss = watch.around(loop.step_loss)
    Accelerator.backward = watch.around(Accelerator.backward)
    torch.optim.AdamW.step = watch.around(torch.optim.AdamW.step)
    recipe = recipe_from(
        {
            "model": "lite",
            "text": {"encoder": "random:0", "finish": {}},
            "augment": "strong",
            "validation": {"every": 0, "share": 0.0},
            "loop": {"steps": WARM + MEASURED, "log_every": WARM, "save_every": 1000, "workers": 1},
        },
        "bench",
        "bench/train.py",
    )
    marks: list[tuple[int, float, float, Report]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_dataset(dataset_table("amos"), folder / "amos", 2, 0, PhantomSettings(spacing_mm=(3.0, 3.0, 4.0)))
        plan = make_plan(replace(recipe, sets={"amos": str(folder / "amos")}), folder / "cache")

        def note(report: Report) -> None:
            marks.append((report.step, time.perf_counter(), watch.seconds, report))

        run(plan, folder / "run", Listener(reported=note), device="cpu")
    (first, begin, before, _), (last, end, after, _) = marks[0], marks[-1]
    steps = last - first
    share = (after - before) / (end - begin)
    wait = sum(report.wait_share for *_, report in marks[1:]) / len(marks[1:])
    patches = steps * recipe.loop.batch_size / (end - begin)
    result = {
        "machine": machine(),
        "steps": steps,
        "seconds_a_step": (end - begin) / steps,
        "network_share": share,
        "wait_share": wait,
        "patches_per_s": patches,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2))
    print(f"lite, {len(plan.classes)} classes, 96^3, batch {recipe.loop.batch_size}; {machine()['cpu']}")
    print(f"{steps} steps of {(end - begin) / steps:.2f} s, {patches:.2f} patches/s; waiting for patches {wait:.1%}")
    met = share >= LEAST_NETWORK_SHARE
    bar = f"bar {LEAST_NETWORK_SHARE:.0%}"
    print(f"train: the network takes {share:.1%} of the step ({bar}): {'every bar met' if met else 'A BAR IS MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
