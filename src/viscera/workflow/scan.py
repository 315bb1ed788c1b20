"""One scan from file to files: read, prepare, predict, rules, back to the scan's grid, findings, outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from viscera import __version__
from viscera.errors import ClassNameError, SettingError
from viscera.heap import give_back
from viscera.infer.collect import probability_of
from viscera.infer.memory import Tiling, bytes_of
from viscera.infer.predict import InferenceSettings, predict, tiling
from viscera.infer.prepare import Prepared, prepare
from viscera.infer.runtime import Runtime
from viscera.io.aside import let_go, set_aside
from viscera.io.grid import imaged_box, mask_on_scan, values_on_scan
from viscera.io.orientation import Reorientation, to_ras
from viscera.io.read import read_volume
from viscera.io.validate import validated
from viscera.io.volume import Volume
from viscera.io.write import write_label_map, write_probabilities
from viscera.masks import BoolArray, MaskSet
from viscera.metrics.detection import FROC_THRESHOLDS
from viscera.model.checkpoint import model_sha256
from viscera.model.precision import Precision
from viscera.model.store import default_model, load_model
from viscera.model.universal import UniversalModel
from viscera.names import resolve
from viscera.post.pipeline import RuleNote, apply_rules, needed_classes
from viscera.report.as_json import write_json
from viscera.report.figures import preview
from viscera.report.findings import Crop, Finding, measure, write_findings
from viscera.report.flags import Flag, scan_flags
from viscera.report.manifest import run_record
from viscera.report.tables import write_label_tables
from viscera.shapes import Box, SpacingMm
from viscera.taxonomy import Structure, taxonomy
from viscera.text.match import nearest
from viscera.workflow.outputs import RECORD, file_sizes, staged
from viscera.workflow.region import Region, find_region, predict_within

PROBABILITIES = "probabilities"
UNTRAINED = (
    "These weights are UNTRAINED: this run shows how the program works; what it finds and misses means nothing. "
    "Import trained weights with `viscera weights import` or `viscera weights pull`, and name them with --model."
)

Stage = Callable[[str, int, int], None]  # (stage, steps done, steps in all); 0 steps in all: not known


@dataclass
class Stopwatch:
    """Seconds per stage by its clock, and the stage now running told to whoever listens."""

    listener: Stage | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.step(name, 0, 0)
        start = self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start

    def step(self, name: str, done: int, total: int) -> None:
        if self.listener is not None:
            self.listener(name, done, total)


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """What to do with a scan, apart from the model.

    series     which series of a DICOM folder that holds several (UID, number or description)
    force      take images that do not look like CT
    classes    names as `viscera.names.resolve` takes them; None: every class of the model
    post       apply the rules of `post.toml`
    crop       leave out the air around the body
    probabilities  keep the probability maps of the tumours and cysts asked for as well
    coarse     a small model that finds where the asked organs are, so that the model looks only there; None: it
               looks everywhere
    inference  precision, overlap, device
    """

    series: str | None = None
    force: bool = False
    classes: str | Sequence[str | int] | None = None
    post: bool = True
    crop: bool = True
    probabilities: bool = False
    coarse: UniversalModel | None = None
    inference: InferenceSettings = field(default_factory=InferenceSettings)


@dataclass(frozen=True, eq=False)
class ScanMasks:
    """The masks of one scan, kept small on the network's grid and handed out on the scan's own."""

    masks: MaskSet
    prepared: Prepared
    reorientation: Reorientation

    def ras(self, key: str) -> Crop:
        """Class `key` on the scan's grid in RAS axes, in the box around it."""
        p = self.prepared
        box, mask = mask_on_scan(self.masks[key], p.grid_shape, p.grid_spacing_mm, p.scan_shape, p.scan_spacing_mm)
        tight = Box.around(mask)
        return Crop(tight.shifted(box.start), mask[tight.slices])

    def whole(self, key: str) -> BoolArray:
        """Class `key` on the whole scan in the scan's own axis order: bool [x, y, z]."""
        out = np.zeros(self.prepared.scan_shape, bool, order="F")
        crop = self.ras(key)
        out[crop.box.slices] = crop.mask
        return self.reorientation.undo(out)


