"""What the claims share: phantom hospitals, the training of a changed recipe, scores on patients nobody learned from.

A claim is a script beside this one. For every seed it makes other patients and other first weights, trains its
variants on the same patches, and scores them on complete phantoms (every class drawn) with the program's own
inference. It prints a table with mean and spread, writes JSON to bench/out/claims and fails below its bar.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viscera.data.cache import CachedCase, CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import dataset_table, parse_table
from viscera.data.layout import find_cases
from viscera.data.phantom import PhantomSettings, write_dataset
from viscera.model.universal import UniversalModel
from viscera.report.manifest import machine
from viscera.taxonomy import taxonomy
from viscera.train.recipe import Recipe, load_recipe, recipe_from
from viscera.workflow.training import Plan, make_plan, run, whole_scan_dice

OUT = Path(__file__).parents[1] / "out" / "claims"
# As in the paper's assembly, each draws an organ of its own (and its tumours, which would take longer to learn).
HOSPITALS = ("lits", "kits", "msd_spleen", "msd_pancreas")
CLASSES = ("spleen", "right_kidney", "left_kidney", "liver", "pancreas")

# A hospital that draws everything, one mask per structure, as classes overlap.
COMPLETE = parse_table(
    "complete",
    {
        "title": "every class drawn",
        "image": "{case}/ct{ext}",
        "label": "{case}/masks/{structure}{ext}",
        "labels": {key: key for key in taxonomy().keys},
    },
)


@dataclass(frozen=True, eq=False)
class Ground:
    """What one seed learns from and is scored on.

    sets   data set -> folder: what a recipe's `sets` takes
    cache  of all of them
    held   complete patients that no set holds, at the recipe's grid
    """

    sets: dict[str, str]
    cache: Path
    held: tuple[CachedCase, ...]

    def plan(self, recipe: Recipe, sets: Sequence[str] = ()) -> Plan:
        """The plan of a recipe on these sets, all of them if none is named."""
        return make_plan(replace(recipe, sets={key: self.sets[key] for key in sets or self.sets}), self.cache)


def make_ground(
    folder: Path, seed: int, *, hospitals: Sequence[str] = HOSPITALS, cases: int = 6, held: int = 6
) -> Ground:
    """Writes and caches the phantoms of a seed: `cases` patients for each group of a set, `held` complete ones."""
    settings = PhantomSettings(spacing_mm=(5.0, 5.0, 6.0))
    for key in hospitals:
        write_dataset(dataset_table(key), folder / key, cases, seed, settings)
    write_dataset(COMPLETE, folder / COMPLETE.key, held, seed, settings)
    wanted = load_recipe("phantom").model_settings["preprocessing"]
    grid = CacheSettings(spacing_mm=tuple(wanted["spacing_mm"]), smooth=wanted["smooth"])
    complete = find_cases(COMPLETE, folder / COMPLETE.key).cases
    cache_cases(complete, folder / "cache", grid)
    entries, _ = open_cached(complete, folder / "cache", grid)
    return Ground({key: str(folder / key) for key in hospitals}, folder / "cache", tuple(entries))


def phantom_recipe(seed: int, steps: int, **changes: Any) -> Recipe:
    """The packaged recipe `phantom` made small: `CLASSES`, quick to learn, no validation.

    changes  `text={"encoder": "one_hot"}` changes a table, anything else a field
    """
    values = load_recipe("phantom").as_json() | {"classes": list(CLASSES)}
    small = {"validation": {"every": 0, "share": 0.0}}
    for name, value in {**small, **changes}.items():
        values[name] = {**values[name], **value} if isinstance(value, Mapping) else value
    values["loop"] |= {"seed": seed, "steps": steps, "save_every": steps, "log_every": steps, "workers": 0}
    values["loop"]["precision"] = "fp32"  # as fast as bf16 at this size
    return recipe_from(values, "phantom", "the claim's recipe")


def trained(plan: Plan, folder: Path) -> UniversalModel:
    """The model that comes out of a plan."""
    begin = time.perf_counter()
    model = run(plan, folder, device="cpu").model
    print(f"  {folder.name}: {plan.recipe.loop.steps} steps in {time.perf_counter() - begin:.0f} s", flush=True)
    return model


def scores(model: UniversalModel, held: Sequence[CachedCase]) -> dict[str, float]:
    """Mean Dice of each of the model's classes over the patients that have it, before any rule."""
    return dict(whole_scan_dice(held)(model))


@dataclass(frozen=True)
class Spread:
    """A number over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Of the sample; 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}"


Rows = Mapping[str, Mapping[str, Sequence[float]]]  # row (a class, a mean) -> column (a variant) -> value per seed


def print_table(rows: Rows) -> None:
    """Mean ± standard deviation over the seeds."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(16, *(len(column) + 2 for column in columns))
    print(f"{'':<24}" + "".join(f"{column:>{width}}" for column in columns))
    for name, row in rows.items():
        cells = (str(Spread(tuple(row[column]))) if column in row else "-" for column in columns)
        print(f"{name:<24}" + "".join(f"{cell:>{width}}" for cell in cells))


def write_json(claim: str, rows: Rows, options: argparse.Namespace, seconds: float, **more: Any) -> None:
    """Everything that was printed, and every seed's value."""
    OUT.mkdir(parents=True, exist_ok=True)
    table = {
        name: {column: asdict(s) | {"mean": s.mean, "sd": s.sd} for column, s in _spreads(row).items()}
        for name, row in rows.items()
    }
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    values = {"machine": machine(), "options": asked, "seconds": seconds, "table": table, **more}
    (OUT / f"{claim}.json").write_text(json.dumps(values, indent=2))


def _spreads(row: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    return {column: Spread(tuple(values)) for column, values in row.items()}


def gathered(per_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Seeds of (row -> column -> value) as row -> column -> value per seed."""
    out: dict[str, dict[str, list[float]]] = {}
    for seed in per_seed:
        for row, columns in seed.items():
            for column, value in columns.items():
                out.setdefault(row, {}).setdefault(column, []).append(value)
    return out


def main_of(
    claim: str,
    description: str | None,
    body: Callable[[argparse.Namespace], bool],
    steps: int,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Reads --seeds and --steps, and what `arguments` adds; runs the claim and says whether its bar is met.

    One thread: patches this small do not gain from a second one, and it makes the numbers the same on every machine.
    """
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=steps, help="updates of every model")
    if arguments is not None:
        arguments(parser)
    met = body(parser.parse_args())
    print(f"{claim}: {'the bar is met' if met else 'THE BAR IS MISSED'}")
    return 0 if met else 1
