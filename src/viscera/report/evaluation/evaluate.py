"""Score a whole set of predictions: case by case in worker processes, one faulty file never stops the rest.

cases = find_cases(Places(predictions, references))          # cases.py
evaluation = evaluate(cases, EvaluationSettings(), workers=4)
write_evaluation(evaluation, "out/")                         # report.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from viscera import __version__
from viscera.errors import ImageError, InputError, SettingError, VisceraError
from viscera.io.labels import read_numbers
from viscera.metrics.detection import FROC_THRESHOLDS, LesionMatch, Matching, match_at_thresholds, match_lesions
from viscera.metrics.score import ClassMasks, Score, box_around, score_classes
from viscera.metrics.tolerances import tolerances_mm
from viscera.report.evaluation.cases import Case
from viscera.report.evaluation.dataset import read_drawn
from viscera.report.evaluation.grid import Grid, lookup
from viscera.report.evaluation.labels import (
    LabelTable,
    Side,
    canonical,
    grid_of,
    image_name,
    mask_files,
    own_labels,
    parts_of,
    read_side,
)
from viscera.shapes import Box, SpacingMm
from viscera.taxonomy import taxonomy


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How to score, apart from the cases.

    references, predictions  what the values of each side's label maps mean
    classes       score these only (keys); None: every class that both sides know
    annotated     classes that the references annotate; None: in each data set, those of which any of its references
                  holds a voxel. A row of the table of cases may say it for itself.
    lesions       classes that are counted lesion by lesion too; None: the taxonomy's tumours and cysts
    tolerance_mm  of the surface Dice: one for all classes, or by class; classes left out are as in tolerances.toml
    matching      when a predicted lesion answers a reference lesion
    """

    references: LabelTable = field(default_factory=own_labels)
    predictions: LabelTable = field(default_factory=own_labels)
    classes: tuple[str, ...] | None = None
    annotated: tuple[str, ...] | None = None
    lesions: tuple[str, ...] | None = None
    tolerance_mm: float | Mapping[str, float] | None = None
    matching: Matching = field(default_factory=Matching)

    def tolerances(self, keys: Iterable[str]) -> dict[str, float]:
        """The tolerance in mm of each of `keys`."""
        if isinstance(self.tolerance_mm, float | int):
            return dict.fromkeys(keys, float(self.tolerance_mm))
        own = self.tolerance_mm or {}
        return {key: own.get(key, mm) for key, mm in tolerances_mm(keys).items()}

    def is_lesion(self, key: str) -> bool:
        """Whether this class is counted lesion by lesion."""
        if self.lesions is not None:
            return key in self.lesions
        return key in taxonomy() and taxonomy()[key].is_lesion


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case; classes that were not annotated are not in it."""

    name: str
    prediction: str  # the file or folder that was scored
    reference: str
    scores: Mapping[str, Score]
    lesions: Mapping[str, LesionMatch] = field(default_factory=dict)
    froc: Mapping[str, tuple[LesionMatch, ...]] = field(default_factory=dict)  # one per FROC_THRESHOLDS
    data_set: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    prediction_sha256: str | None = None
    reference_sha256: str | None = None
    not_compared: tuple[str, ...] = ()  # classes of the reference that the prediction cannot tell
    notes: tuple[str, ...] = ()  # what a reader must know, in sentences
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A case that could not be scored, and why."""

    name: str
    prediction: str
    reference: str
    error: str


