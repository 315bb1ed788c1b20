"""The figures of an evaluation as PNG bytes: boxes per class, Bland-Altman, FROC, differences, ranks, single cases.

Every function takes plain numbers and arrays and draws one figure. matplotlib is used without its global state, so
figures can be drawn anywhere, without a screen.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from viscera.masks import BoolArray
from viscera.metrics.agreement import bland_altman
from viscera.metrics.detection import FROC_RATES, FrocPoint
from viscera.metrics.edge_cases import Metric
from viscera.metrics.statistics import Paired, Ranking
from viscera.shapes import SpacingMm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, FIRST, SECOND = "#1f2933", "#9aa5b1", "#0f766e", "#c2410c"  # text, grid, reference, prediction
_LINES = (FIRST, SECOND, "#1d4ed8", "#7c3aed", "#a16207", "#be185d", "#334155")
FIRST_ON_CT, SECOND_ON_CT = "#2dd4bf", "#ff8a3d"  # the same, seen on grey
WINDOW_HU = (-160.0, 240.0)  # soft tissue
_DPI = 120
_POINTS = 60  # more cases than this are told by the box alone
_WIDTH = 8.6  # inches
_TALLEST_PICTURE = 4.0
_TICKS_MM = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _plain(axes: Axes, grid: str | None = None) -> Axes:
    """Only the lines that carry information."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    if grid:
        axes.grid(axis=grid, color=QUIET, alpha=0.3, linewidth=0.6)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    return axes


def box_plot(values: Mapping[str, Sequence[float]], metric: Metric) -> bytes:
    """One horizontal box per class (label -> value per case) with its cases as dots.

    Values that are not scored are left out; infinite ones are told by their number at the right edge.
    """
    labels = [label for label, v in values.items() if not np.isnan(v).all()]
    figure = _figure(_WIDTH, 0.7 + 0.24 * max(3, len(labels)))
    axes = _plain(figure.subplots(), "x")
    rng = np.random.default_rng(0)
    for row, label in enumerate(labels):
        v = np.asarray(values[label], np.float64)
        finite = v[np.isfinite(v)]
        if len(finite):
            axes.boxplot(
                finite,
                positions=[row],
                widths=0.6,
                orientation="horizontal",
                showfliers=len(finite) > _POINTS,
                patch_artist=True,
                boxprops={"facecolor": "#cce7e4", "edgecolor": FIRST},
                medianprops={"color": FIRST, "linewidth": 2},
                whiskerprops={"color": FIRST},
                capprops={"color": FIRST},
                flierprops={"marker": ".", "markersize": 3, "markeredgecolor": SECOND},
            )
        if 0 < len(finite) <= _POINTS:
            axes.plot(finite, row + rng.uniform(-0.18, 0.18, len(finite)), ".", color=INK, alpha=0.55, markersize=4)
        if np.isinf(v).any():
            text = f"{np.isinf(v).sum()} infinite"
            axes.annotate(
                text, (1, row), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=7, color=SECOND
            )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(metric.label, fontsize=9, color=INK)
    if metric.higher_is_better:
        axes.set_xlim(-0.02, 1.02)
    else:  # one organ found in the wrong place must not flatten all others
        axes.set_xscale("symlog", linthresh=5)
        largest = max((float(np.max(v, where=np.isfinite(v), initial=5)) for v in values.values()), default=5)
        ticks = [tick for tick in _TICKS_MM if tick <= 2 * largest]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(0, 1.2 * largest)
    return _png(figure)


def bland_altman_plot(
    volumes_ml: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    difference: str = "prediction - reference",
) -> bytes:
    """Per class (label -> first and second volumes): difference against mean, bias and limits of agreement."""
    columns = min(4, len(volumes_ml))
    rows = ceil(len(volumes_ml) / columns)
    figure = _figure(_WIDTH, 0.4 + 2.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(volumes_ml) :]:
        axes.set_visible(False)
    for axes, (label, (reference, prediction)) in zip(grid.flat, volumes_ml.items(), strict=False):
        _plain(axes)
        first, second = np.asarray(reference), np.asarray(prediction)
        axes.plot((first + second) / 2, second - first, ".", color=FIRST, alpha=0.7, markersize=4)
        result = bland_altman(first.tolist(), second.tolist())
        axes.axhline(0, color=QUIET, linewidth=0.8)
        if result.n > 1:
            axes.axhline(result.bias, color=SECOND, linewidth=1.2)
            axes.axhspan(result.low, result.high, color=SECOND, alpha=0.08, linewidth=0)
        axes.set_title(label, fontsize=8, color=INK)
        axes.tick_params(labelsize=6)
    figure.supxlabel("mean of both volumes (ml)", fontsize=8, color=INK)
    figure.supylabel(f"{difference} (ml)", fontsize=8, color=INK)
    return _png(figure)


