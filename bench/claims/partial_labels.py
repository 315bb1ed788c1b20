"""Is it right to leave out of the loss what a data set does not annotate, and is one model as good as one per set?

    python bench/claims/partial_labels.py [--seeds 3] [--steps 400]

Three phantom hospitals: one draws organs of the abdomen, one the liver and its tumours, one both sides of kidneys and
lungs under one label. For every seed three ways to learn from them:

    masked       what a set does not annotate is not in its loss: what viscera does
    background   what a set does not annotate counts as "not here"
    one per set  three models, each with as many updates as the universal one, thus three times the training

scored on complete patients whom no set holds. Where several sets draw a class, the best of their models counts, chosen
on the test patients, which flatters "one per set". Inference is timed with every class of every model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
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
    models = []
    for key in HOSPITALS:
        taught = set(ground.plan(phantom_recipe(seed, 1, classes=[]), [key]).classes)
        wanted = [name for name in plan.classes if name in taught]
        models.append(trained(ground.plan(phantom_recipe(seed, steps, classes=wanted), [key]), folder / key))
    found[APART] = best_of([scores(model, ground.held) for model in models])
    times = seconds_a_scan(models, ground.held) / seconds_a_scan([universal], ground.held)
    rows = {name: {way: dice[name] for way, dice in found.items()} for name in found[MASKED]}
    means = {way: float(np.mean(list(dice.values()))) for way, dice in found.items()}
    return {OVERALL: means, **rows}, times


def best_of(models: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """For each class the highest score of any model that has it."""
    return {name: max(dice[name] for dice in models if name in dice) for dice in models for name in dice}


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
    print(f"\nDice on complete patients, mean ± sd over {options.seeds} seeds, {options.steps} updates a model")
    print_table(rows)
    print(f"\nmasked minus background: {gain} (bar {LEAST_GAIN} and {LEAST_SDS:g} sd)")
    print(f"masked minus one per set: {apart}; inference with one per set takes {times} times as long")
    more = {"masked_minus_background": gain.values, "masked_minus_one_per_set": apart.values}
    write_json(CLAIM, rows, options, time.perf_counter() - begin, inference_ratio=times.values, **more)
    return gain.mean >= max(LEAST_GAIN, LEAST_SDS * gain.sd)


if __name__ == "__main__":
    raise SystemExit(main_of(CLAIM, __doc__, body, steps=400))