@dataclass(frozen=True, eq=False)
class ProbabilityMaps:
    """The network's probabilities of tumours and cysts, before any rule, down to the lowest threshold of a FROC curve.

    thresholds  class -> the probability from which a voxel counts as in
    """

    scan_masks: ScanMasks
    thresholds: Mapping[str, float]

    def whole(self, key: str) -> npt.NDArray[np.uint8]:
        """256 times the probability of class `key`, rounded down, on the scan in its own axis order; 0 where lower."""
        s, p = self.scan_masks, self.scan_masks.prepared
        box, slabs = values_on_scan(s.masks[key], p.grid_shape, p.grid_spacing_mm, p.scan_shape, p.scan_spacing_mm)
        out = np.zeros(p.scan_shape, np.uint8, order="F")
        inside = out[box.slices]
        for z, value in slabs:
            probability = probability_of(value, self.thresholds[key])
            inside[:, :, z : z + value.shape[2]] = np.minimum(256 * probability, 255)
        return s.reorientation.undo(out)


def spacing_in_ras(volume: Volume, reorientation: Reorientation) -> SpacingMm:
    """The scan's spacing in RAS axis order."""
    x, y, z = (volume.spacing_mm[axis] for axis in reorientation.axes)
    return (x, y, z)


def chosen_classes(model: UniversalModel, names: str | Sequence[str | int] | None) -> tuple[Structure, ...]:
    """The classes to compute: those named, or all of the model's.

    Raises ClassNameError for a name nobody knows, and for a class that this model does not have.
    """
    own = model.config.classes
    if names is None:
        return tuple(taxonomy()[key] for key in own)
    structures = resolve(names, suggest=nearest)
    missing = [s.name for s in structures if s.key not in own]
    if missing:
        raise ClassNameError(
            f"The model {model.config.name!r} does not have: {', '.join(missing)}. "
            f"It has: {', '.join(taxonomy()[key].name for key in own)}."
        )
    return structures


def painting_order(structures: Iterable[Structure]) -> list[Structure]:
    """Organs first, then what lies inside organs, then tumours and cysts: later ones are painted over earlier ones."""
    return sorted(structures, key=lambda s: (s.is_lesion, bool(s.inside), s.id))


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """What to write of a result.

    masks      one file per class as well (classes overlap; the label map shows only the topmost)
    picture    preview.png
    overwrite  replace an earlier result
    """

    masks: bool = False
    picture: bool = True
    overwrite: bool = False

    def replacing(self, overwrite: bool) -> SaveSettings:
        """The same with another `overwrite`."""
        return replace(self, overwrite=overwrite)


def request(scan: Path | None, model: UniversalModel, settings: SegmentSettings) -> dict[str, Any]:
    """What was asked for, as plain values: equal requests give equal results (scan by path, size and time)."""
    return {
        "viscera": __version__,
        "scan": None if scan is None else file_state(scan),
        "model": model.config.name,
        "model_sha256": model_sha256(model),
        "classes": [s.key for s in chosen_classes(model, settings.classes)],
        "series": settings.series,
        "force": settings.force,
        "post": settings.post,
        "crop": settings.crop,
        "probabilities": settings.probabilities,
        "coarse_sha256": None if settings.coarse is None else model_sha256(settings.coarse),
        **asdict(settings.inference),
    }


