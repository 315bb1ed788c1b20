"""From a recipe to a trained model: find the sets, cache them, split them, train, validate by segmenting."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from viscera.data.cache import CachedCase, CacheOutcome, CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import table_for
from viscera.data.layout import Case, find_cases
from viscera.data.loader import PatchSource, patch_loader
from viscera.data.sampling import PatchSampler
from viscera.errors import InputError, SettingError
from viscera.infer.predict import InferenceSettings, predict
from viscera.infer.prepare import Prepared, windowed
from viscera.masks import MaskSet
from viscera.model.config import ModelConfig
from viscera.model.universal import UniversalModel
from viscera.report.manifest import peak_memory_mb
from viscera.shapes import Box
from viscera.taxonomy import taxonomy
from viscera.train.loop import Ended, Listener, Validate, ready_to_train, step_loss, train
from viscera.train.recipe import Recipe
from viscera.train.start import first_config, first_model


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything a run needs.

    learned  scans it draws patches from
    held     scans it is validated on
    """

    recipe: Recipe
    config: ModelConfig
    learned: tuple[CachedCase, ...]
    held: tuple[CachedCase, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    @property
    def data(self) -> str:
        """A digest of the scans and of their part in the run. An entry's name holds a digest of what is in it."""
        names = [[case.folder.name for case in cases] for cases in (self.learned, self.held)]
        tables = [case.table(self.classes).rows.tolist() for case in self.learned]
        annotated = [case.table(self.classes).annotated.tolist() for case in self.learned]
        return hashlib.sha256(json.dumps([names, tables, annotated]).encode()).hexdigest()

    def annotated(self) -> dict[str, dict[str, int]]:
        """Class or union -> data set -> how many of its scans to learn from annotate it."""
        out: dict[str, dict[str, int]] = {}
        for case in self.learned:
            unions = ["|".join(union) for union in case.unions if set(union) <= set(self.classes)]
            for key in (*(key for key in self.classes if key in case.annotated), *unions):
                row = out.setdefault(key, {})
                row[case.dataset] = row.get(case.dataset, 0) + 1
        return out

    def source(self) -> PatchSource:
        """The patches of the run."""
        sampler = PatchSampler(self.learned, self.classes, self.recipe.sampling, self.recipe.loop.seed)
        return PatchSource(sampler, self.recipe.augment, self.config.preprocessing.window_hu)


def make_plan(
    recipe: Recipe, cache: Path, *, workers: int = 1, ended: Callable[[CacheOutcome], None] | None = None
) -> Plan:
    """Finds and caches the recipe's sets, and decides what is learned from what.

    Raises InputError for a set without cases or a case that cannot be cached, SettingError for classes that no set
    annotates.
    """
    if not recipe.sets:
        raise SettingError(
            f'The recipe {recipe.name!r} names no data set. Add a table [sets] with lits = "/data/LiTS" to it, or give '
            "--data lits=/data/LiTS. `viscera data list` shows the sets."
        )
    cases = [
        case
        for key, folder in recipe.sets.items()
        for case in find_cases(table_for(key), Path(folder).expanduser()).cases
    ]
    config = first_config(recipe, _classes(recipe, cases))
    _require_multiple(recipe, config)
    settings = CacheSettings(spacing_mm=config.preprocessing.spacing_mm, smooth=config.preprocessing.smooth)
    failed = [o for o in cache_cases(cases, cache, settings, workers=workers, ended=ended) if o.status == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(cases)} scans cannot be learned from, the first: {failed[0].case}: "
            f"{failed[0].message} `viscera data verify` shows all faults; mend them or move those scans away."
        )
    entries, _ = open_cached(cases, cache, settings)
    held = _held(entries, recipe)
    learned = tuple(case for case in entries if case.id not in held)
    if not learned:
        raise SettingError("Every scan is kept apart for validation: none is left to learn from.")
    return Plan(recipe, config, learned, tuple(case for case in entries if case.id in held))


def run(plan: Plan, folder: Path, listener: Listener | None = None, device: str = "auto") -> Ended:
    """Trains, or goes on with the run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return train(
        first_model(plan.recipe, plan.classes),
        plan.source(),
        plan.recipe,
        folder,
        data=plan.data,
        validate=whole_scan_dice(plan.held, InferenceSettings(device=device)) if plan.held else None,
        listener=listener,
        device=device,
    )


@dataclass(frozen=True)
class Cost:
    """What one step was measured to take: the plan's time and memory."""

    seconds: float
    memory_gb: float
    loss: float


