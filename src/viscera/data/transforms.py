"""Augmentation recipes: what is drawn for a patch, kept apart from its application.

    settings (a recipe) --draw(rng)--> Augmentation (numbers) --apply--> patch

`NONE` crops, `PAPER` is the recipe of arXiv 2301.00785, `STRONG` is made for few scans: bodies of other size and
pose, contrast phases, dose, kernels, slice thickness, scans that end mid-organ. Nothing mirrors the body's midline
unless `mirror` is set, and then left and right organs change places with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch

from viscera.data.anatomy import Phase, anatomy
from viscera.data.assemble import LabelTable
from viscera.data.cache import CachedCase
from viscera.data.intensity import (
    blur_matrix,
    cut,
    filtered,
    noise,
    remapped,
    sharpened,
    thick_matrix,
    windowed,
    with_brighter_rim,
    with_structure_means,
)
from viscera.data.lesions import Lesion, LesionSettings, draw_lesion, grow_lesion
from viscera.data.sampling import Draw
from viscera.data.spatial import LARGEST_BEND, SpatialPlan, apply_spatial, control_shape, inside, rotation
from viscera.errors import SettingError
from viscera.shapes import Triple
from viscera.taxonomy import taxonomy

Span = tuple[float, float]

# Where tissue lies on the HU axis and how far each point may be moved by a remap: air, lung, lung to fat, fat,
# water to soft tissue, bone, metal.
_REMAP_HU = ((-1024, 0), (-850, 50), (-450, 60), (-100, 15), (40, 15), (300, 50), (3071, 200))


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """A recipe. Probabilities are per patch; spans are drawn from uniformly. 0 and None switch a change off.

    spatial           probability of turning, scaling and bending at all
    turn_degrees      largest turn about x, y, z
    scale             size of the body; > 1 shows it larger
    stretch           further factor on each axis alone
    bend, bend_mm     probability of an elastic deformation; its control points lie this many mm apart
    quarter_turn      probability of 1-3 quarter turns in the axial plane
    zoom, zoom_span, zoom_sets   probability of an extra magnification for the named data sets
    mirror            probability of exchanging left and right, image and classes together
    contrast          probability of giving the drawn structures the means of a contrast phase
    contrast_strength how far towards it
    own_phases        then, probability that each tissue is in a phase of its own (a slow heart, an early scan)
    rim               and that organs are brighter at their rim, where contrast medium arrives there first
    repaint           probability of means drawn far wider than any phase (label-driven synthesis on real texture)
    remap             probability of moving the whole HU axis a little (calibration, voltage, tissue)
    shift_window      probability and largest share of the window by which all HU are shifted
    noise, noise_hu, grain_mm    probability, standard deviation, correlation length in plane
    blur, blur_mm     soft kernels
    sharpen           sharp kernels (probability); up to 1.5 times the edge
    thick, thick_mm   thick slices along z
    coarse, coarse_mm low resolution in plane
    end               probability that the scan ends inside the patch, mostly at its top or bottom
    slab, slab_mm     else, probability that it ends at both, and how thick it is then
    lesions           synthetic lesions, see `lesions.LesionSettings`; None: none
    """

    spatial: float = 0.0
    turn_degrees: tuple[float, float, float] = (8.0, 8.0, 12.0)
    scale: Span = (0.8, 1.25)
    stretch: Span = (0.9, 1.1)
    bend: float = 0.0
    bend_mm: Span = (40.0, 80.0)
    quarter_turn: float = 0.0
    zoom: float = 0.0
    zoom_span: Span = (1.3, 1.5)
    zoom_sets: tuple[str, ...] = ()
    mirror: float = 0.0
    contrast: float = 0.0
    contrast_strength: Span = (0.3, 1.0)
    own_phases: float = 0.0
    rim: float = 0.0
    repaint: float = 0.0
    remap: float = 0.0
    shift_window: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    noise_hu: Span = (3.0, 40.0)
    grain_mm: Span = (0.0, 2.5)
    blur: float = 0.0
    blur_mm: Span = (0.5, 1.5)
    sharpen: float = 0.0
    thick: float = 0.0
    thick_mm: Span = (2.0, 8.0)
    coarse: float = 0.0
    coarse_mm: Span = (1.5, 4.0)
    end: float = 0.0
    slab: float = 0.0
    slab_mm: Span = (30.0, 120.0)
    lesions: LesionSettings | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value <= 1:
                raise SettingError(f"The augmentation's {name} is {value}; it is a probability, from 0 to 1.")
            if name in _SPANS and (value[0] > value[1] or value[0] < 0):
                raise SettingError(
                    f"The augmentation's {name} is {value}; give the smaller number first, none below 0."
                )


_SPANS = {"scale", "stretch", "bend_mm", "zoom_span", "contrast_strength", "noise_hu", "grain_mm", "blur_mm"}
_SPANS |= {"thick_mm", "coarse_mm", "slab_mm"}

NONE = AugmentSettings()
PAPER = AugmentSettings(
    quarter_turn=0.1,
    shift_window=(0.2, 0.1),
    zoom=0.3,
    zoom_sets=("msd_liver", "msd_lung", "msd_pancreas", "msd_hepatic_vessel", "msd_spleen", "msd_colon"),
)
STRONG = AugmentSettings(
    spatial=0.8,
    bend=0.5,
    contrast=0.5,
    repaint=0.1,
    remap=0.3,
    shift_window=(0.2, 0.05),
    noise=0.5,
    blur=0.2,
    sharpen=0.1,
    thick=0.25,
    coarse=0.1,
    end=0.1,
)
RECIPES: Mapping[str, AugmentSettings] = MappingProxyType({"none": NONE, "paper": PAPER, "strong": STRONG})


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Everything drawn for one patch; applied twice it gives the same patch.

    means_hu   code -> mean HU the structure shall have
    rims       code -> how thick its rim is, mm, and by how many HU it is brighter than the rest
    filters    one matrix [n, n] per axis or None, applied after the contrast
    ends       (axis, voxel, keep the low side)
    """

    spatial: SpatialPlan = field(default_factory=SpatialPlan)
    lesions: tuple[Lesion, ...] = ()
    means_hu: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    contrast_strength: float = 1.0
    texture: float = 1.0
    rims: Mapping[int, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))
    remap_hu: tuple[tuple[float, float], ...] = ()
    shift_hu: float = 0.0
    filters: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None)
    sharpen: float = 0.0
    noise_hu: float = 0.0
    grain_voxels: float = 0.0
    noise_seed: int = 0
    ends: tuple[tuple[int, int, bool], ...] = ()