def file_state(path: Path) -> dict[str, Any]:
    """A path with the number, bytes and newest change of its files: cheap to ask, and different when the scan is."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    states = [file.stat() for file in files]
    return {
        "path": str(path.absolute()),
        "files": len(files),
        "bytes": sum(state.st_size for state in states),
        "modified": max((state.st_mtime for state in states), default=0.0),
    }


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one scan.

    volume     the scan as read
    classes    the classes asked for, in id order
    label_map  uint8 [x, y, z] on the scan's own grid: the class id, 0 elsewhere; tumours painted over organs
    findings   volume, density and every tumour, one entry per class, with what asks for a second look at it
    flags      what asks for a second look at the whole scan
    record     how this result came about: what run.json holds
    warnings   what a reader must know, in sentences
    probabilities  of the tumours and cysts, if they were asked for
    """

    volume: Volume
    classes: tuple[Structure, ...]
    label_map: npt.NDArray[np.uint8]
    findings: tuple[Finding, ...]
    flags: tuple[Flag, ...]
    record: dict[str, Any]
    warnings: tuple[str, ...]
    scan_masks: ScanMasks = field(repr=False)
    probabilities: ProbabilityMaps | None = field(default=None, repr=False)

    def mask(self, name: str | int) -> BoolArray:
        """One class on the scan's own grid, whole even where another class is painted over it: bool [x, y, z].

        Raises ClassNameError if `name` is not exactly one of the classes of this result.
        """
        structures = resolve([name])
        if len(structures) != 1 or structures[0] not in self.classes:
            raise ClassNameError(
                f"{name!r} is not one class of this result; it has {', '.join(s.key for s in self.classes)}."
            )
        return self.scan_masks.whole(structures[0].key)

    def save(self, folder: str | Path, settings: SaveSettings | None = None, *, watch: Stopwatch | None = None) -> Path:
        """Writes the result into `folder`, whole or not at all, and returns the folder.

        segmentation.nii.gz, findings.json, findings.csv, label tables for 3D Slicer and ITK-SNAP, preview.png,
        masks/<class>.nii.gz and probabilities/<class>.nii.gz if asked for, and run.json. Raises OutputError
        if it cannot be written, or if there is an earlier result and `overwrite` is False.
        """
        folder, settings, watch = Path(folder), settings or SaveSettings(), watch or Stopwatch()
        with staged(folder, overwrite=settings.overwrite) as work, ThreadPoolExecutor(1, "draw") as drawing:
            drawn = drawing.submit(self._draw, work / "preview.png") if settings.picture else None
            with watch.stage("Writing"):
                write_label_map(self.label_map, self.volume, work / "segmentation.nii.gz")
                if settings.masks:
                    (work / "masks").mkdir()
                    for done, s in enumerate(self.classes, start=1):
                        whole = self.scan_masks.whole(s.key).view(np.uint8)
                        write_label_map(whole, self.volume, work / "masks" / f"{s.key}.nii.gz")
                        watch.step("Writing", done, len(self.classes))
                if self.probabilities is not None:
                    (work / PROBABILITIES).mkdir()
                    for key in self.probabilities.thresholds:
                        path = work / PROBABILITIES / f"{key}.nii.gz"
                        write_probabilities(self.probabilities.whole(key), self.volume, path)
                write_label_tables(self.classes, work)
                write_findings(self.findings, work, self.flags)
            if drawn is not None:
                with watch.stage("Picture"):  # the rest of it: files were written meanwhile
                    drawn.result()
            record = {**self.record, "timings_s": {**self.record["timings_s"], **watch.seconds}}
            write_json({**record, "outputs": file_sizes(work)}, work / RECORD)
        return folder

    def _draw(self, path: Path) -> None:
        found = {finding.key for finding in self.findings if finding.volume_ml > 0}
        reorientation = self.scan_masks.reorientation
        preview(
            reorientation.apply(self.volume.array),
            reorientation.apply(self.label_map),
            spacing_in_ras(self.volume, reorientation),
            [structure for structure in self.classes if structure.key in found],
            path,
            title=Path(self.volume.provenance.path).name,
            note=" ".join(self.warnings[:1]),
        )


