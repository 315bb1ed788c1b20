"""The sliding window, streamed along z: a slab of the answer leaves as soon as no window can change it.

Windows stand on a regular grid; where they overlap, their outputs are averaged with a Gaussian weight that trusts
the middle of a window more than its rim (nnU-Net, Isensee et al. 2021; same weights and positions as MONAI's
`sliding_window_inference`). A 1-D picture, length 10, window 4, overlap 0.5 (step 2):

    index    0 1 2 3 4 5 6 7 8 9
    window   a a a a . . . . . .
             . . b b b b . . . .        when `b` is done, 0 and 1 are final,
             . . . . c c c c . .        when `c` is done, 2 and 3 are final, ...
             . . . . . . d d d d

What is kept of a window until then is what its encoder gave (eight features a voxel), not its logits: the head turns
it into logits for a few classes and one slab at a time. So memory depends neither on the length of the scan nor on the
number of classes. A thread adds up a few rows of the slab, of one window after the other: the logits of a window, which
count until they are added, never leave the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch

from viscera.errors import SettingError
from viscera.shapes import Box, Triple, triple
from viscera.threads import in_threads

Encoded = TypeVar("Encoded")
Encoder = Callable[[torch.Tensor], Encoded]  # a window [1, C, *window] -> whatever `Decoder` needs of it
Keeper = Callable[[Encoded, slice], Encoded]  # (encoded, z) -> the same for these slices, as small as it can wait
Logits = Callable[[slice, slice], torch.Tensor]  # (x, z) -> logits [k, rows, y, slices] of a part of a window
Decoder = Callable[[Encoded, slice], Logits]  # (encoded, classes) -> their logits, wherever they are asked for
Progress = Callable[[int, int], None]  # (windows done, windows in all)

SIGMA_SCALE = 0.125  # the Gaussian's sigma as a part of the window (nnU-Net, MONAI)
SMALLEST_WEIGHT = 1e-3  # no voxel of a window counts for nothing (MONAI)
BUFFER_VALUES = 1 << 24  # logits made at once; 67 MB as float32
SLAB = 24  # slices that are finished at once
_AT_ONCE = 1 << 14  # voxels of a window that a thread decodes at once


@dataclass(frozen=True)
class Slab:
    """Finished logits of some classes in the slices ``z <= index < z + logits.shape[-1]``."""

    z: int
    logits: torch.Tensor  # float32 [k, X, Y, slices]; those of windows hold until the next slab is asked for
    first_class: int = 0  # whose logits stand in row 0; the rows are consecutive classes


@dataclass(frozen=True, eq=False)
class _Window(Generic[Encoded]):
    """A window whose answer is not final everywhere.

    start    its first voxel in the image
    z        the slices of the image that `encoded` stands for, at the window's upper end
    """

    start: Triple
    z: slice
    encoded: Encoded

    def without(self, below: int, keep: Keeper[Encoded]) -> _Window[Encoded]:
        """The same without the slices below `below`, which are final."""
        rest = slice(below, self.z.stop)
        return _Window(self.start, rest, keep(self.encoded, self.own(rest)))

    def own(self, z: slice) -> slice:
        """Slices of the image as slices of `encoded`."""
        return slice(z.start - self.z.start, z.stop - self.z.start)


@dataclass(frozen=True, eq=False)
class _Piece(Generic[Encoded]):
    """What a window has to say about a slab.

    z      the slab's slices as slices of `encoded`
    there  its place in the slab
    share  how much it counts there: float32 [x, y, slices], 1 where no other window reaches
    """

    encoded: Encoded
    z: slice
    there: Box
    share: torch.Tensor


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


def class_groups(classes: int, voxels: int, buffer_values: int) -> Iterator[slice]:
    """Consecutive classes whose logits in so many voxels fit the buffer; one class at least."""
    group = max(1, buffer_values // voxels)
    for first in range(0, classes, group):
        yield slice(first, min(first + group, classes))


def stream_windows(
    image: torch.Tensor,
    encode: Encoder[Encoded],
    keep: Keeper[Encoded],
    decode: Decoder[Encoded],
    classes: int,
    window: Triple,
    overlap: float = 0.5,
    *,
    wanted: Callable[[Box], bool] | None = None,
    pad_value: float = 0.0,
    buffer_values: int = BUFFER_VALUES,
    progress: Progress | None = None,
) -> Iterator[Slab]:
    """Runs a network over windows of `image` and yields finished slabs from low z to high z, all classes of one slab
    before the next.

    image      [C, X, Y, Z]; an axis shorter than the window is padded with `pad_value` on both sides
    encode     called once per window
    keep       called when a window begins to wait for its neighbours, and whenever slices of it are final
    decode     gives logits of some classes of a window, in parts, several at a time in threads; they are averaged as
               float32
    overlap    part of a window that the next one shares, 0 <= overlap < 1
    wanted     whether a window (its box in the image) is worth computing; all by default. Where no wanted window
               reaches, the logits are minus infinity
    buffer_values  logits averaged at once, but those of one class at least
    progress   called after each window

    The slabs cover [0, Z) without gaps, once per class. Raises SettingError for an overlap outside its range.
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
    rows, total = _plan(size, padded, before, window, overlap, wanted)
    weight = gaussian_weight(window).to(image.device)
    # Made once: arrays of this size, coming and going among those of the network, would leave holes behind.
    plane = padded[0] * padded[1] * min(SLAB, padded[2])
    sums = torch.empty(min(classes * plane, max(buffer_values, plane)), device=image.device)

    alive: list[_Window[Encoded]] = []
    done = 0
    for position, (z, places) in enumerate(rows):
        for x, y in places:
            part = image[None, :, x : x + window[0], y : y + window[1], z : z + window[2]]
            alive.append(_Window((x, y, z), slice(z, z + window[2]), keep(encode(part), slice(0, window[2]))))
            done += 1
            if progress is not None:
                progress(done, total)
        end = rows[position + 1][0] if position + 1 < len(rows) else padded[2]
        first, stop = max(z, before[2]), min(end, before[2] + size[2])
        for low in range(first, stop, SLAB):
            final = slice(low, min(low + SLAB, stop))
            for first_class, logits in _averaged(alive, decode, classes, weight, padded, final, sums):
                inside = logits[:, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]
                yield Slab(low - before[2], inside, first_class)
        alive = [item for item in alive if item.z.stop > end]
        for place in range(len(alive)):  # one by one, so that what is final is freed before the next is copied
            alive[place] = alive[place].without(end, keep)