def draw_augmentation(
    settings: AugmentSettings, case: CachedCase, draw: Draw, patch_voxels: Triple, window_hu: Span
) -> Augmentation:
    """What shall happen to a drawn patch; depends on `draw.seed` alone."""
    rng = np.random.Generator(np.random.Philox(draw.seed))

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    spacing = np.array(case.spacing_mm)
    means: dict[int, float] = {}
    rims: dict[int, tuple[float, float]] = {}
    strength = texture = 1.0
    spatial = _draw_spatial(settings, case, patch_voxels, rng)
    if happens(settings.contrast):
        means = _phase_means(case, rng, own_phases=happens(settings.own_phases))
        strength = float(rng.uniform(*settings.contrast_strength))
        if happens(settings.rim):
            rims = _rims(case, rng)
    elif happens(settings.repaint):
        means = _wide_means(case, rng)
        texture = float(rng.uniform(0.5, 1.5))
    remap: tuple[tuple[float, float], ...] = ()
    if happens(settings.remap):
        remap = tuple((float(at), float(at + rng.uniform(-reach, reach))) for at, reach in _REMAP_HU)
    shift = 0.0
    if happens(settings.shift_window[0]):
        shift = float(rng.uniform(-1, 1)) * settings.shift_window[1] * (window_hu[1] - window_hu[0])
    filters: list[torch.Tensor | None] = [None, None, None]
    if happens(settings.blur):
        sigma_mm = rng.uniform(*settings.blur_mm)
        filters[:2] = [blur_matrix(patch_voxels[axis], float(sigma_mm / spacing[axis])) for axis in (0, 1)]
    if happens(settings.coarse):
        coarse_mm = rng.uniform(*settings.coarse_mm)
        for axis in (0, 1):
            filters[axis] = _chained(filters[axis], _thick(patch_voxels[axis], coarse_mm / spacing[axis]))
    if happens(settings.thick):
        filters[2] = _thick(patch_voxels[2], rng.uniform(*settings.thick_mm) / spacing[2])
    noise_hu = float(rng.uniform(*settings.noise_hu)) if happens(settings.noise) else 0.0
    grain = float(rng.uniform(*settings.grain_mm)) / case.spacing_mm[0]
    ends: tuple[tuple[int, int, bool], ...] = ()
    if happens(settings.end):
        axis = int(rng.choice(3, p=(0.1, 0.1, 0.8)))
        keep_low = happens(0.5)
        share = rng.uniform(0.4, 0.95)
        position = round(patch_voxels[axis] * (share if keep_low else 1 - share))
        ends = ((axis, position, keep_low),)
    elif happens(settings.slab):
        thick = max(1, round(rng.uniform(*settings.slab_mm) / spacing[2]))
        first = int(rng.integers(0, max(1, patch_voxels[2] - thick + 1)))
        ends = ((2, first, False), (2, first + thick, True))
    return Augmentation(
        spatial=spatial,
        lesions=draw_lesion(settings.lesions, case, rng) if settings.lesions else (),
        means_hu=MappingProxyType(means),
        contrast_strength=strength,
        texture=texture,
        rims=MappingProxyType(rims),
        remap_hu=remap,
        shift_hu=shift,
        filters=(filters[0], filters[1], filters[2]),
        sharpen=float(rng.uniform(0.2, 1.5)) if happens(settings.sharpen) else 0.0,
        noise_hu=noise_hu,
        grain_voxels=grain if grain > 0.3 else 0.0,
        noise_seed=int(rng.integers(2**62)),
        ends=ends,
    )