def segment_scan(
    scan: str | Path | Volume,
    model: UniversalModel,
    settings: SegmentSettings | None = None,
    *,
    watch: Stopwatch | None = None,
) -> Result:
    """Finds the asked classes in one scan: a file, a DICOM folder or archive, or a Volume in Hounsfield units.

    Raises ImageError for a scan that cannot be used, ClassNameError for classes the model does not have.
    """
    settings, watch = settings or SegmentSettings(), watch or Stopwatch()
    return describe(
        find_masks(make_ready(scan, model, settings, watch), model, settings, watch), model, settings, watch
    )


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan that waits for the network.

    seen_coarsely  as the model that finds the region sees it, if there is one
    """

    path: Path | None
    volume: Volume
    reorientation: Reorientation
    prepared: Prepared
    started: datetime
    seen_coarsely: Prepared | None = None


@dataclass(frozen=True, eq=False)
class Masked:
    """A scan after network and rules."""

    ready: Ready
    masks: MaskSet
    faint: MaskSet  # of the lesions whose probabilities are asked for
    notes: Sequence[RuleNote]
    region: Region  # where the network looked
    tiling: Tiling  # and how it went over it


def make_ready(scan: str | Path | Volume, model: UniversalModel, settings: SegmentSettings, watch: Stopwatch) -> Ready:
    """The first part of `segment_scan`: reads the scan and brings it before the network."""
    started = datetime.now(UTC)
    structures = chosen_classes(model, settings.classes)
    if settings.probabilities and not any(s.is_lesion for s in structures):
        raise SettingError("Probability maps are those of tumours and cysts, and none is among the classes asked for.")
    with watch.stage("Reading"):
        volume = (
            validated(scan, force=settings.force)
            if isinstance(scan, Volume)
            else read_volume(scan, series=settings.series, force=settings.force)
        )
    with watch.stage("Preparing"):
        if not isinstance(scan, Volume):  # what a caller holds stays in memory all the same
            volume = set_aside(volume)
        hu, _, reorientation = to_ras(volume)
        spacing_mm = spacing_in_ras(volume, reorientation)
        prepared = _seen_by(model, hu, spacing_mm, settings)
        coarsely = _seen_by(settings.coarse, hu, spacing_mm, settings) if settings.coarse is not None else None
        let_go(hu)
        give_back()
    path = None if isinstance(scan, Volume) else Path(scan)
    return Ready(path, volume, reorientation, prepared, started, coarsely)


def _seen_by(model: UniversalModel, hu: npt.NDArray[Any], spacing_mm: SpacingMm, settings: SegmentSettings) -> Prepared:
    in_windows = model.config.inference.mode == "window"
    return prepare(hu, spacing_mm, model.config.preprocessing, crop_to_body=settings.crop, in_windows=in_windows)


def find_masks(ready: Ready, model: UniversalModel, settings: SegmentSettings, watch: Stopwatch) -> Masked:
    """The second part of `segment_scan`: the network, and the rules on its own grid."""
    structures = chosen_classes(model, settings.classes)
    asked = [s.key for s in structures]
    lesions = [s.key for s in structures if s.is_lesion] if settings.probabilities else []
    # A tumour's rule looks at its organ, so the organ is computed along with it.
    computed = [k for k in needed_classes(asked) if k in model.config.classes] if settings.post else asked

    def look(prepared: Prepared) -> MaskSet:
        with watch.stage("Network"):
            return predict(
                model,
                prepared,
                computed,
                settings.inference,
                lambda done, total: watch.step("Network", done, total),
                keep_from=dict.fromkeys(lesions, FROC_THRESHOLDS[0]),
            )

    whole, region = ready.prepared, Region(ready.prepared.box)
    if settings.coarse is not None and ready.seen_coarsely is not None:
        with watch.stage("Region"):
            inference = replace(settings.inference, overlap=None)
            region = find_region(settings.coarse, ready.seen_coarsely, whole, computed, inference)
    masks, region = predict_within(look, whole, region)
    plan = tiling(model, whole.within(region.box), settings.inference)
    faint = MaskSet(masks.shape, masks.spacing_mm, {key: masks[key] for key in lesions})
    masks = masks.changed({key: masks[key].shrunk() for key in lesions})
    notes: Sequence[RuleNote] = ()
    if settings.post:
        with watch.stage("Rules"):
            masks, notes = apply_rules(masks, ready.prepared.densities)
    done = replace(ready, prepared=whole.without_image(), seen_coarsely=None)
    give_back()
    return Masked(done, masks, faint, notes, region, plan)


def describe(masked: Masked, model: UniversalModel, settings: SegmentSettings, watch: Stopwatch) -> Result:
    """The last part of `segment_scan`: masks on the scan's own grid, findings, and the record of the run."""
    ready, structures = masked.ready, chosen_classes(model, settings.classes)
    volume, reorientation = ready.volume, ready.reorientation
    scan_masks = ScanMasks(masked.masks, ready.prepared, reorientation)
    with watch.stage("Findings"):
        label_map, findings = _paint_and_measure(volume, scan_masks, structures, model.config.thresholds, watch)
        # An untrained network that finds nothing says nothing of the scan.
        organs = [f for f in findings if f.kind == "organ" and model.config.trained]
        found = sum(f.volume_ml > 0 for f in organs)
        flags = scan_flags(
            reorientation.apply(volume.array), volume.voxel_volume_mm3, organs_asked=len(organs), organs_found=found
        )
        let_go(volume.array)
    untrained = () if model.config.trained else (UNTRAINED,)
    noted = (masked.region.note,) if masked.region.note else ()
    warnings = (*untrained, *volume.provenance.notes, *noted, *(flag.sentence for flag in flags))
    asked_for = request(ready.path, model, settings)
    record = run_record(
        volume=volume,
        orientation="".join(nib.aff2axcodes(volume.affine)),
        model={
            "name": model.config.name,
            "sha256": asked_for["model_sha256"],
            "trained": model.config.trained,
            "licence": model.config.licence,
            "source": model.config.source,
        },
        request=asked_for,
        used={
            **asdict(settings.inference.resolved()),
            "window_voxels": masked.tiling.window,  # null: one pass
            "region_voxels": masked.region.box.shape,
        },
        rules=masked.notes,
        warnings=warnings,
        timings_s=watch.seconds,
        started=ready.started,
    )
    probabilities = None
    if masked.faint:
        thresholds = {key: model.config.thresholds.get(key, 0.5) for key in masked.faint}
        probabilities = ProbabilityMaps(ScanMasks(masked.faint, ready.prepared, reorientation), thresholds)
    return Result(volume, structures, label_map, findings, flags, record, warnings, scan_masks, probabilities)