def _plan(
    size: Triple,
    padded: Triple,
    before: Triple,
    window: Triple,
    overlap: float,
    wanted: Callable[[Box], bool] | None,
) -> tuple[list[tuple[int, list[tuple[int, int]]]], int]:
    """For each start on z the starts (x, y) of the windows to compute there, and how many windows that makes."""
    x_starts, y_starts, z_starts = (window_starts(n, w, overlap) for n, w in zip(padded, window, strict=True))

    def box(start: Triple) -> Box:
        low = triple(max(0, s - b) for s, b in zip(start, before, strict=True))
        high = triple(min(n, s - b + w) for s, b, w, n in zip(start, before, window, size, strict=True))
        return Box(low, high)

    rows = [
        (z, [(x, y) for x in x_starts for y in y_starts if wanted is None or wanted(box((x, y, z)))]) for z in z_starts
    ]
    return rows, sum(len(places) for _, places in rows)


def _averaged(
    alive: list[_Window[Encoded]],
    decode: Decoder[Encoded],
    classes: int,
    weight: torch.Tensor,
    padded: Triple,
    z: slice,
    buffer: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The weighted mean of the windows' logits in the slices `z` of the whole image, a few classes at a time: the
    first class of each group and its logits [k, X, Y, slices], which lie in `buffer`."""
    window = triple(weight.shape)
    plane = (padded[0], padded[1], z.stop - z.start)
    weights = torch.zeros(plane, device=weight.device)
    found = []
    for item in alive:
        x, y, start = item.start
        low, high = max(z.start, item.z.start), min(z.stop, item.z.stop)
        if low < high:
            there = Box((x, y, low - z.start), (x + window[0], y + window[1], high - z.start))
            own = weight[..., low - start : high - start]
            weights[there.slices] += own
            found.append((item, slice(low, high), there, own))
    unreached = weights == 0 if float(weights.min()) == 0 else None
    pieces = [_Piece(item.encoded, item.own(at), there, own / weights[there.slices]) for item, at, there, own in found]
    for chosen in class_groups(classes, weights.numel(), buffer.numel()):
        count = chosen.stop - chosen.start
        sums = buffer[: count * weights.numel()].view(count, *plane).zero_()
        decoded = [(piece, decode(piece.encoded, chosen)) for piece in pieces]
        in_threads(partial(_add_rows, sums, decoded), _rows(sums, window[1]), sums.device)
        yield chosen.start, sums if unreached is None else sums.masked_fill_(unreached, float("-inf"))


def _rows(sums: torch.Tensor, width: int) -> list[slice]:
    """Rows [k, rows, y, slices] of a slab that are added up at once, so few that what windows of `width` on y say about
    them stays in the cache; all of them on another device than the processor."""
    _, length, _, slices = sums.shape
    step = max(1, _AT_ONCE // (width * slices)) if sums.device.type == "cpu" else length
    return [slice(x, min(x + step, length)) for x in range(0, length, step)]


def _add_rows(sums: torch.Tensor, decoded: list[tuple[_Piece[Encoded], Logits]], rows: slice) -> None:
    """Adds to these rows what the pieces that reach them say, each as much as it counts."""
    for piece, logits in decoded:
        first, end = piece.there.start[0], piece.there.stop[0]
        low, high = max(rows.start, first), min(rows.stop, end)
        if low < high:
            own, (_, y, z) = slice(low - first, high - first), piece.there.slices
            sums[:, low:high, y, z].addcmul_(logits(own, piece.z), piece.share[own])