@dataclass(frozen=True)
class Evaluation:
    """All cases of one run, in the order they were given."""

    cases: tuple[CaseResult, ...]
    failures: tuple[Failure, ...]
    name: str = "model"  # what the predictions are called in reports
    record: Mapping[str, Any] = field(default_factory=dict)  # how this came about: settings, versions, time

    @property
    def classes(self) -> tuple[str, ...]:
        """Every scored class: the taxonomy's in id order, then others by name."""
        found = {key for case in self.cases for key in case.scores}
        own = {s.key: s.id for s in taxonomy()}
        return tuple(sorted(found, key=lambda key: (own.get(key, len(own) + 1), key)))

    @property
    def lesion_classes(self) -> tuple[str, ...]:
        """Those of `classes` that were counted lesion by lesion."""
        return tuple(key for key in self.classes if any(key in case.lesions for case in self.cases))

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Classes that references know and no prediction can tell, sorted."""
        return tuple(sorted({key for case in self.cases for key in case.not_compared} - set(self.classes)))

    def values(self, key: str, metric: str) -> list[float]:
        """One metric of one class in each case; NaN where the class is not scored."""
        return [getattr(case.scores[key], metric) if key in case.scores else float("nan") for case in self.cases]


def evaluate(
    cases: Sequence[Case],
    settings: EvaluationSettings | None = None,
    *,
    workers: int = 1,
    name: str = "model",
    ended: Callable[[str, CaseResult | Failure], None] | None = None,
) -> Evaluation:
    """Score every case; faulty ones end up among the failures with their reason.

    workers  processes; 1 scores in this one
    ended    called with the name and the outcome of each case, in the order in which they end

    Raises InputError if no case at all could be scored, and SettingError for classes nobody has.
    """
    settings = settings or EvaluationSettings()
    if settings.classes is not None:
        _require_known(settings)
    outcomes: dict[str, CaseResult | Failure] = {}
    for case, outcome in _outcomes(cases, settings, workers):
        outcomes[case.name] = outcome
        if ended is not None:
            ended(case.name, outcome)
    results = [o for case in cases if isinstance(o := outcomes[case.name], CaseResult)]
    failures = [o for case in cases if isinstance(o := outcomes[case.name], Failure)]
    if not results:
        raise InputError(
            f"None of {len(cases)} cases could be scored. The first: {failures[0].name}: {failures[0].error}"
        )
    by_table = {case.name for case in cases if case.annotated is not None}
    record = {
        "viscera": __version__,
        "python": platform.python_version(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
    }
    return Evaluation(tuple(_annotated_only(results, settings, by_table)), tuple(failures), name, record)


def _require_known(settings: EvaluationSettings) -> None:
    for key in settings.classes or ():
        for side, table in (("references", settings.references), ("predictions", settings.predictions)):
            if not parts_of(key, table.values) and key not in taxonomy() and key not in taxonomy().groups:
                raise SettingError(
                    f"The class {key!r} is not among the labels of the {side} ({', '.join(table.values)}). "
                    "Check --classes and --labels."
                )


def _outcomes(
    cases: Sequence[Case], settings: EvaluationSettings, workers: int
) -> Iterator[tuple[Case, CaseResult | Failure]]:
    """Each case with its outcome, as they end. A worker process that dies takes down nothing but its own case."""
    if workers <= 1:
        for case in cases:
            yield case, _attempt(case, settings)
        return
    waiting = list(cases)
    while waiting:
        done = set()
        for case, outcome in _pooled(waiting, settings, workers):
            done.add(case.name)
            yield case, outcome
        waiting = [case for case in waiting if case.name not in done]
        if waiting:
            # A worker died and nobody knows in which case: the first one left is tried alone, and so on.
            alone, *waiting = waiting
            died = _failure(alone, "the worker process died, perhaps for want of memory; try fewer --workers")
            yield next(_pooled([alone], settings, 1), (alone, died))


def _pooled(
    cases: Sequence[Case], settings: EvaluationSettings, workers: int
) -> Iterator[tuple[Case, CaseResult | Failure]]:
    """Outcomes from worker processes, as they end; ends early, without those not yet done, when a process dies."""
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=get_context("spawn")) as pool:
        running: dict[Future[CaseResult | Failure], Case] = {
            pool.submit(_attempt, case, settings): case for case in cases
        }
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for the cases in the queue


def _attempt(case: Case, settings: EvaluationSettings) -> CaseResult | Failure:
    """Score one case; whatever goes wrong becomes its failure."""
    try:
        return score_case(case, settings)
    except VisceraError as error:
        return _failure(case, str(error))
    except Exception as error:
        # A bug in one of a thousand cases must not cost the other 999; it is reported with its type.
        return _failure(case, f"{type(error).__name__}: {error}")


def _failure(case: Case, error: str) -> Failure:
    return Failure(case.name, str(case.prediction or ""), str(case.reference), error)


def score_case(case: Case, settings: EvaluationSettings) -> CaseResult:
    """Score one case on its reference's grid. Raises VisceraError where it cannot be scored."""
    started = time.perf_counter()
    reference, prediction = read_sides(case, settings)
    way = lookup(prediction.grid, reference.grid, case.name)
    wanted = [key for key in _with_groups(reference.keys, prediction.keys) if _is_wanted(key, case, settings)]
    keys = [key for key in wanted if parts_of(key, prediction.keys)]
    if not keys:
        raise InputError(
            f"Prediction and reference have no class in common: {_few(prediction.keys)} and {_few(reference.keys)}. "
            "Say what the values mean with --labels."
        )
    straight = lookup(reference.grid, reference.grid, case.name)
    masks = reference.masks(keys, straight), prediction.masks(keys, way)
    x, y, z = (float(s) for s in reference.grid.spacing_mm)
    spacing_mm = (x, y, z)
    lesion_keys = [key for key in keys if settings.is_lesion(key)]
    matches = {}
    for key in lesion_keys:
        box = box_around([side.box(key) for side in masks])
        truth, found = (side.crop(key, box) for side in masks)
        affine = reference.grid.cropped(box).affine
        matches[key] = match_lesions(truth, found, spacing_mm, settings.matching, affine)
    froc, notes = {}, [way.note] if way.note else []
    if case.probabilities is not None and lesion_keys:
        froc = _froc(case.probabilities, masks[0], reference.grid, lesion_keys, spacing_mm, settings.matching)
        if not froc:
            notes.append(f"{case.probabilities} holds no probability map of {_few(lesion_keys)}: no FROC curve.")
    return CaseResult(
        name=case.name,
        prediction=str(case.prediction),
        reference=str(case.reference),
        scores=score_classes(*masks, spacing_mm, settings.tolerances(keys)),
        lesions=matches,
        froc=froc,
        data_set=case.data_set,
        groups=case.groups,
        prediction_sha256=prediction.sha256,
        reference_sha256=reference.sha256,
        not_compared=tuple(key for key in wanted if key not in keys and reference.holds(key)),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def read_sides(case: Case, settings: EvaluationSettings) -> tuple[Side, Side]:
    """The reference and the prediction of a case. Raises VisceraError."""
    if case.prediction is None:
        raise InputError("There is no prediction of this case.")
    reference = read_drawn(case.drawn) if case.drawn else read_side(case.reference, settings.references)
    return reference, read_side(case.prediction, settings.predictions)


def _with_groups(reference: Sequence[str], prediction: Sequence[str]) -> list[str]:
    """The reference's classes; where the prediction tells only a group of them (`kidneys`), that group instead."""
    groups = {
        group: set(members)
        for group, members in taxonomy().groups.items()
        if group in prediction and group not in reference and set(members) <= set(reference)
    }
    merged = set().union(*groups.values()) - set(prediction)
    return [key for key in reference if key not in merged] + list(groups)


def _is_wanted(key: str, case: Case, settings: EvaluationSettings) -> bool:
    """Whether this class, or every member of this group, is asked for and annotated."""
    annotated = case.annotated if case.annotated is not None else settings.annotated
    return all(keys is None or parts_of(key, keys) for keys in (settings.classes, annotated))


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (" ..." if len(keys) > 5 else "")


def _froc(
    folder: Path, reference: ClassMasks, grid: Grid, keys: Sequence[str], spacing_mm: SpacingMm, matching: Matching
) -> dict[str, tuple[LesionMatch, ...]]:
    """The lesions of each class at every threshold, from the probability maps that `folder` holds (CLASS.nii.gz)."""
    files = {canonical(image_name(file)): file for file in mask_files(folder)}
    found = {}
    for key in keys:
        if key not in files:
            continue
        volume = read_numbers(files[key])
        low, high = float(volume.array.min()), float(volume.array.max())
        if not (low >= 0 and high <= 255):
            raise ImageError(f"{files[key]} holds values beyond 0-1 (or 0-255), so it is no probability map.")
        whole = 255 if high > 1.01 else 1  # a softmax may end a rounding above 1
        values = lookup(grid_of(volume), grid, str(files[key]))(volume.array)
        box = box_around([reference.box(key), Box.around(values >= FROC_THRESHOLDS[0] * whole)])
        probability = values[box.slices] / np.float32(whole)
        found[key] = match_at_thresholds(reference.crop(key, box), probability, spacing_mm, FROC_THRESHOLDS, matching)
    return found


def _annotated_only(
    results: Sequence[CaseResult], settings: EvaluationSettings, by_table: set[str]
) -> Iterator[CaseResult]:
    """Leave out the classes that no reference of the case's data set holds, unless somebody said what is annotated."""
    if settings.annotated is not None:
        yield from results
        return
    held: dict[str, set[str]] = {}
    for result in results:
        held.setdefault(result.data_set, set()).update(k for k, s in result.scores.items() if s.reference_ml > 0)
    for result in results:
        keys = result.scores.keys() if result.name in by_table else held[result.data_set]
        yield replace(
            result,
            scores={key: score for key, score in result.scores.items() if key in keys},
            lesions={key: match for key, match in result.lesions.items() if key in keys},
            froc={key: match for key, match in result.froc.items() if key in keys},
        )
