"""Synthetic lesions, grown into healthy organs of a patch: shape, texture, edge, rim, necrosis and mass effect.

What a kind of lesion looks like stands, with its sources, in `knowledge/lesions.toml`. A lesion is grown only where
its class is taught: in a scan whose set draws it, or whose patients are free of it (`free_of` in the set's
table), unless `anywhere` is set; a scan with tumours that nobody drew would teach that they are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from viscera.data.assemble import LabelTable
from viscera.data.cache import CachedCase
from viscera.data.catalogue import host_organs
from viscera.data.intensity import blur_matrix, filtered
from viscera.errors import KnowledgeError, SettingError
from viscera.shapes import Box, SpacingMm, triple
from viscera.taxonomy import read_table, taxonomy

_REACH = 2.0  # radii around the centre that the mass effect moves
_FAT_TO_SOFT_HU = (-160.0, 180.0)  # what an exophytic lesion may replace
_LEAST_VOXELS = 8  # a lesion that kept fewer of its voxels is not grown


@dataclass(frozen=True)
class LesionKind:
    """How lesions of one class look; the fields are those of `knowledge/lesions.toml`."""

    key: str
    diameter_mm: tuple[float, float, float]
    texture_hu: tuple[float, float]
    grain_mm: float
    edge_mm: tuple[float, float]
    elongation: float
    roughness: tuple[float, float]
    mass_effect: tuple[float, float]
    contrast_hu: tuple[float, float] | None = None
    own_hu: tuple[float, float] | None = None
    spikes: float = 0.0
    rim: float = 0.0
    rim_hu: tuple[float, float] = (0.0, 0.0)
    core: float = 0.0
    core_hu: tuple[float, float] = (0.0, 0.0)
    exophytic: float = 0.0
    at_surface: bool = False


@cache
def lesion_kinds() -> dict[str, LesionKind]:
    """Every kind that can be grown, by class key. Raises KnowledgeError if the table breaks a rule."""
    out = {}
    for key, row in read_table("lesions.toml")["lesion"].items():
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
        try:
            kind = LesionKind(key, **fields)
        except TypeError as error:
            raise KnowledgeError(f"lesions.toml: {key!r}: {error}") from error
        if (
            key not in taxonomy()
            or not taxonomy()[key].is_lesion
            or (kind.contrast_hu is None) == (kind.own_hu is None)
        ):
            raise KnowledgeError(f"lesions.toml: {key!r} must be a lesion class with either contrast_hu or own_hu.")
        out[key] = kind
    return out


@dataclass(frozen=True, kw_only=True)
class LesionSettings:
    """How often lesions are grown.

    probability  that a patch gets one (if it shows an organ that may have one)
    kinds        class keys
    anywhere     also in scans whose set neither draws the class nor is free of it
    """

    probability: float = 0.2
    kinds: tuple[str, ...] = (
        "liver_tumor",
        "kidney_tumor",
        "kidney_cyst",
        "pancreas_tumor",
        "lung_tumor",
        "colon_tumor",
    )
    anywhere: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise SettingError(f"The probability of a lesion is {self.probability}; it must lie between 0 and 1.")
        for key in self.kinds:
            if key not in lesion_kinds():
                raise SettingError(f"No lesion of class {key!r} can be grown; known: {', '.join(lesion_kinds())}.")


@dataclass(frozen=True)
class Lesion:
    """A drawn lesion, not yet placed.

    radii_mm     of its three axes, turned by `turn` (3x3, row by row)
    hu           its mean: of itself if `is_own_hu`, else against the organ around it
    seed         of its place, surface and texture
    """

    kind: LesionKind
    radii_mm: tuple[float, float, float]
    turn: tuple[float, ...]
    hu: float
    is_own_hu: bool
    texture_hu: float
    edge_mm: float
    roughness: float
    spiked: bool
    rim_hu: float
    core_hu: float
    mass_effect: float
    seed: int


def draw_lesion(settings: LesionSettings, case: CachedCase, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """One lesion of a kind that may be grown in this scan, or none."""
    wanted = rng.random() < settings.probability
    kinds = [
        lesion_kinds()[key]
        for key in settings.kinds
        if (settings.anywhere or key in case.annotated) and any(host in case.annotated for host in host_organs(key))
    ]
    if not wanted or not kinds:
        return ()
    return (drawn_lesion(kinds[int(rng.integers(len(kinds)))], rng),)


def drawn_lesion(kind: LesionKind, rng: np.random.Generator) -> Lesion:
    """A lesion of this kind with its numbers drawn."""
    least, typical, most = kind.diameter_mm
    diameter = float(np.clip(typical * np.exp(rng.normal() * 0.55), least, most))
    stretch = rng.uniform(1, kind.elongation, 3)
    stretch /= np.prod(stretch) ** (1 / 3)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    x, y, z = (float(s) * diameter / 2 for s in stretch)
    span = kind.own_hu if kind.own_hu is not None else kind.contrast_hu
    assert span is not None  # the table's rule
    return Lesion(
        kind=kind,
        radii_mm=(x, y, z),
        turn=tuple(float(v) for v in turn.ravel()),
        hu=float(rng.uniform(*span)),
        is_own_hu=kind.own_hu is not None,
        texture_hu=float(rng.uniform(*kind.texture_hu)),
        edge_mm=float(rng.uniform(*kind.edge_mm)),
        roughness=float(rng.uniform(*kind.roughness)),
        spiked=bool(rng.random() < kind.spikes),
        rim_hu=float(rng.uniform(*kind.rim_hu)) if rng.random() < kind.rim else 0.0,
        core_hu=float(rng.uniform(*kind.core_hu)) if rng.random() < kind.core else 0.0,
        mass_effect=float(rng.uniform(*kind.mass_effect)),
        seed=int(rng.integers(2**62)),
    )


def grow_lesion(
    lesion: Lesion,
    hu: torch.Tensor,
    codes: torch.Tensor,
    table: LabelTable,
    spacing_mm: SpacingMm,
    classes: Sequence[str],
) -> tuple[torch.Tensor, torch.Tensor, LabelTable]:
    """The patch with the lesion in it; unchanged where it shows none of the lesion's organs.

    hu, codes  float32 and int [X, Y, Z]; both are changed
    table      gets codes for "what was here, and the lesion"; the lesion counts as its organ
    """
    rng = np.random.Generator(np.random.Philox(lesion.seed))
    hosts = [classes.index(key) for key in host_organs(lesion.kind.key) if key in classes]
    if lesion.kind.key not in classes or not hosts:
        return hu, codes, table
    others = [row for row, key in enumerate(classes) if taxonomy()[key].is_lesion]
    # Not over another lesion: a label map could not hold both.
    is_host = table.rows[hosts].any(0) & ~table.rows[others].any(0)
    organ = is_host[codes]
    centre = _place(organ, lesion, rng)
    if centre is None:
        return hu, codes, table
    reach = triple(int(np.ceil(_REACH * max(lesion.radii_mm) / s)) + 2 for s in spacing_mm)
    box = Box(centre, triple(c + 1 for c in centre)).grown(reach, within=triple(hu.shape))
    at = box.slices
    here = np.array(centre) - np.array(box.start)
    radius = _radius(box.shape, here, lesion, spacing_mm)
    if lesion.mass_effect:
        hu[at], codes[at] = _pushed(hu[at], codes[at], radius, here, lesion.mass_effect)
        organ = is_host[codes]
    surface = radius + torch.from_numpy(_roughness(box.shape, here, lesion, spacing_mm, rng))
    inside = (surface < 1) & _allowed(organ[at], codes[at], hu[at], radius, lesion)
    if int(inside.sum()) < _LEAST_VOXELS:
        return hu, codes, table
    host_mean = float(hu[at][organ[at]].mean())
    mean = lesion.hu if lesion.is_own_hu else host_mean + lesion.hu
    texture = torch.from_numpy(rng.standard_normal(box.shape).astype(np.float32))
    blurs = [blur_matrix(n, max(0.4, lesion.kind.grain_mm / 2 / s)) for n, s in zip(box.shape, spacing_mm, strict=True)]
    texture = filtered(texture, blurs)
    texture *= lesion.texture_hu / max(float(texture.std()), 1e-6)
    tissue = mean + texture + lesion.rim_hu * torch.exp(-(((surface - 0.9) / 0.12) ** 2))
    tissue -= lesion.core_hu * (1 - surface / 0.6).clamp(0, 1)
    # The mask's own edge, softened: so what was not allowed stays as it was.
    edges = [blur_matrix(n, max(0.35, lesion.edge_mm / 2 / s)) for n, s in zip(box.shape, spacing_mm, strict=True)]
    opacity = filtered(inside.float(), edges).clamp_(0, 1)
    hu[at] = torch.lerp(hu[at], tissue, opacity)
    row = classes.index(lesion.kind.key)
    host_rows = [host for host in hosts if bool(table.rows[host, codes[centre]])]
    return hu, *_with_lesion(codes, at, inside, table, row, host_rows)


def _place(organ: torch.Tensor, lesion: Lesion, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """A voxel of the organ for the lesion's centre; on its surface for kinds that start there."""
    candidates = organ
    if lesion.kind.at_surface:
        eroded = -functional.max_pool3d(-organ[None, None].float(), 3, 1, 1)[0, 0]
        candidates = organ & (eroded < 1)
    places = candidates.nonzero()
    if len(places) == 0:
        return None
    return triple(places[int(rng.integers(len(places)))].tolist())