def apply_augmentation(
    augmentation: Augmentation,
    case: CachedCase,
    table: LabelTable,
    classes: Sequence[str],
    draw: Draw,
    patch_voxels: Triple,
    window_hu: Span,
) -> tuple[torch.Tensor, torch.Tensor, LabelTable]:
    """The patch: image float32 [X, Y, Z] in [0, 1], codes int32 [X, Y, Z], and the table its codes are read with.

    The table is the scan's own unless a lesion was grown (which adds codes) or left and right were exchanged.
    """
    plan = augmentation.spatial
    start, stop = plan.source_box(draw.centre, patch_voxels)
    box = inside(start, stop, case.shape)
    hu, codes = apply_spatial(case.image(box), case.codes(box), box.start, plan, draw.centre, patch_voxels)
    if plan.mirrored:
        table = mirrored(table, classes)
    if augmentation.remap_hu:
        hu = remapped(hu, augmentation.remap_hu)
    if augmentation.means_hu:
        hu = with_structure_means(
            hu,
            codes,
            augmentation.means_hu,
            strength=augmentation.contrast_strength,
            texture=augmentation.texture,
        )
    for code, (rim_mm, brighter_hu) in augmentation.rims.items():
        hu = with_brighter_rim(hu, codes, code, rim_mm, brighter_hu, case.spacing_mm)
    for lesion in augmentation.lesions:
        hu, codes, table = grow_lesion(lesion, hu, codes, table, case.spacing_mm, classes)
    hu = filtered(hu, augmentation.filters)
    if augmentation.sharpen:
        hu = sharpened(hu, augmentation.sharpen)
    if augmentation.noise_hu:
        generator = torch.Generator().manual_seed(augmentation.noise_seed)
        hu = hu.add_(noise(hu.shape, augmentation.noise_hu, augmentation.grain_voxels, generator))
    hu = hu + augmentation.shift_hu
    for axis, position, keep_low in augmentation.ends:
        cut(hu, codes, axis, position, keep_low)
    return windowed(hu, window_hu), codes, table


def mirrored(table: LabelTable, classes: Sequence[str]) -> LabelTable:
    """The table of a scan whose left and right were exchanged: every paired class takes its partner's place.

    A class whose partner the model does not have teaches nothing any more, nor does a union of it.
    """
    known = taxonomy()
    partner = [known[key].pair or key for key in classes]
    place = torch.tensor([classes.index(key) if key in classes else -1 for key in partner])
    lost = place < 0
    place = torch.where(lost, torch.arange(len(classes)), place)
    number = len(classes)
    broken = (table.union_members[:, place] & lost).any(1, keepdim=True)
    return LabelTable(
        torch.cat([table.rows[:number][place], table.rows[number:]]),
        table.annotated[place] & ~lost,
        table.union_members[:, place] & ~broken,
    )


