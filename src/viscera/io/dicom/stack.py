"""From the positions of slices to one regular grid, and what stands in the way of it.

A worked example: slices 2 mm apart, the one at 104 is missing.

    positions along the normal   100  102  106  108        step 2 (the median)
    grid                         100  102  104  106  108
    sources (index, weight)      0,0  1,0  1,½  2,0  3,0   the grid's slice 2 lies half-way between slices 1 and 2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError

# Deviations from even spacing, as parts of the spacing. The first is highdicom's default tolerance
# (spatial.py, _DEFAULT_SPACING_RELATIVE_TOLERANCE); the second still moves no voxel by a visible amount.
EVEN = 0.01
NEARLY_EVEN = 0.1
_SIDEWAYS_PIXELS = 0.25  # how far a slice may lie beside the line through the first and the last
_GAP = 1.5  # a step larger than this many usual steps means missing slices
_SAME_MM = 0.01  # slices closer than this lie at one place
_SHOWN = 5  # gaps named in a message

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the slices of the volume lie and which given slices they come from.

    first   position of the first slice, LPS mm
    step    from one slice to the next, LPS mm; not along the normal if the gantry was tilted
    index   given slice (in order along the normal) of each slice of the volume
    weight  how much of the next given slice is mixed in (0 everywhere unless slices were missing)
    notes   what was noticed
    """

    first: Floats
    step: Floats
    index: npt.NDArray[np.int64]
    weight: Floats
    notes: tuple[str, ...] = ()


def same_place(along_mm: Floats) -> npt.NDArray[np.int64]:
    """The number of the place of each slice, for sorted positions along the normal: 0, 1, 1, 2 ..."""
    return np.concatenate([[0], np.cumsum(np.diff(along_mm) > _SAME_MM)])


def regular_grid(positions: Floats, normal: Floats, pixel_mm: float, *, force: bool, name: str) -> Grid:
    """The regular grid of two or more slices at different places.

    positions  [n, 3] LPS mm, sorted along `normal` (a unit vector)
    pixel_mm   the smaller in-plane spacing
    force      where slices are missing or unevenly spaced, place the volume's slices evenly and interpolate

    Raises ImageError if slices are missing or uneven (unless forced), if most are missing, and if they are shifted
    sideways.
    """
    along = positions @ normal
    last = len(along) - 1
    direction = (positions[last] - positions[0]) / (along[last] - along[0])  # mm of way per mm along the normal
    on_line = positions[0] + np.outer(along - along[0], direction)
    sideways = np.linalg.norm(positions - on_line, axis=1)
    if sideways.max() > _SIDEWAYS_PIXELS * pixel_mm:
        raise ImageError(
            f"The slices of {name} do not lie on one line: the one at {along[sideways.argmax()]:.2f} mm is "
            f"{sideways.max():.2f} mm off to the side. They are not one volume; choose one series or reconstruct it "
            "again."
        )

    steps = np.diff(along)
    even_step = (along[last] - along[0]) / last
    off = np.abs(along - (along[0] + even_step * np.arange(last + 1))).max() / even_step
    if off <= NEARLY_EVEN:
        note = f"The slices are not quite evenly spaced (up to {off:.1%} of {even_step:.3g} mm off); taken as even."
        return Grid(
            positions[0],
            direction * even_step,
            np.arange(last + 1),
            np.zeros(last + 1),
            () if off <= EVEN else (note,),
        )

    usual = float(np.median(steps))
    what = _what_is_uneven(along, usual)
    if not force:
        raise ImageError(
            f"{name}: {what}. Volumes would come out wrong. Copy or export the series again; --force (force=True) "
            "fills the gaps by linear interpolation."
        )
    count = round((along[last] - along[0]) / usual) + 1
    if count > 2 * len(along):
        raise ImageError(f"{name}: {what}. More is missing than there is; copy or export the series again.")
    step = (along[last] - along[0]) / (count - 1)
    wanted = along[0] + step * np.arange(count)
    index = np.clip(np.searchsorted(along, wanted, side="right") - 1, 0, last - 1)
    weight = (wanted - along[index]) / steps[index]
    snapped = np.rint(weight)
    weight = np.where(np.abs(weight - snapped) * steps[index] <= NEARLY_EVEN * step, snapped, weight)
    index, weight = index + (weight == 1), np.where(weight == 1, 0.0, weight)
    filled = int(np.count_nonzero(weight))
    return Grid(
        positions[0],
        direction * step,
        index,
        weight,
        (f"{what[0].upper()}{what[1:]}; {filled} of {count} slices were interpolated because of --force.",),
    )


def _what_is_uneven(along: Floats, usual: float) -> str:
    """Missing slices with their places, or uneven spacing with its range."""
    steps = np.diff(along)
    gaps = np.flatnonzero(steps > _GAP * usual)
    even_besides = np.abs(steps / usual - np.rint(steps / usual)).max() <= NEARLY_EVEN
    if gaps.size == 0 or not even_besides:
        return f"the slices are unevenly spaced ({steps.min():.3g} to {steps.max():.3g} mm apart)"
    places = ", ".join(f"between {along[i]:.2f} and {along[i + 1]:.2f} mm" for i in gaps[:_SHOWN])
    more = "" if gaps.size <= _SHOWN else f" and at {gaps.size - _SHOWN} more places"
    missing = int(np.rint(steps[gaps] / usual).sum()) - gaps.size
    return f"{missing} slice{'s' * (missing != 1)} missing {places}{more} (the others are {usual:.3g} mm apart)"