def _radius(shape: Sequence[int], centre: npt.NDArray[np.int64], lesion: Lesion, spacing_mm: SpacingMm) -> torch.Tensor:
    """Distance from the centre in units of the ellipsoid's own radius in that direction: float32 [X, Y, Z]."""
    turn = np.array(lesion.turn).reshape(3, 3)
    out = torch.zeros(tuple(shape))
    for row, radius in zip(turn, lesion.radii_mm, strict=True):
        parts = [
            torch.from_numpy(((np.arange(n) - c) * s * w / radius).astype(np.float32))
            for n, c, s, w in zip(shape, centre, spacing_mm, row, strict=True)
        ]
        out += (parts[0][:, None, None] + parts[1][:, None] + parts[2]) ** 2
    return out.sqrt_()


def _roughness(
    shape: Sequence[int], centre: npt.NDArray[np.int64], lesion: Lesion, spacing_mm: SpacingMm, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """What is added to the radius so that the surface is uneven: smooth bumps, and spikes for spiculated lesions."""
    mean_mm = float(np.mean(lesion.radii_mm))
    coarse = tuple(max(2, int(np.ceil(n * s / (0.7 * mean_mm))) + 1) for n, s in zip(shape, spacing_mm, strict=True))
    bumps = torch.from_numpy(rng.standard_normal((1, 1, *coarse)).astype(np.float32))
    smooth = functional.interpolate(bumps, tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    out: npt.NDArray[np.float32] = smooth.numpy() * np.float32(lesion.roughness)
    if lesion.spiked:
        offsets = np.meshgrid(
            *(((np.arange(n) - c) * s).astype(np.float32) for n, c, s in zip(shape, centre, spacing_mm, strict=True)),
            indexing="ij",
        )
        direction = np.stack(offsets, -1)
        direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-3)
        spikes = rng.standard_normal((int(rng.integers(6, 14)), 3)).astype(np.float32)
        spikes /= np.linalg.norm(spikes, axis=1, keepdims=True)
        out -= 0.6 * ((direction @ spikes.T).max(-1) - 0.94).clip(0) / 0.06  # cones of 20 degrees
    return out


def _pushed(
    hu: torch.Tensor, codes: torch.Tensor, radius: torch.Tensor, centre: npt.NDArray[np.int64], strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies around the lesion moved outwards: at radius r lies what lay at r (1 - strength (1 - r/2)^2)."""
    factor = 1 - strength * (1 - radius / _REACH).clamp(0, 1) ** 2
    grid = torch.stack(
        [
            (float(centre[axis]) + _offsets(hu.shape, axis, int(centre[axis])) * factor)
            * (2 / max(hu.shape[axis] - 1, 1))
            - 1
            for axis in (2, 1, 0)
        ],
        -1,
    )[None]
    moved = functional.grid_sample(hu[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True)
    labels = functional.grid_sample(
        codes[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=True
    )
    return moved[0, 0], labels[0, 0].to(codes.dtype)


def _offsets(shape: Sequence[int], axis: int, centre: int) -> torch.Tensor:
    view = [1, 1, 1]
    view[axis] = -1
    return (torch.arange(shape[axis], dtype=torch.float32) - centre).view(view)


def _allowed(
    organ: torch.Tensor, codes: torch.Tensor, hu: torch.Tensor, radius: torch.Tensor, lesion: Lesion
) -> torch.Tensor:
    """Where the lesion may be: its organ, and for exophytic kinds undrawn fat and soft tissue nearby."""
    if not lesion.kind.exophytic:
        return organ
    low, high = _FAT_TO_SOFT_HU
    outside = (codes == 0) & (hu > low) & (hu < high) & (radius < 1 + lesion.kind.exophytic)
    return organ | outside


def _with_lesion(
    codes: torch.Tensor,
    at: tuple[slice, slice, slice],
    inside: torch.Tensor,
    table: LabelTable,
    row: int,
    hosts: list[int],
) -> tuple[torch.Tensor, LabelTable]:
    """Codes and table with the lesion: each code under it gets a twin that also holds the lesion and its organ."""
    below = codes[at][inside]
    old = torch.unique(below)
    first = table.rows.shape[1]
    lookup = torch.zeros(int(old.max()) + 1, dtype=codes.dtype)
    lookup[old.long()] = torch.arange(first, first + len(old), dtype=codes.dtype)
    part = codes[at]
    part[inside] = lookup[below.long()]
    twins = table.rows[:, old.long()].clone()
    twins[[row, *hosts]] = True
    annotated = table.annotated.clone()
    annotated[row] = True
    return codes, LabelTable(torch.cat([table.rows, twins], 1), annotated, table.union_members)