def measured_step(plan: Plan) -> Cost:
    """Draws the first step's patches and runs them forwards and backwards, without changing a weight.

    The second of two is timed. The memory is the process's largest so far, with the averaged weights and AdamW's two
    moments added, which the first update would make.
    """
    recipe = plan.recipe
    model = ready_to_train(first_model(recipe, plan.classes), recipe)
    batch = next(
        iter(patch_loader(plan.source(), batch_size=recipe.loop.batch_size, start_step=0, stop_step=1, workers=0))
    )
    part = batch.part(0, recipe.loop.micro_batch or len(batch))
    seconds, loss = 0.0, 0.0
    for _ in range(2):
        begin = time.perf_counter()
        total = step_loss(model, model, part, recipe)[1].total
        total.backward()  # type: ignore[no-untyped-call]
        seconds, loss = time.perf_counter() - begin, float(total.detach())
        model.zero_grad(set_to_none=True)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = peak_memory_mb() * 1024**2
    return Cost(seconds * len(batch) / len(part), (peak + weights * (2 + bool(recipe.loop.ema))) / 1e9, loss)


def whole_scan_dice(cases: Sequence[CachedCase], settings: InferenceSettings | None = None) -> Validate:
    """A function that segments whole scans as `viscera segment` does and gives the mean Dice of every class.

    On the network's grid, before any rule. A class counts in the scans that annotate it and where it is drawn.
    """

    def validate(model: UniversalModel) -> Mapping[str, float]:
        found: dict[str, list[float]] = {}
        for case in cases:
            for key, dice in scan_dice(model, case, settings).items():
                found.setdefault(key, []).append(dice)
        return {key: float(np.mean(found[key])) for key in model.config.classes if key in found}

    return validate


def scan_dice(model: UniversalModel, case: CachedCase, settings: InferenceSettings | None = None) -> dict[str, float]:
    """Dice of every class that is annotated and drawn in a cached scan."""
    classes, table = model.config.classes, case.table(model.config.classes)
    drawn = [
        (row, key)
        for row, key in enumerate(classes)
        if table.annotated[row] and any(n and table.rows[row, code] for code, n in enumerate(case.voxels))
    ]
    masks = scan_masks(model, case, [key for _, key in drawn], settings)
    codes = case.codes()
    out = {}
    for row, key in drawn:
        truth, predicted = table.rows[row].numpy()[codes], masks.whole(key)
        out[key] = 2 * int((truth & predicted).sum()) / (int(truth.sum()) + int(predicted.sum()))
    return out


def scan_masks(
    model: UniversalModel, case: CachedCase, classes: Sequence[str], settings: InferenceSettings | None = None
) -> MaskSet:
    """Segments a cached scan as `viscera segment` does, on the network's grid and before any rule."""
    image = windowed(case.image().astype(np.float32), model.config.preprocessing.window_hu)
    prepared = Prepared(image, Box.whole(case.shape), case.shape, case.spacing_mm, case.shape, case.spacing_mm)
    return predict(model, prepared, classes, settings)


def _classes(recipe: Recipe, cases: Sequence[Case]) -> tuple[str, ...]:
    taught = {key for case in cases for key in (*case.annotated, *(k for union in case.group.unions for k in union))}
    if not recipe.classes:
        return tuple(key for key in taxonomy().keys if key in taught)
    for key in recipe.classes:
        if key not in taxonomy():
            raise SettingError(f"The recipe's classes name {key!r}, which is no class key; see `viscera classes`.")
    if nobody := [key for key in recipe.classes if key not in taught]:
        raise SettingError(
            f"No data set of the recipe annotates {', '.join(nobody)}. Take the class out, or add a set."
        )
    return recipe.classes


def _held(entries: Sequence[CachedCase], recipe: Recipe) -> set[str]:
    """Ids of the scans that are kept apart."""
    wanted = recipe.validation
    ids = {case.id for case in entries}
    if unknown := [case for case in wanted.cases if case not in ids]:
        raise SettingError(
            f"The scan {unknown[0]!r} to validate on is in none of the sets; an id looks like {min(ids)!r}."
        )
    by_set: dict[str, list[str]] = {}
    for case in entries:
        by_set.setdefault(case.dataset, []).append(case.id)
    if missing := [key for key in wanted.sets if key not in by_set]:
        raise SettingError(f"The set {missing[0]!r} to validate on is not among {', '.join(by_set)}.")
    held = set(wanted.cases)
    for dataset, members in by_set.items():
        if dataset in wanted.sets:
            held |= set(members)
            continue
        ranked = sorted(members, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        held |= set(ranked[: min(round(wanted.share * len(members)), len(members) - 1)])
    return held


def _require_multiple(recipe: Recipe, config: ModelConfig) -> None:
    """Raises SettingError for patches that the backbone does not take."""
    from viscera.model.backbones.base import make_backbone

    backbone = make_backbone(config.backbone, config.backbone_settings)
    backbone.check_size(torch.empty(1, 1, *recipe.sampling.patch_voxels, device="meta"))
