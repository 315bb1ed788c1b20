"""CT images from label maps: every tissue gets the mean, spread and texture that `knowledge/anatomy.toml` gives it.

Used for phantoms, and for label maps whose images were never published: those get a body around them first.
The idea of learning from images synthesised from labels is SynthSeg's (Billot et al., Medical Image Analysis 2023,
doi:10.1016/j.media.2023.102789); here with the statistics of CT and its phases instead of arbitrary contrasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from viscera.data.anatomy import Tissue, anatomy
from viscera.data.catalogue import Source
from viscera.data.drawing import Drawing
from viscera.data.intensity import blur_matrix, filtered, noise
from viscera.io.volume import AIR_HU
from viscera.masks import BoolArray
from viscera.shapes import SpacingMm

TissueMap = npt.NDArray[np.uint8]

_TEXTURE_GRAIN_MM = 3.0
_POINT_SPREAD_MM = 1.2
_FAT_MM, _WALL_MM, _SPINE_MM = (8.0, 35.0), (8.0, 14.0), 20.0


def paint(
    tissues: TissueMap,
    palette: Sequence[Tissue],
    spacing_mm: SpacingMm,
    rng: np.random.Generator,
    *,
    noise_hu: float = 12.0,
) -> npt.NDArray[np.float32]:
    """A CT in which voxel v is made of ``palette[tissues[v]]``: float32 HU [X, Y, Z].

    One phase of contrast medium (or between two), one patient: each tissue's mean is drawn once. Edges are as soft
    as a scanner's, texture and noise are correlated.
    """
    known = anatomy()
    first, second = (known.phases[int(i)] for i in rng.choice(len(known.phases), 2))
    part = float(rng.random())
    means: dict[str, float] = {}
    for tissue in palette:
        (low, low_sd), (high, high_sd) = tissue.hu[first], tissue.hu[second]
        means.setdefault(
            tissue.kind, low + part * (high - low) + float(rng.normal()) * (low_sd + part * (high_sd - low_sd))
        )
    mean = np.array([means[t.kind] for t in palette], np.float32)
    texture = np.array([t.texture_hu for t in palette], np.float32)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    grain = torch.randn(tissues.shape, generator=generator)
    grain = filtered(
        grain, [blur_matrix(n, _TEXTURE_GRAIN_MM / s) for n, s in zip(grain.shape, spacing_mm, strict=True)]
    )
    grain /= grain.std()
    hu = torch.from_numpy(mean[tissues]) + torch.from_numpy(texture[tissues]) * grain
    hu = filtered(hu, [blur_matrix(n, _POINT_SPREAD_MM / s) for n, s in zip(hu.shape, spacing_mm, strict=True)])
    hu += noise(tissues.shape, noise_hu, 0.8 / spacing_mm[0], generator)
    out: npt.NDArray[np.float32] = hu.clamp_(AIR_HU, 3071).numpy()
    return out


def imagined(drawing: Drawing, sources: Sequence[Source], spacing_mm: SpacingMm, seed: int) -> npt.NDArray[np.float32]:
    """A CT for a label map whose own was never published: a body around what is drawn, painted."""
    rng = np.random.default_rng(seed)
    by_tissue: dict[str, BoolArray] = {}
    for source in sorted(sources, key=lambda source: source.is_lesion):
        tissue = anatomy().of_source(source)
        if tissue is not None:
            mask = drawing.mask(source.value)
            by_tissue[tissue.key] = by_tissue.get(tissue.key, np.zeros(mask.shape, bool)) | mask
    tissues, palette = body_around(by_tissue, spacing_mm, rng)
    return paint(tissues, palette, spacing_mm, rng)


def body_around(
    drawn: Mapping[str, BoolArray], spacing_mm: SpacingMm, rng: np.random.Generator
) -> tuple[TissueMap, list[Tissue]]:
    """A tissue map with a plausible body around drawn organs: `paint` makes an image of it.

    drawn  tissue key -> bool [X, Y, Z], RAS axes; later ones lie over earlier ones
    Returns the map and its palette. The body is, slice by slice, the hull of the organs with a wall of muscle, a coat
    of fat of random thickness, and a spine behind; what is not drawn inside is fat.
    """
    known = anatomy().tissues
    palette = [known[key] for key in ("air", "fat", "muscle", "bone")] + [known[key] for key in drawn]
    organs = np.any(list(drawn.values()), axis=0)
    hull = _hull(organs)
    in_plane = spacing_mm[:2]
    wall, coat = float(rng.uniform(*_WALL_MM)), float(rng.uniform(*_FAT_MM))
    out = np.zeros(organs.shape, np.uint8)
    x = np.arange(organs.shape[0])[:, None] * in_plane[0]
    y = np.arange(organs.shape[1])[None] * in_plane[1]
    for z in range(organs.shape[2]):
        if not hull[:, :, z].any():
            continue
        away_mm = ndimage.distance_transform_edt(~hull[:, :, z], sampling=in_plane)
        inside = np.argwhere(hull[:, :, z])
        middle_x = inside[:, 0].mean() * in_plane[0]
        back_y = inside[:, 1].min() * in_plane[1]
        spine = (x - middle_x) ** 2 + (y - back_y) ** 2 < _SPINE_MM**2
        body = away_mm < wall + coat
        out[:, :, z] = np.select([spine, away_mm == 0, away_mm < wall, body], [3, 1, 2, 1], 0)
    for code, mask in enumerate(drawn.values(), start=4):
        out[mask] = code
    return out, palette


def _hull(mask: BoolArray) -> BoolArray:
    """Slice by slice the convex hull of what is drawn, smoothed along z, so that a body has no steps."""
    from scipy.spatial import ConvexHull, QhullError

    out = np.zeros(mask.shape, bool)
    reach = max(1, mask.shape[2] // 20)
    for z in range(mask.shape[2]):
        points = np.argwhere(mask[:, :, max(0, z - reach) : z + reach + 1].any(2))
        if len(points) < 4:
            continue
        try:
            faces = ConvexHull(points).equations  # outward normal and offset of each edge
        except QhullError:  # all in one line
            continue
        low, high = points.min(0), points.max(0) + 1
        x, y = (np.arange(a, b) for a, b in zip(low, high, strict=True))
        beyond = [nx * x[:, None] + ny * y + offset for nx, ny, offset in faces]
        out[low[0] : high[0], low[1] : high[1], z] = np.max(beyond, axis=0) < 1e-6
    return out
