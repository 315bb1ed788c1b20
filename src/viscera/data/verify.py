"""Looks for what is wrong with a data set before anything is trained on it: every fault, its file, a plain verdict.

    error    the case would teach something wrong or cannot be used
    warning  look at it: rare in truth, common as a mistake
    note     what was noticed and handled while reading

What is checked: pairs, readability, Hounsfield units, grids, label values, empty labels, copies of the same scan
(within and across sets), lesions outside their organ, volumes no adult has, left and right exchanged.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from viscera.components import labelled
from viscera.data.anatomy import anatomy
from viscera.data.assemble import label_table
from viscera.data.catalogue import host_organs
from viscera.data.drawing import Drawing, looked_up, organs_drawn, read_drawing_in_space, with_sides
from viscera.data.lateral import midplane
from viscera.data.layout import Case, Found
from viscera.errors import ImageError, VisceraError
from viscera.io.body import BODY_HU
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.masks import BoolArray
from viscera.shapes import Box, SpacingMm, triple
from viscera.taxonomy import taxonomy

Severity = Literal["error", "warning", "note"]

_COARSE_MM = 3.0  # volumes and sides are measured on every n-th voxel, about this far apart
_LEAST_COMPONENT_ML = 0.02  # a stray voxel of a lesion is not worth a line of its own


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or worth a look."""

    case: str  # "lits/17"
    file: str
    check: str  # "pair", "unreadable", "hu", "grid", "value", "empty", "duplicate", "outside", "volume", "side", "read"
    severity: Severity
    verdict: str


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case."""

    case: str
    image: str
    faults: tuple[Fault, ...]
    digest: str | None = None  # of the image's voxels in RAS order: equal for copies, however they are stored
    volumes_ml: dict[str, float] | None = None  # of every annotated class, measured at about 3 mm


@dataclass(frozen=True)
class Verification:
    """The result for all data sets together."""

    cases: int
    faults: tuple[Fault, ...]

    @property
    def errors(self) -> int:
        """How many faults are errors."""
        return sum(fault.severity == "error" for fault in self.faults)

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        count = Counter(fault.severity for fault in self.faults)
        bad = len({fault.case for fault in self.faults if fault.severity == "error"})
        if bad:
            return f"{bad} of {self.cases} cases have errors ({count['error']} errors, {count['warning']} warnings)."
        return f"All {self.cases} cases can be used ({count['warning']} warnings)."

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "verdict": self.verdict,
            "cases": self.cases,
            "errors": self.errors,
            "faults": [asdict(fault) for fault in self.faults],
        }


def verify_sets(
    sets: Sequence[Found], *, workers: int = 1, ended: Callable[[CaseReport], None] | None = None
) -> Verification:
    """Checks every case of all sets, alone and against each other. `ended` hears of every case as it is done."""
    cases = [case for found in sets for case in found.cases]
    faults = [fault for found in sets for fault in _misplaced(found)]
    reports = []
    for report in _reports(cases, workers):
        reports.append(report)
        if ended is not None:
            ended(report)
    faults += [fault for report in reports for fault in report.faults]
    faults += _duplicates(reports)
    place = {case.id: number for number, case in enumerate(cases)}
    faults.sort(key=lambda fault: (place.get(fault.case, -1), fault.check, fault.file))
    return Verification(len({*place, *(fault.case for fault in faults)}), tuple(faults))


def verify_case(case: Case) -> CaseReport:
    """Checks one case by itself."""
    image_name = str(case.image or next(iter(case.labels.values())))
    faults: list[Fault] = []

    def fault(check: str, severity: Severity, verdict: str, file: str = image_name) -> None:
        faults.append(Fault(case.id, file, check, severity, verdict))

    def finished(digest: str | None = None, volumes_ml: dict[str, float] | None = None) -> CaseReport:
        return CaseReport(case.id, image_name, tuple(faults), digest, volumes_ml)

    label_name = str(case.labels[""]) if "" in case.labels else str(next(iter(case.labels.values())).parent)
    try:
        image = _image(case, fault) if case.image is not None else None
    except VisceraError as error:
        fault("unreadable", "error", str(error))
        return finished()
    digest = _digest(image) if image is not None else None
    try:
        drawing, affine = read_drawing_in_space(case, image)
    except ImageError as error:
        check = "grid" if "shape" in str(error) or "away from its image" in str(error) else "unreadable"
        fault(check, "error", str(error), label_name)
        return finished(digest)
    unknown = sorted(drawing.values() - set(case.group.value_of) - {""})
    if unknown:
        fault(
            "value",
            "error",
            f"the values {', '.join(unknown)} are not in the table of {case.dataset.key}",
            label_name,
        )
        return finished(digest)
    if not drawing.values() - {""}:
        fault("empty", "error", "nothing is drawn", label_name)
        return finished(digest)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(x), float(y), float(z))
    for verdict in _lesions_outside(case, drawing, spacing):
        fault("outside", "error", verdict, label_name)
    hu = None if image is None else to_ras(image)[0]
    masks, coarse_mm = _class_masks(case, drawing, hu, spacing)
    voxel_ml = float(np.prod(coarse_mm)) / 1000
    volumes = {key: float(mask.sum()) * voxel_ml for key, mask in masks.items()}
    for verdict in _implausible(masks, volumes):
        fault("volume", "warning", verdict, label_name)
    for verdict in _exchanged(masks):
        fault("side", "error", verdict, label_name)
    return finished(digest, volumes)


# --- one case --------------------------------------------------------------------------------------------------------


def _image(case: Case, fault: Callable[..., None]) -> Volume:
    """The image, read again with force if its numbers are refused, so that the other checks still run."""
    assert case.image is not None
    try:
        volume = read_volume(case.image)
    except ImageError as error:
        volume = read_volume(case.image, force=True)
        fault("hu", "error", str(error))
    else:
        if not bool((volume.array[::4, ::4, ::2] > BODY_HU).any()):
            fault("hu", "error", "there is no body in it: every voxel is air")
    for note in volume.provenance.notes:
        fault("read", "note", note)
    return volume


def _digest(image: Volume) -> str:
    array = np.ascontiguousarray(np.rint(to_ras(image)[0]).astype(np.int32))
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def _lesions_outside(case: Case, drawing: Drawing, spacing_mm: SpacingMm) -> Iterator[str]:
    """Lesions of which a part touches none of the organs they lie in, though the set draws those organs."""
    known = taxonomy()
    sources = case.group.sources
    for lesion in (key for key in case.annotated if known[key].is_lesion):
        hosts = set(host_organs(lesion)) & set(case.annotated)
        mask = _drawn_by(drawing, {s.value for s in sources if lesion in s.classes})
        if not hosts or not mask.any():
            continue
        organ_values = {s.value for s in sources if hosts & set(s.classes) and not s.is_lesion}
        box = Box.around(mask).grown(1, within=triple(mask.shape))
        organ = ndimage.binary_dilation(_drawn_by(drawing, organ_values)[box.slices], np.ones((3, 3, 3), bool))
        labels, count = labelled(mask[box.slices])
        inside = set(np.unique(labels[organ])) - {0}
        voxels = np.bincount(labels.ravel())
        least = _LEAST_COMPONENT_ML * 1000 / float(np.prod(spacing_mm))
        lost = [part for part in range(1, count + 1) if part not in inside and voxels[part] >= least]
        if lost:
            size_ml = float(sum(voxels[part] for part in lost)) * float(np.prod(spacing_mm)) / 1000
            name = known[lesion].name
            names = " or ".join(known[key].name for key in sorted(hosts))
            yield f"{len(lost)} of {count} parts of the {name} ({size_ml:.2g} ml) do not touch the {names}"


def _drawn_by(drawing: Drawing, values: set[str]) -> BoolArray:
    holds = np.array([any(d.value in values for d in meaning) for meaning in drawing.meanings], bool)
    return looked_up(holds, drawing.codes)


def _class_masks(
    case: Case, drawing: Drawing, hu: npt.NDArray[Any] | None, spacing_mm: SpacingMm
) -> tuple[dict[str, BoolArray], SpacingMm]:
    """A mask of every annotated class on every n-th voxel [X, Y, Z], RAS axes, and the distance of those voxels."""
    step = triple(max(1, round(_COARSE_MM / s)) for s in spacing_mm)
    i, j, k = step
    coarse_mm = (spacing_mm[0] * step[0], spacing_mm[1] * step[1], spacing_mm[2] * step[2])
    sources = case.group.sources
    coarse = Drawing(drawing.codes[::i, ::j, ::k], drawing.meanings)
    if hu is None:  # the mid-plane of what is drawn
        middle = midplane(np.where(coarse.codes != 0, 0, -1000), coarse_mm)
    else:
        middle = midplane(hu[::i, ::j, ::k], coarse_mm, without=organs_drawn(coarse, sources))
    coarse = with_sides(coarse, sources, coarse_mm, middle)
    table = label_table(coarse.meanings, sources, case.annotated, (), case.annotated)
    return {key: row.numpy()[coarse.codes] for key, row in zip(case.annotated, table.rows, strict=True)}, coarse_mm


def _implausible(masks: dict[str, BoolArray], volumes_ml: dict[str, float]) -> Iterator[str]:
    """Volumes outside what an adult has; an organ that the scan's end cuts is judged by its upper limit only."""
    known = taxonomy()
    for key, mask in masks.items():
        limits = anatomy().tissues[key].volume_ml
        volume = volumes_ml[key]
        if limits is None or volume == 0:
            continue
        least, most = limits
        if volume > most:
            yield f"the {known[key].name} measures {volume:.3g} ml; adults have at most {most:g} ml"
        elif volume < least and not _touches_border(mask):
            yield f"the {known[key].name} measures {volume:.3g} ml; adults have at least {least:g} ml"