def _paint_and_measure(
    volume: Volume,
    scan_masks: ScanMasks,
    structures: Sequence[Structure],
    thresholds: Mapping[str, float],
    watch: Stopwatch,
) -> tuple[npt.NDArray[np.uint8], tuple[Finding, ...]]:
    """The label map in the scan's own order and the findings, one class in memory at a time (and a lesion's organs)."""
    reorientation = scan_masks.reorientation
    label_map = np.zeros(volume.shape, np.uint8, order="F")  # the order in which NIfTI writes it
    painted = reorientation.apply(label_map)  # a view: painting in RAS fills the scan's own order
    hu, affine = reorientation.apply(volume.array), reorientation.apply_affine(volume.affine, volume.shape)
    imaged = imaged_box(hu)
    let_go(hu)
    findings = {}
    for done, structure in enumerate(painting_order(structures), start=1):
        crop = scan_masks.ras(structure.key)
        painted[crop.box.slices][crop.mask] = structure.id
        hosts = {}
        if structure.is_lesion and crop.mask.any():
            hosts = {key: scan_masks.ras(key) for key in structure.inside if key in scan_masks.masks}
        findings[structure.key] = measure(
            structure,
            crop,
            hu,
            affine,
            mean_probability=scan_masks.masks[structure.key].mean_probability,
            threshold=thresholds.get(structure.key, 0.5),
            hosts=hosts,
            imaged=imaged,
        )
        del crop, hosts
        if isinstance(volume.array, np.memmap):  # a scan so large that what classes leave behind would count
            give_back()
        watch.step("Findings", done, len(structures))
    return label_map, tuple(findings[s.key] for s in structures)


def segment(
    scan: str | Path | Volume,
    *,
    model: str | Path | UniversalModel | None = None,
    classes: str | Sequence[str | int] | None = None,
    post: bool = True,
    precision: Precision = "auto",
    overlap: float | None = None,
    device: str = "auto",
    runtime: Runtime = "auto",
    max_memory: str | None = None,
    coarse: str | Path | UniversalModel | None = None,
    series: str | None = None,
    force: bool = False,
    progress: Stage | None = None,
) -> Result:
    """Finds organs and tumours in one CT scan: the front door for Python.

    scan      a NIfTI, NRRD or MetaImage file, a DICOM folder or zip, or a `Volume` in Hounsfield units
    model     a name (`viscera models`), a .safetensors file, or a loaded model; None: the starter model
    classes   what to find, as people write it: ``"liver, kidneys"``, ``["liver tumor", 6]``; None: everything
    post      clean the masks by the rules of post.toml
    coarse    a small model, such as "starter", that finds where the organs are; the model looks only there
    max_memory  what the process may take, such as "2GB": smaller windows are chosen where it is needed
    progress  called with (stage, steps done, steps in all)

    See `segment_scan` for the errors and `InferenceSettings` for precision, overlap, device and runtime.
    """
    network = model if isinstance(model, torch.nn.Module) else load_model(model or default_model())
    inference = InferenceSettings(
        precision=precision,
        overlap=overlap,
        device=device,
        runtime=runtime,
        max_memory_bytes=None if max_memory is None else bytes_of(max_memory),
    )
    finder = load_model(coarse) if isinstance(coarse, (str, Path)) else coarse
    settings = SegmentSettings(
        series=series, force=force, classes=classes, post=post, coarse=finder, inference=inference
    )
    return segment_scan(scan, network, settings, watch=Stopwatch(progress))
