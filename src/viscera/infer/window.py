"""The sliding window, streamed along z: a slab of the answer leaves as soon as no window can change it.

Windows stand on a regular grid; where they overlap, their outputs are averaged with a Gaussian weight that trusts
the middle of a window more than its rim (nnU-Net, Isensee et al. 2021; same weights and positions as MONAI's
`sliding_window_inference`). A 1-D picture, length 10, window 4, overlap 0.5 (step 2):

    index    0 1 2 3 4 5 6 7 8 9
    window   a a a a . . . . . .
             . . b b b b . . . .        when `b` is done, 0 and 1 are final,
             . . . . c c c c . .        when `c` is done, 2 and 3 are final, ...
             . . . . . . d d d d

So the only large array is [K, X, Y, window z], however long the scan is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from viscera.errors import SettingError
from viscera.shapes import Triple, triple

Network = Callable[[torch.Tensor], torch.Tensor]  # [1, C, *window] -> [1, K, *window]
Progress = Callable[[int, int], None]  # (windows done, windows in all)

SIGMA_SCALE = 0.125  # the Gaussian's sigma as a part of the window (nnU-Net, MONAI)
SMALLEST_WEIGHT = 1e-3  # no voxel of a window counts for nothing (MONAI)


@dataclass(frozen=True)
class Slab:
    """Finished logits of the slices ``z <= index < z + logits.shape[-1]``."""

    z: int
    logits: torch.Tensor  # float32 [K, X, Y, slices]; a view that the next step overwrites


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin on an axis: a regular step, and a last window that ends with the axis.

    >>> window_starts(10, 4, 0.5)
    [0, 2, 4, 6]
    """
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    last = length - window
    return [*range(0, last, step), last]


def gaussian_weight(window: Triple) -> torch.Tensor:
    """How much each voxel of a window counts: float32 of the window's shape, 1 in the middle, never 0."""
    weight = torch.ones(())
    for n in window:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-(x**2) / (2 * (n * SIGMA_SCALE) ** 2))
    return weight.clamp_(min=SMALLEST_WEIGHT)


def stream_windows(
    image: torch.Tensor,
    network: Network,
    window: Triple,
    overlap: float = 0.5,
    *,
    pad_value: float = 0.0,
    progress: Progress | None = None,
) -> Iterator[Slab]:
    """Runs `network` over windows of `image` and yields finished slabs from low z to high z.

    image      [C, X, Y, Z]; an axis shorter than the window is padded with `pad_value` on both sides
    network    any callable [1, C, *window] -> [1, K, *window]; its output is averaged as float32
    overlap    part of a window that the next one shares, 0 <= overlap < 1
    progress   called after each window

    The slabs cover [0, Z) without gaps, once. Raises SettingError for an overlap outside its range.
    """
    if not 0 <= overlap < 1:
        raise SettingError(f"The overlap of windows is {overlap}; it must be at least 0 and less than 1.")
    size = triple(image.shape[1:])
    before = triple(max(0, w - n) // 2 for n, w in zip(size, window, strict=True))
    after = triple(max(0, w - n) - b for n, w, b in zip(size, window, before, strict=True))
    if any(before) or any(after):
        sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
        image = torch.nn.functional.pad(image, sides, value=pad_value)
    padded = triple(image.shape[1:])
    inside = tuple(slice(b, b + n) for b, n in zip(before, size, strict=True))
    x_starts, y_starts, z_starts = (window_starts(n, w, overlap) for n, w in zip(padded, window, strict=True))
    total = len(x_starts) * len(y_starts) * len(z_starts)
    weight = gaussian_weight(window).to(image.device)

    # The weights that meet in a voxel: the same for every slab up to which z windows reach it.
    plane_weight = torch.zeros(padded[0], padded[1], window[2], device=image.device)
    for x in x_starts:
        for y in y_starts:
            plane_weight[x : x + window[0], y : y + window[1]] += weight

    sums: torch.Tensor | None = None
    weights = torch.zeros_like(plane_weight)
    done = 0
    for position, z in enumerate(z_starts):
        weights += plane_weight
        for x in x_starts:
            for y in y_starts:
                here = (slice(x, x + window[0]), slice(y, y + window[1]))
                logits = network(image[None, :, here[0], here[1], z : z + window[2]])[0]
                if sums is None:
                    sums = logits.new_zeros((logits.shape[0], *plane_weight.shape), dtype=torch.float32)
                sums[:, here[0], here[1]].addcmul_(logits.float(), weight)
                done += 1
                if progress is not None:
                    progress(done, total)
        assert sums is not None
        finished = (z_starts[position + 1] - z) if position + 1 < len(z_starts) else window[2]
        ready = sums[..., :finished].div_(weights[..., :finished])
        first, end = max(z, inside[2].start), min(z + finished, inside[2].stop)
        if first < end:
            yield Slab(first - inside[2].start, ready[:, inside[0], inside[1], first - z : end - z])
        kept = window[2] - finished
        for plane in (*sums, weights):  # one class at a time: a copy of all would be the largest array
            plane[..., :kept] = plane[..., finished:].clone()
            plane[..., kept:] = 0
