"""How much surface lies in each 2x2x2 neighbourhood of voxels: derived from marching cubes, not tabulated.

A mask's surface runs between voxel centres. Cut space into cubes whose eight corners are the centres of
2x2x2 neighbouring voxels: the corners that are in the mask decide how the surface passes through the cube, and
its area there is the cube's *surface element* (surfel). Measures weighted by these areas do not depend on
how a surface happens to lie on the voxel grid (Nikolov et al. 2021, doi:10.2196/26151, appendix; the
same idea and, to rounding, the same areas as DeepMind's `surface-distance`).

The 256 surfaces follow from three rules (Lorensen and Cline 1987, doi:10.1145/37401.37422):

1. The surface cuts a cube's edge in the middle where just one of its two ends is in.
2. On a face with two cut edges it runs straight between them. On a face with four (the two corners that are in
   lie diagonally) it cuts off each of the two corners of the minority of the whole cube: the corners that are in
   if at most four are, the others otherwise. So a mask and its complement have the same surface.
3. The cuts close to loops of three to six points. A loop is filled with triangles; where several fillings
   exist, with the one of largest area in a cubic cube: it keeps points of one plane in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from viscera.shapes import SpacingMm

FloatArray = npt.NDArray[np.float64]
Corner = tuple[int, int, int]
Point = tuple[float, float, float]
Triangle = tuple[int, int, int]

CORNERS: tuple[Corner, ...] = tuple((x, y, z) for x, y, z in product((0, 1), repeat=3))


def corner_bit(corner: Corner) -> int:
    """The bit of a neighbourhood code that says whether this corner is in: 4x + 2y + z."""
    x, y, z = corner
    return 4 * x + 2 * y + z


def _faces() -> Iterator[tuple[Corner, ...]]:
    """The six faces of the cube, each as its four corners in a ring."""
    for axis, side in product(range(3), (0, 1)):
        ring = []
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            ring.append(((side, u, v), (u, side, v), (u, v, side))[axis])
        yield tuple(ring)


def _middle(a: Corner, b: Corner) -> Point:
    x, y, z = ((p + q) / 2 for p, q in zip(a, b, strict=True))
    return (x, y, z)


def _segments(code: int) -> Iterator[tuple[Point, Point]]:
    """The straight pieces in which the surface of neighbourhood `code` meets the cube's faces (rules 1 and 2)."""
    minority_is_in = code.bit_count() <= 4
    for ring in _faces():
        is_in = [bool(code >> corner_bit(corner) & 1) for corner in ring]
        # edges[i] joins ring[i - 1] and ring[i]; None where the surface does not cut it
        edges = [_middle(ring[i - 1], ring[i]) if is_in[i - 1] != is_in[i] else None for i in range(4)]
        cuts = [edge for edge in edges if edge is not None]
        if len(cuts) == 2:
            yield (cuts[0], cuts[1])
        elif len(cuts) == 4:
            for i in range(4):
                if is_in[i] == minority_is_in:
                    yield (cuts[i], cuts[(i + 1) % 4])


def _loops(code: int) -> Iterator[list[Point]]:
    """The closed loops that the segments of `code` form, each as its points in order."""
    neighbours: dict[Point, list[Point]] = {}
    for a, b in _segments(code):
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    while neighbours:
        point = next(iter(neighbours))
        loop = []
        while point in neighbours:
            loop.append(point)
            following = [p for p in neighbours.pop(point) if p in neighbours]
            point = following[0] if following else point
        yield loop


def _fillings(points: tuple[int, ...]) -> Iterator[list[Triangle]]:
    """Every way to cut the polygon over these point numbers into triangles."""
    if len(points) < 3:
        yield []
        return
    first, last = points[0], points[-1]
    for k in range(1, len(points) - 1):
        for left, right in product(_fillings(points[: k + 1]), _fillings(points[k:])):
            yield [*left, (first, points[k], last), *right]


def _area_vectors(loop: list[Point], filling: list[Triangle]) -> FloatArray:
    """Normal vectors of the triangles, as long as their areas: [triangles, 3]."""
    p = np.array(loop)
    i, j, k = np.array(filling).T
    return np.asarray(np.cross(p[j] - p[i], p[k] - p[i]) / 2, np.float64)


def _total_area(vectors: FloatArray) -> float:
    # Rounding keeps equal areas equal, so that the first of them wins on every machine.
    return round(float(np.linalg.norm(vectors, axis=1).sum()), 9)


@cache
def _triangles() -> FloatArray:
    """Area vectors of the triangles in each neighbourhood on a cubic grid of 1 mm: [256 codes, 4 triangles, 3]."""
    table = np.zeros((256, 4, 3))
    for code in range(256):
        row = 0
        for loop in _loops(code):
            fillings = (_area_vectors(loop, filling) for filling in _fillings(tuple(range(len(loop)))))
            largest = max(fillings, key=_total_area)
            table[code, row : row + len(largest)] = largest
            row += len(largest)
    return table


@cache
def surfel_areas_mm2(spacing_mm: SpacingMm) -> FloatArray:
    """Surface area in mm2 inside each 2x2x2 neighbourhood: float64 [256], by code (see `corner_bit`).

    An area vector's x part is spanned by lengths along y and z, so it grows with their product.
    """
    x, y, z = spacing_mm
    areas = np.linalg.norm(_triangles() * (y * z, x * z, x * y), axis=2).sum(axis=1)
    areas.flags.writeable = False
    return np.asarray(areas, np.float64)