def _touches_border(mask: BoolArray) -> bool:
    return any(bool(mask.take(end, axis).any()) for axis in range(3) for end in (0, -1))


def _exchanged(masks: dict[str, BoolArray]) -> Iterator[str]:
    """Right organs that lie left of their partner; the whole body if liver and spleen lie the wrong way round, too."""
    known = taxonomy()
    at = {key: _centre_x(mask) for key, mask in masks.items() if mask.any()}
    swapped = [
        key
        for key in at
        if known[key].side == "right" and known[key].pair in at and at[key] < at[known[key].pair or ""]
    ]
    other = next((key for key in ("spleen", "stomach") if key in at), None)
    mirrored = "liver" in at and other is not None and at["liver"] < at[other]
    if mirrored:
        yield (
            f"the liver lies on the patient's left and the {other} on the right: the affine mirrors the body "
            "(or, in one of ten thousand, the patient has situs inversus)"
        )
    for key in swapped:
        name = known[key].name.removeprefix("right ")
        cause = "as the whole body is" if mirrored else "the labels are exchanged"
        yield f"the right {name} lies to the left of the left {name}: {cause}"


def _centre_x(mask: BoolArray) -> float:
    profile = mask.sum((1, 2))
    return float((profile * np.arange(len(profile))).sum() / profile.sum())


