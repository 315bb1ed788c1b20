"""Is it right to leave out of the loss what a data set does not annotate, and is one model as good as one per set?

    python bench/claims/partial_labels.py [--seeds 3] [--steps 600]

Four phantom hospitals, each of which draws one organ: liver, kidneys (both under one label), spleen, pancreas. For
every seed three ways to learn from them:

    masked       what a set does not annotate is not in its loss: what viscera does
    background   what a set does not annotate counts as "not here"
    one per set  four models, each with a quarter of the updates: as many of its own set's patches as the universal one

scored on complete patients whom no set holds. Inference is timed with every class of every model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import (
    HOSPITALS,
    Ground,
    Spread,
    gathered,
    main_of,
    make_ground,
    phantom_recipe,
    print_table,
    scores,
    trained,
    write_json,
)

from viscera.data.cache import CachedCase
from viscera.model.universal import UniversalModel
from viscera.workflow.training import Plan, scan_masks

CLAIM = "partial_labels"
LEAST_GAIN = 0.05  # of mean Dice, masked over background: a clear margin ...
LEAST_SDS = 2.0  # ... that is also this many standard deviations of the difference over the seeds
MASKED, BACKGROUND, APART = "masked", "background", "one per set"
OVERALL = "mean of all classes"


def as_background(plan: Plan) -> Plan:
    """The plan in which every scan claims to annotate every class."""
    return replace(plan, learned=tuple(replace(case, annotated=plan.classes, unions=()) for case in plan.learned))


def seconds_a_scan(models: Sequence[UniversalModel], held: Sequence[CachedCase]) -> float:
    """Of one thread, to segment a scan with all classes of all models: median over scans."""
    times = []
    for case in held:
        begin = time.process_time()  # not the clock: other work on the machine counts for nothing
        for model in models:
            scan_masks(model, case, model.config.classes)
        times.append(time.process_time() - begin)
    return float(np.median(times))


def learn(ground: Ground, seed: int, steps: int, folder: Path) -> tuple[dict[str, dict[str, float]], float]:
    """Class -> way to learn -> Dice; and how many times longer inference takes with one model per set."""
    plan = ground.plan(phantom_recipe(seed, steps))
    universal = trained(plan, folder / "masked")
    found = {MASKED: scores(universal, ground.held)}
    found[BACKGROUND] = scores(trained(as_background(plan), folder / "background"), ground.held)
    models, share = [], steps // len(HOSPITALS)
    for key in HOSPITALS:
        taught = set(ground.plan(phantom_recipe(seed, 1, classes=[]), [key]).classes)
        wanted = [name for name in plan.classes if name in taught]
        text = {"finish": {"centre": len(wanted) > 1}}  # a single vector has nothing to be told from
        apart = phantom_recipe(seed, share, classes=wanted, text=text)
        models.append(trained(ground.plan(apart, [key]), folder / key))
    found[APART] = {name: dice for model in models for name, dice in scores(model, ground.held).items()}
    times = seconds_a_scan(models, ground.held) / seconds_a_scan([universal], ground.held)
    rows = {name: {way: dice[name] for way, dice in found.items()} for name in found[MASKED]}
    means = {way: float(np.mean(list(dice.values()))) for way, dice in found.items()}
    return {OVERALL: means, **rows}, times


def body(options: argparse.Namespace) -> bool:
    """Runs all seeds; True if masked beats background clearly."""
    begin = time.perf_counter()
    results = []
    with tempfile.TemporaryDirectory() as place:
        for seed in range(options.seeds):
            folder = Path(place) / str(seed)
            print(f"seed {seed}", flush=True)
            results.append(learn(make_ground(folder, seed), seed, options.steps, folder))
            print("  " + ", ".join(f"{way} {dice:.3f}" for way, dice in results[-1][0][OVERALL].items()), flush=True)
    rows = gathered([row for row, _ in results])
    times = Spread(tuple(ratio for _, ratio in results))
    overall = rows[OVERALL]
    gain = Spread(tuple(m - b for m, b in zip(overall[MASKED], overall[BACKGROUND], strict=True)))
    apart = Spread(tuple(m - a for m, a in zip(overall[MASKED], overall[APART], strict=True)))
    print(f"\nDice on complete patients, mean ± sd over {options.seeds} seeds, {options.steps} updates")
    print_table(rows)
    print(f"\nmasked minus background: {gain} (bar {LEAST_GAIN} and {LEAST_SDS:g} sd)")
    print(f"masked minus one per set: {apart}; inference with one per set takes {times} times as long")
    more = {"masked_minus_background": gain.values, "masked_minus_one_per_set": apart.values}
    write_json(CLAIM, rows, options, time.perf_counter() - begin, inference_ratio=times.values, **more)
    return gain.mean >= max(LEAST_GAIN, LEAST_SDS * gain.sd)


if __name__ == "__main__":
    raise SystemExit(main_of(CLAIM, __doc__, body, steps=600))
