"""Two rules that post.toml applies to most classes, on a scan of 512 x 512 x 300, against the direct forms.

    python bench/rules.py

The largest component, directly: label the whole scan, count every label. A tumour within its organ, directly: close and
dilate the organ on the whole scan with a cube of 5 x 5 x 5 voxels. Each form gets the same masks (a blob as large as a
liver with islands around it, a tumour at its border) and must give the same voxels; times are the best of all calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage

from viscera.masks import BoolArray, MaskSet, SoftMask
from viscera.post.rules import inside_organ, largest_component
from viscera.report.manifest import machine

OUT = Path(__file__).parent / "out" / "rules.json"
SHAPE, MM = (512, 512, 300), (1.5, 1.5, 1.5)
GROW_MM = 3.0  # of post.toml: two voxels to each side, a cube of 5
CUBE = np.ones((5, 5, 5), bool)
CALLS, DIRECT_CALLS = 5, 2
BARS = {"largest_component": 6.0, "inside_organ": 100.0}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Row:
    """One rule, measured."""

    rule: str
    direct_s: float
    viscera_s: float
    speedup: float
    bar: float
    identical: bool
    passed: bool


def ball(centre: tuple[int, int, int], radius: float) -> BoolArray:
    """A ball with a rough surface: rounder ones would have no islands and no gaps to close."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    squared: BoolArray = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < radius**2
    return squared


def scene() -> tuple[BoolArray, BoolArray]:
    """An organ of 1.5 litres with holes and islands, and a tumour that leaves it."""
    rng = np.random.default_rng(0)
    organ = ball((330, 270, 170), 65) | ball((270, 280, 190), 40)
    organ &= rng.random(SHAPE, np.float32) > 0.02
    for x, y, z in rng.integers((180, 180, 90), (420, 360, 260), (40, 3)):
        organ[x : x + 4, y : y + 3, z : z + 3] = True
    return organ, ball((385, 300, 190), 15)


def direct_largest(mask: BoolArray) -> BoolArray:
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    largest: BoolArray = labels == counts.argmax()
    return largest


def direct_inside(organ: BoolArray, tumour: BoolArray) -> BoolArray:
    near: BoolArray = ndimage.binary_dilation(ndimage.binary_closing(organ, CUBE), CUBE)
    return tumour & near


def timed(form: Callable[[], Answer], calls: int) -> tuple[float, Answer]:
    """The best time of some calls, and the answer."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        answer = form()
        times.append(time.perf_counter() - start)
    return min(times), answer


def main() -> int:
    organ, tumour = scene()
    # As in the program: masks are known with the boxes around them, and a rule's answer is a mask in its box.
    masks = MaskSet(SHAPE, MM, {"liver": SoftMask.of(organ), "liver_tumor": SoftMask.of(tumour)})
    forms = {
        "largest_component": (
            "liver",
            lambda: direct_largest(organ),
            lambda: largest_component(masks, ["liver"]),
        ),
        "inside_organ": (
            "liver_tumor",
            lambda: direct_inside(organ, tumour),
            lambda: inside_organ(masks, ["liver_tumor"], grow_mm=GROW_MM),
        ),
    }
    rows = []
    for rule, (key, direct, ours) in forms.items():
        seconds, changes = timed(ours, CALLS)
        direct_seconds, expected = timed(direct, DIRECT_CALLS)
        if not expected.any() or np.array_equal(expected, masks.whole(key)):
            raise AssertionError(f"the scene does not test {rule}")
        identical, speedup = bool(np.array_equal(masks.changed(changes).whole(key), expected)), direct_seconds / seconds
        passed = identical and speedup >= BARS[rule]
        rows.append(Row(rule, direct_seconds, seconds, speedup, BARS[rule], identical, passed))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"machine": machine(), "rules": [asdict(row) for row in rows]}, indent=2))
    print(f"a scan of {SHAPE}; best of {CALLS} calls (direct: {DIRECT_CALLS}); {machine()['cpu']}")
    print(f"{'rule':<20}{'direct s':>10}{'viscera s':>11}{'x faster':>10}{'bar':>6}  same voxels")
    for row in rows:
        print(
            f"{row.rule:<20}{row.direct_s:>10.2f}{row.viscera_s:>11.4f}{row.speedup:>10.1f}{row.bar:>6.0f}"
            f"  {'yes' if row.identical else 'NO'}"
        )
    passed = all(row.passed for row in rows)
    print("rules:", "every bar met" if passed else "A BAR IS MISSED")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