# --- all cases -------------------------------------------------------------------------------------------------------


def _misplaced(found: Found) -> Iterator[Fault]:
    for item in found.misplaced:
        yield Fault(f"{found.dataset.key}/{item.case}", str(item.file), "pair", "error", item.verdict)


def _duplicates(reports: Sequence[CaseReport]) -> Iterator[Fault]:
    """Copies of one scan: an error within a set, a warning across sets (public sets do contain each other)."""
    same: dict[str, list[CaseReport]] = defaultdict(list)
    for report in reports:
        if report.digest is not None:
            same[report.digest].append(report)
    for copies in same.values():
        first = min(copies, key=lambda report: report.case)
        for copy in copies:
            if copy is not first:
                within = copy.case.split("/")[0] == first.case.split("/")[0]
                verdict = f"the same scan as {first.case} ({first.image})"
                yield Fault(copy.case, copy.image, "duplicate", "error" if within else "warning", verdict)


def _reports(cases: Sequence[Case], workers: int) -> Iterator[CaseReport]:
    if workers <= 1:
        yield from map(verify_case, cases)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(verify_case, case): case for case in cases}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except BrokenProcessPool:
                case = waiting[future]
                verdict = "the process that read it was killed (out of memory?); try fewer --workers"
                image = str(case.image)
                yield CaseReport(case.id, image, (Fault(case.id, image, "unreadable", "error", verdict),))
