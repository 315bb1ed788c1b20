"""Which label vectors teach best: one-hot, random, or what a text encoder knows? Same patients, same network.

    python bench/claims/encodings.py                                        on phantoms, minutes
    python bench/claims/encodings.py --clip path/to/clip                    CLIP from a folder
    python bench/claims/encodings.py --recipe my.toml --steps 20000         your scans; the recipe keeps some apart
    python bench/claims/encodings.py --recipe my.toml --data lits=/data/LiTS

For every seed the runs share patients, patches and the first weights of all layers but the one that reads the vectors,
whose size follows from theirs. CLIP takes part where it is on the machine (or the hub can be reached). So short a
training tells how quickly an encoding is learned, not how good it is in the end; that is for real scans to say.

The bar: centred MiniLM, the default of every recipe, is not worse than one-hot by more than 0.03 mean Dice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common import (
    Rows,
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
from viscera.errors import CheckpointError, MissingDependencyError, SettingError
from viscera.text import encoders
from viscera.text.bank import Finish
from viscera.train.recipe import TextSettings, load_recipe
from viscera.workflow.training import Plan, make_plan

DEFAULT, PLAIN = "MiniLM centred", "one-hot"
SETS = ("amos", "ctorg")
CLASSES = ("liver", "spleen", "right_kidney", "left_kidney", "right_lung", "left_lung")  # two pairs that read alike
WORST_DIFFERENCE = -0.03


def encodings(seed: int, clip: str) -> dict[str, TextSettings]:
    """What is compared, by name. CLIP is left out where it is not there."""
    raw, centred = Finish(), Finish(centre=True)
    found = {
        PLAIN: TextSettings(encoder="one-hot", finish=raw),
        "random": TextSettings(encoder=f"random:{seed}", finish=raw),
        "MiniLM raw": TextSettings(encoder="minilm", finish=raw),
        DEFAULT: TextSettings(encoder="minilm", finish=centred),
    }
    try:
        encoders.load(clip)
    except (CheckpointError, MissingDependencyError) as error:
        print(f"Without CLIP: {error}", flush=True)
        return found
    return {
        **found,
        "CLIP raw": TextSettings(encoder=clip, finish=raw),
        "CLIP centred": TextSettings(encoder=clip, finish=centred),
    }


def ground_of(options: argparse.Namespace, seed: int, folder: Path) -> tuple[Plan, tuple[CachedCase, ...]]:
    """The plan of a seed, and the scans that nobody learns from."""
    if options.recipe is None:
        ground = make_ground(folder / "ground", seed, hospitals=SETS)
        return ground.plan(phantom_recipe(seed, options.steps, classes=list(CLASSES))), ground.held
    recipe = load_recipe(options.recipe)
    loop = replace(recipe.loop, seed=seed, steps=options.steps, save_every=options.steps)
    sets = dict(pair.split("=", 1) for pair in options.data) or recipe.sets
    recipe = replace(recipe, loop=loop, sets=sets, validation=replace(recipe.validation, every=0))
    plan = make_plan(recipe, options.cache)
    if not plan.held:
        raise SettingError(f"{options.recipe} keeps no scan apart: give it [validation] share, cases or sets.")
    return plan, plan.held


def one_seed(options: argparse.Namespace, seed: int) -> Mapping[str, Mapping[str, float]]:
    """Class (and "mean") -> encoding -> Dice."""
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plan, held = ground_of(options, seed, folder)
        for name, text in encodings(seed, options.clip).items():
            model = trained(replace(plan, recipe=replace(plan.recipe, text=text)), folder / name)
            dice = scores(model, held)
            mean = sum(dice.values()) / len(dice)
            print(f"  {name}: mean Dice {mean:.3f}", flush=True)
            for key, value in {**dice, "mean": mean}.items():
                out.setdefault(key, {})[name] = value
    return out


def compare(options: argparse.Namespace) -> bool:
    """Trains, prints the table, writes it, and says whether the bar is met."""
    begin = time.perf_counter()
    per_seed = []
    for seed in range(options.seeds):
        print(f"seed {seed}", flush=True)
        per_seed.append(one_seed(options, seed))
    rows: Rows = gathered(per_seed)
    print(f"Dice on scans nobody learned from, {options.steps} steps, mean ± sd over {options.seeds} seeds")
    print_table(rows)
    means = rows["mean"]
    against = {
        name: Spread(tuple(a - b for a, b in zip(values, means[PLAIN], strict=True)))
        for name, values in means.items()
        if name != PLAIN
    }
    for name, difference in against.items():
        print(f"{name} less {PLAIN}, seed by seed: {difference}")
    write_json(
        "encodings",
        rows,
        options,
        time.perf_counter() - begin,
        differences={name: difference.values for name, difference in against.items()},
    )
    return against[DEFAULT].mean >= WORST_DIFFERENCE


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", default="clip", help="a folder with a CLIP text tower, or a hub id")
    parser.add_argument("--recipe", help="a training recipe of your own; phantoms by default")
    parser.add_argument("--data", action="append", default=[], metavar="SET=FOLDER", help="instead of its [sets]")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="of the recipe's scans")


if __name__ == "__main__":
    raise SystemExit(main_of("encodings", __doc__, compare, steps=400, arguments=arguments))
