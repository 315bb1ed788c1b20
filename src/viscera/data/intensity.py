"""What changes the numbers of a CT but not its anatomy: contrast phase, dose, kernel, slice thickness, field of view.

Every function takes a patch in HU (float32 [X, Y, Z]) and works on it in place where it can; noise comes from the
generator that is passed in, so that a plan applied twice gives the same patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from viscera.io.grid import linear_taps, mean_taps
from viscera.io.volume import AIR_HU
from viscera.shapes import Box, SpacingMm, triple


def windowed(hu: torch.Tensor, window_hu: tuple[float, float]) -> torch.Tensor:
    """HU mapped so that the window's ends become 0 and 1, clipped beyond; in place."""
    low, high = window_hu
    return hu.sub_(low).div_(high - low).clamp_(0, 1)


def with_structure_means(
    hu: torch.Tensor,
    codes: torch.Tensor,
    means_hu: Mapping[int, float],
    *,
    strength: float = 1.0,
    texture: float = 1.0,
) -> torch.Tensor:
    """Every drawn structure moved to another mean: another contrast phase, another patient.

    codes     int [X, Y, Z]
    means_hu  code -> the mean its voxels shall have; other codes stay as they are
    strength  0 leaves the image, 1 reaches the means
    texture   factor on each structure's deviation from its own mean

    The change fades over one voxel around a structure, as the image's own edges do.
    """
    flat = codes.reshape(-1)
    kinds = int(flat.max()) + 1
    count = torch.bincount(flat, minlength=kinds).clamp_(min=1)
    mean = torch.bincount(flat, weights=hu.reshape(-1), minlength=kinds).div_(count).float()
    shift = torch.zeros(kinds)
    gain = torch.zeros(kinds)
    for code, wanted in means_hu.items():
        if 0 < code < kinds:
            shift[code] = strength * (wanted - float(mean[code]))
            gain[code] = texture - 1
    if not shift.any() and not gain.any():
        return hu
    soft = _blurred_edges(shift.index_select(0, flat).view_as(hu))
    if texture != 1:
        centre = mean.index_select(0, flat).view_as(hu)
        soft += _blurred_edges(gain.index_select(0, flat).view_as(hu)) * (hu - centre)
    return hu.add_(soft)


def with_brighter_rim(
    hu: torch.Tensor, codes: torch.Tensor, code: int, rim_mm: float, brighter_hu: float, spacing_mm: SpacingMm
) -> torch.Tensor:
    """One structure whose outer `rim_mm` are brighter than the rest by `brighter_hu`, with the mean it had; in place.

    codes  int [X, Y, Z]; the change fades over one voxel
    """
    inside = (codes == code).numpy()
    if not inside.any():
        return hu
    box = Box.around(inside).grown((2, 2, 2), within=triple(inside.shape))
    mask = inside[box.slices]
    rim = mask & (ndimage.distance_transform_edt(mask, sampling=spacing_mm) <= rim_mm)
    change = np.where(rim, 1.0, 0.0) - np.where(mask, rim.sum() / mask.sum(), 0.0)
    hu[box.slices] += _blurred_edges(torch.from_numpy((brighter_hu * change).astype(np.float32)))
    return hu


def remapped(hu: torch.Tensor, anchors_hu: Sequence[tuple[float, float]]) -> torch.Tensor:
    """HU through a piecewise linear curve (from, to), rising in `from`; whole HU in, so that it is one table lookup."""
    at, to = zip(*anchors_hu, strict=True)
    curve = torch.from_numpy(np.interp(np.arange(int(AIR_HU), 3072), at, to).astype(np.float32))
    index = (hu - AIR_HU).round_().clamp_(0, len(curve) - 1).to(torch.int32)
    return curve.index_select(0, index.reshape(-1)).view_as(hu)


def blur_matrix(voxels: int, sigma_voxels: float) -> torch.Tensor:
    """Gaussian smoothing of an axis as a matrix [voxels, voxels]; rows sum to 1, also at the ends."""
    at = torch.arange(voxels, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((at[:, None] - at) / sigma_voxels) ** 2)
    return weight / weight.sum(1, keepdim=True)


def thick_matrix(voxels: int, factor: float) -> torch.Tensor:
    """An axis averaged into steps of `factor` voxels and interpolated back: what thick slices do to it.

    A matrix [voxels, voxels] whose rows sum to 1.
    """
    coarse = int((voxels - 1) / factor) + 1
    down = mean_taps(np.arange(coarse) * factor, voxels, factor)
    up = linear_taps(np.arange(voxels) / factor, coarse)
    return up(down(torch.eye(voxels), 0), 0)


def filtered(hu: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """`hu` with each axis multiplied by its matrix [n, n]; None leaves an axis."""
    x, y, z = hu.shape
    if matrices[0] is not None:
        hu = (matrices[0] @ hu.reshape(x, y * z)).view(x, y, z)
    if matrices[1] is not None:
        hu = torch.matmul(matrices[1], hu)
    if matrices[2] is not None:
        hu = hu @ matrices[2].T
    return hu


def sharpened(hu: torch.Tensor, amount: float) -> torch.Tensor:
    """Unsharp masking, as a sharp reconstruction kernel gives: edges overshoot and noise grows."""
    soft = filtered(hu, [blur_matrix(n, 1.0) for n in hu.shape])
    return hu + amount * (hu - soft)


def noise(shape: Sequence[int], sd_hu: float, grain_voxels: float, generator: torch.Generator) -> torch.Tensor:
    """Image noise of standard deviation `sd_hu`, correlated in plane over about `grain_voxels` (0: white)."""
    out = torch.randn(tuple(shape), generator=generator)
    if grain_voxels > 0:
        matrices = [blur_matrix(n, grain_voxels) for n in shape[:2]]
        out = filtered(out, [*matrices, None])
        # Smoothing shrinks the noise by the length of the kernel's rows; taken in the middle of each axis.
        for matrix in matrices:
            out /= float(matrix[len(matrix) // 2].norm())
    return out.mul_(sd_hu)


def cut(hu: torch.Tensor, codes: torch.Tensor, axis: int, position: int, keep_low: bool) -> None:
    """Ends the scan at `position` on an axis, in place: beyond it there is air that belongs to nothing."""
    beyond = slice(position, None) if keep_low else slice(0, position)
    place = [slice(None)] * 3
    place[axis] = beyond
    hu[tuple(place)] = AIR_HU
    codes[tuple(place)] = 0


def _blurred_edges(field: torch.Tensor) -> torch.Tensor:
    return filtered(field, [blur_matrix(n, 0.7) for n in field.shape])
