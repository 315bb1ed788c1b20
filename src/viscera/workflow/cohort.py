"""Many scans: reads, computes and writes side by side, goes on after a failure, and says how each one went."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viscera.errors import InputError
from viscera.io.find import case_names, scan_files
from viscera.model.universal import UniversalModel
from viscera.report.as_json import plain
from viscera.report.figures import ready_to_draw
from viscera.workflow.outputs import RECORD, is_whole, read_record, refuse_existing
from viscera.workflow.scan import (
    Masked,
    Ready,
    Result,
    SaveSettings,
    SegmentSettings,
    Stage,
    Stopwatch,
    describe,
    find_masks,
    make_ready,
    request,
)

Status = Literal["done", "skipped", "failed"]


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
    status: Status
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
    if series is not None and all(path.is_dir() for path in scans):
        from viscera.io.dicom.read import is_one_study  # pydicom takes a while to load: only where it is needed

        if is_one_study(folder):
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

    While the network works on one case, the next one is read and the one before is measured and written: three scans
    are in memory at once. Where the settings limit the memory, it is one scan after the other.

    resume  skip a case whose folder holds a whole result of the same scan, model and settings
    begun, ended  called before a case's network and when its result is written, from the caller's thread
    """
    work = _Work(model, settings, save, resume, listener if len(cases) == 1 else None)
    outcomes: list[Outcome] = []

    def finished(step: Future[_Step]) -> None:
        done = step.result()
        outcomes.append(done.outcome())
        if ended is not None:
            ended(outcomes[-1], done.result)
        done.result = None  # a caller's loop may hold the step while the next scan is read

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        waiting = deque(cases)
        together = settings.inference.max_memory_bytes is None
        ahead = reader.submit(work.read, waiting.popleft()) if waiting else None
        behind: Future[_Step] | None = None
        if save.picture:
            writer.submit(ready_to_draw)
        while ahead is not None:
            step = ahead.result()
            ahead = reader.submit(work.read, waiting.popleft()) if waiting and together else None
            if begun is not None:
                begun(step.case)
            work.compute(step, listener)
            if behind is not None:
                finished(behind)
            behind = writer.submit(work.write, step)
            if waiting and not together:
                finished(behind)
                behind, ahead = None, reader.submit(work.read, waiting.popleft())
        if behind is not None:
            finished(behind)
    return outcomes


@dataclass
class _Step:
    """One case on its way; an error ends the way."""

    case: Case
    watch: Stopwatch
    skipped: bool = False
    ready: Ready | None = None
    masked: Masked | None = None
    result: Result | None = None
    error: Exception | None = None

    def outcome(self) -> Outcome:
        status: Status = "failed" if self.error is not None else "skipped" if self.skipped else "done"
        return Outcome(self.case, status, sum(self.watch.seconds.values()), self.error)


@dataclass(frozen=True)
class _Work:
    """The three parts of a case's way, each of which keeps its error in the step: also a bug or a lack of memory, from
    which the other scans must not suffer."""

    model: UniversalModel
    settings: SegmentSettings
    save: SaveSettings
    resume: bool
    listener: Stage | None  # of reading and writing

    def read(self, case: Case) -> _Step:
        step = _Step(case, Stopwatch(self.listener))
        try:
            if self.resume and is_done(case, self.model, self.settings, self.save):
                step.skipped = True
            else:
                refuse_existing(case.output, self._save_here.overwrite)
                step.ready = make_ready(case.scan, self.model, self.settings, step.watch)
        except Exception as error:
            step.error = error
        return step

    def compute(self, step: _Step, listener: Stage | None) -> None:
        if step.ready is None:
            return
        step.watch.listener = listener
        try:
            step.masked = find_masks(step.ready, self.model, self.settings, step.watch)
        except Exception as error:
            step.error = error
        step.watch.listener = self.listener
        step.ready = None

    def write(self, step: _Step) -> _Step:
        if step.masked is None:
            return step
        try:
            step.result = describe(step.masked, self.model, self.settings, step.watch)
            step.masked = None
            step.result.save(step.case.output, self._save_here, watch=step.watch)
        except Exception as error:
            step.error = error
        return step

    @property
    def _save_here(self) -> SaveSettings:
        """A folder that is not whole is an interrupted run's, and may be replaced by --resume."""
        return self.save.replacing(self.save.overwrite or self.resume)


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