def froc_plot(curves: Mapping[str, Sequence[FrocPoint]]) -> bytes:
    """Sensitivity per lesion against false positives per case, one line per class."""
    figure = _figure(_WIDTH * 0.7, 3.4)
    axes = _plain(figure.subplots(), "both")
    axes.set_prop_cycle(color=_LINES)
    for label, points in curves.items():
        ordered = sorted(points, key=lambda p: p.threshold, reverse=True)
        axes.plot([p.false_per_case for p in ordered], [p.sensitivity for p in ordered], ".-", label=label)
    axes.set_xscale("symlog", linthresh=FROC_RATES[0], base=2)
    axes.set_xticks(FROC_RATES, [f"{rate:g}" for rate in FROC_RATES])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false positives per case", fontsize=9, color=INK)
    axes.set_ylabel("sensitivity per lesion", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def difference_plot(rows: Mapping[str, Paired], label: str) -> bytes:
    """One line per class: the mean difference of two models with its 95 % interval; right of 0 the second is better."""
    figure = _figure(_WIDTH, 0.8 + 0.24 * max(3, len(rows)))
    axes = _plain(figure.subplots(), "x")
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, pair in enumerate(rows.values()):
        colour = FIRST if pair.low > 0 else SECOND if pair.high < 0 else QUIET
        axes.plot([pair.low, pair.high], [place, place], color=colour, linewidth=2)
        axes.plot(pair.difference, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=9, color=INK)
    return _png(figure)


def critical_difference_plot(ranking: Ranking) -> bytes:
    """Mean ranks on a line, best to the left; models joined by a bar do not differ (Demsar 2006)."""
    ordered = sorted(ranking.mean_rank, key=lambda model: ranking.mean_rank[model])
    ranks = [ranking.mean_rank[model] for model in ordered]
    figure = _figure(_WIDTH, 1.4 + 0.25 * len(ordered))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0.4, len(ordered) + 0.6)
    axes.set_ylim(-len(ordered) - 1, 1.8)
    axes.plot([1, len(ordered)], [0, 0], color=INK, linewidth=1)
    for tick in range(1, len(ordered) + 1):
        axes.plot([tick, tick], [0, 0.2], color=INK, linewidth=1)
        axes.annotate(str(tick), (tick, 0.3), ha="center", fontsize=8, color=INK)
    for line, (model, rank) in enumerate(zip(ordered, ranks, strict=True), start=1):
        left = line <= (len(ordered) + 1) // 2
        level, end = -line - 0.4, 0.5 if left else len(ordered) + 0.5
        axes.plot([rank, rank, end], [0, level, level], color=INK, linewidth=0.8)
        axes.annotate(
            f"{model}  {rank:.2f}", (end, level), ha="left" if left else "right", va="bottom", fontsize=8, color=INK
        )
    height = 0.0
    for i, rank in enumerate(ranks):
        last = max(j for j, other in enumerate(ranks) if other - rank <= ranking.critical_difference)
        joined_before = i > 0 and ranks[last] - ranks[i - 1] <= ranking.critical_difference
        if last > i and not joined_before:
            height -= 0.25
            ends = [rank - 0.03, ranks[last] + 0.03]
            axes.plot(ends, [height, height], color=SECOND, linewidth=4, solid_capstyle="butt")
    span = min(ranking.critical_difference, len(ordered) - 1)
    axes.plot([1, 1 + span], [1.2, 1.2], color=SECOND, linewidth=2)
    axes.annotate(f"critical difference {ranking.critical_difference:.2f}", (1, 1.35), fontsize=8, color=SECOND)
    return _png(figure)


@dataclass(frozen=True, eq=False)
class Picture:
    """A part of one case around one class, all arrays [X, Y, Z] with RAS axes and of one shape."""

    reference: BoolArray
    prediction: BoolArray
    image: npt.NDArray[Any] | None  # Hounsfield units
    spacing_mm: SpacingMm


def case_picture(picture: Picture) -> bytes:
    """Reference and prediction side by side, in the axial and the coronal slice in which they differ most.

    The patient's right is on the left of each picture. The thin line in either panel is the other side's outline.
    """
    x, y, z = (n * mm for n, mm in zip(picture.reference.shape, picture.spacing_mm, strict=True))
    tallest = max(y, z) / x  # of its width
    figure = _figure(_WIDTH, min(_TALLEST_PICTURE, 0.3 + tallest * (_WIDTH - 0.2) / 4))
    panels = figure.subplots(1, 4)
    differs = picture.reference ^ picture.prediction
    shown = differs if differs.any() else picture.reference
    for pair, axis, name in ((panels[:2], 2, "axial"), (panels[2:], 1, "coronal")):
        place = int(shown.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        slices = [np.take(m, place, axis=axis) for m in (picture.reference, picture.prediction)]
        back = None if picture.image is None else np.take(picture.image, place, axis=axis)
        x_mm, y_mm = (s for a, s in enumerate(picture.spacing_mm) if a != axis)
        for axes, side, colour in zip(pair, (0, 1), (FIRST, SECOND), strict=True):
            axes.set_anchor("N")
            colours = (FIRST, SECOND) if back is None else (FIRST_ON_CT, SECOND_ON_CT)
            _mask_panel(axes, slices[side], slices[1 - side], back, y_mm / x_mm, colours[side], colours[1 - side])
            axes.set_title(f"{name}: {('reference', 'prediction')[side]}", fontsize=8, color=colour)
    return _png(figure)


def _mask_panel(
    axes: Axes,
    own: BoolArray,
    other: BoolArray,
    image: npt.NDArray[Any] | None,
    aspect: float,
    colour: str,
    other_colour: str,
) -> None:
    """One slice [X, up] seen from the feet or the front: x from the patient's right (left of the panel) to the left."""
    from matplotlib.colors import to_rgba

    options: dict[str, Any] = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
    if image is None:
        axes.imshow(np.full(own.T.shape, 0.93), cmap="gray", vmin=0, vmax=1, **options)
    else:
        axes.imshow(image[::-1].T, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], **options)
    overlay = np.zeros((*own.T.shape, 4))
    overlay[own[::-1].T] = to_rgba(colour, 0.4 if image is not None else 0.8)
    axes.imshow(overlay, **options)
    if other.any() and not other.all():
        axes.contour(other[::-1].T.astype(float), levels=[0.5], colors=[other_colour], linewidths=0.9)
    axes.set_xticks([])
    axes.set_yticks([])
    for x, letter, side in ((0.02, "R", "left"), (0.98, "L", "right")):
        mark = INK if image is None else "#ffffff"
        axes.text(x, 0.02, letter, transform=axes.transAxes, ha=side, va="bottom", fontsize=7, color=mark)
