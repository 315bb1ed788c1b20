"""Many scans, one after the other: goes on after a failure, skips what is whole, and says how each one went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viscera.errors import InputError
from viscera.io.dicom.read import is_one_study
from viscera.io.find import case_names, scan_files
from viscera.model.universal import UniversalModel
from viscera.report.as_json import plain
from viscera.workflow.outputs import RECORD, is_whole, read_record, refuse_existing
from viscera.workflow.scan import Result, SaveSettings, SegmentSettings, Stage, Stopwatch, request, segment_scan


@dataclass(frozen=True)
class Case:
    """One scan of a cohort and the folder its result goes to."""

    name: str
    scan: Path
    output: Path


@dataclass(frozen=True)
class Outcome:
    """How one case ended."""

    case: Case
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    error: Exception | None = None  # why it failed


def find_cases(scans: Sequence[Path], output: Path, *, series: str | None = None) -> list[Case]:
    """The cases in `scans` (files, DICOM folders, archives, or folders of such), each with a name of its own.

    series  which DICOM series will be read; where one is named, a folder that holds one study, however it is divided
            into sub-folders, is one case

    A scan is named after its file; where two would share a name (`a/ct.nii.gz`, `b/ct.nii.gz`), the folders that
    tell them apart come before it (`a_ct`, `b_ct`). Results of earlier runs are no scans. Raises InputError if a
    folder holds no scan, or if a scan is named twice.
    """
    found = [path for place in scans for path in (_scans_in(place, series) if place.is_dir() else [place])]
    paths = [path.absolute() for path in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise InputError(f"The scan {twice} was named twice.")
    return [Case(name, scan, output / name) for name, scan in zip(case_names(paths), found, strict=True)]


def _scans_in(folder: Path, series: str | None) -> list[Path]:
    """The scans in a folder, without what earlier runs wrote there."""
    written = {
        file.parent / name
        for file in folder.rglob(RECORD)
        for name in (read_record(file.parent) or {}).get("outputs", {})
    }
    scans = [path for path in scan_files(folder) if path not in written]
    if not scans:
        raise InputError(f"{folder} holds no scans, only results of earlier runs.")
    if series is not None and all(path.is_dir() for path in scans) and is_one_study(folder):
        return [folder]
    return scans


def segment_many(
    cases: Sequence[Case],
    model: UniversalModel,
    settings: SegmentSettings,
    save: SaveSettings,
    *,
    resume: bool = False,
    listener: Stage | None = None,
    begun: Callable[[Case], None] | None = None,
    ended: Callable[[Outcome, Result | None], None] | None = None,
) -> list[Outcome]:
    """Segments every case into its folder; an error in one does not stop the others.

    resume  skip a case whose folder holds a whole result of the same scan, model and settings
    begun, ended  called before and after each case
    """
    outcomes = []
    for case in cases:
        if begun is not None:
            begun(case)
        result = None
        watch = Stopwatch(listener)
        try:
            if resume and is_done(case, model, settings, save):
                outcome = Outcome(case, "skipped")
            else:
                # A folder that is not whole is an interrupted run's, and may be replaced by --resume.
                save_here = save.replacing(save.overwrite or resume)
                refuse_existing(case.output, save_here.overwrite)
                result = segment_scan(case.scan, model, settings, watch=watch)
                result.save(case.output, save_here, watch=watch)
                outcome = Outcome(case, "done", sum(watch.seconds.values()))
        except Exception as error:  # also a bug or a lack of memory: the other scans must not suffer from it
            outcome = Outcome(case, "failed", sum(watch.seconds.values()), error)
        outcomes.append(outcome)
        if ended is not None:
            ended(outcome, result)
    return outcomes


def is_done(case: Case, model: UniversalModel, settings: SegmentSettings, save: SaveSettings) -> bool:
    """Whether the case's folder holds a whole result of this very request, with the files that `save` asks for."""
    record = read_record(case.output)
    if record is None or not is_whole(case.output):
        return False
    outputs = record.get("outputs", {})
    has_files = (not save.masks or any(name.startswith("masks/") for name in outputs)) and (
        not save.picture or "preview.png" in outputs
    )
    return has_files and record.get("request") == plain(request(case.scan, model, settings))