def _draw_spatial(
    settings: AugmentSettings, case: CachedCase, patch_voxels: Triple, rng: np.random.Generator
) -> SpatialPlan:
    matrix = np.eye(3)
    control: torch.Tensor | None = None
    step = 32.0
    if rng.random() < settings.quarter_turn:
        matrix = np.rint(rotation((0, 0, 90.0 * rng.integers(1, 4))))
    if rng.random() < settings.spatial:
        turn = rotation(tuple(rng.uniform(-1, 1, 3) * settings.turn_degrees))
        size = rng.uniform(*settings.scale) * rng.uniform(*settings.stretch, 3)
        matrix = matrix @ turn @ np.diag(1 / size)
        if rng.random() < settings.bend:
            apart_mm = rng.uniform(*settings.bend_mm)
            step = float(apart_mm / min(case.spacing_mm))
            largest = LARGEST_BEND * apart_mm / np.array(case.spacing_mm) * rng.uniform(0.2, 1.0)
            shape = control_shape(patch_voxels, step)
            moved = rng.uniform(-1, 1, (3, *shape)) * largest[:, None, None, None]
            control = torch.from_numpy(moved.astype(np.float32))
    if case.dataset in settings.zoom_sets and rng.random() < settings.zoom:
        matrix = matrix / rng.uniform(*settings.zoom_span)
    flipped = bool(rng.random() < settings.mirror)
    if flipped:
        matrix = np.diag([-1.0, 1.0, 1.0]) @ matrix
    return SpatialPlan(matrix, control, step, flipped)


def _phase_means(case: CachedCase, rng: np.random.Generator, *, own_phases: bool) -> dict[int, float]:
    """Means of a contrast phase (or between two) for every code whose tissue is known; left and right are in one.

    own_phases  each tissue is in another one
    """
    known = anatomy()

    def drawn_phase() -> tuple[Phase, Phase, float]:
        first, second = rng.choice(len(known.phases), 2)
        return known.phases[first], known.phases[second], float(rng.random())

    shared = drawn_phase()
    of_kind: dict[str, tuple[Phase, Phase, float]] = {}
    drawn: dict[str, float] = {}
    out: dict[int, float] = {}
    for code, tissue in _tissues(case).items():
        if tissue not in drawn:
            kind = known.tissues[tissue].kind
            first, second, part = of_kind.setdefault(kind, drawn_phase()) if own_phases else shared
            hu = known.tissues[tissue].hu
            (mean_1, spread_1), (mean_2, spread_2) = hu[first], hu[second]
            mean = mean_1 + part * (mean_2 - mean_1)
            drawn[tissue] = float(mean + rng.normal() * (spread_1 + part * (spread_2 - spread_1)))
        out[code] = drawn[tissue]
    return out


def _rims(case: CachedCase, rng: np.random.Generator) -> dict[int, tuple[float, float]]:
    """One thickness and one brightness for every code whose tissue has a rim."""
    thick, bright = (float(part) for part in rng.random(2))
    out: dict[int, tuple[float, float]] = {}
    for code, key in _tissues(case).items():
        if (rim := anatomy().tissues[key].rim) is not None:
            (thin_mm, thick_mm), (dull_hu, bright_hu) = rim
            out[code] = (thin_mm + thick * (thick_mm - thin_mm), dull_hu + bright * (bright_hu - dull_hu))
    return out


def _wide_means(case: CachedCase, rng: np.random.Generator) -> dict[int, float]:
    """Means drawn far wider than nature does: anywhere between the extremes of a structure's phases and beyond."""
    known = anatomy()
    out: dict[int, float] = {}
    for code, tissue in _tissues(case).items():
        means = [mean for mean, _ in known.tissues[tissue].hu.values()]
        reach = 40 + 0.25 * (max(means) - min(means))
        out[code] = float(rng.uniform(min(means) - reach, max(means) + reach))
    return out


def _tissues(case: CachedCase) -> dict[int, str]:
    """Code -> tissue of what lies on top there: a lesion before an organ."""
    sources = {source.value: source for source in case.sources}
    out: dict[int, str] = {}
    for code, meaning in enumerate(case.meanings):
        drawn = [sources[d.value] for d in meaning]
        drawn.sort(key=lambda source: not source.is_lesion)
        tissue = next((t for t in map(anatomy().of_source, drawn) if t is not None), None)
        if tissue is not None:
            out[code] = tissue.key
    return out


def _thick(voxels: int, factor: float) -> torch.Tensor | None:
    return thick_matrix(voxels, float(factor)) if factor > 1 else None


def _chained(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return second @ first
