"""The preview: three planes of a scan with the classes coloured, hung as radiologists hang them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.io.aside import in_slabs
from viscera.io.atomic import whole_file
from viscera.shapes import SpacingMm
from viscera.taxonomy import Structure

PREVIEW_WINDOW_HU = (-160.0, 240.0)  # level 40, width 400: the usual abdominal window
_FILL = 0.35  # opacity of a class; its outline is opaque
_BACKGROUND = "#111111"


@dataclass(frozen=True)
class Plane:
    """One way to cut [X, Y, Z] (RAS) and to show it."""

    name: str
    axis: int  # the axis cut across
    across: int  # the axis along the picture's width
    up: int  # the axis along its height
    mirrored: bool  # whether the width runs against its axis
    marks: tuple[str, str, str]  # what is on the left, on the right and on top of the picture


# Radiological convention: axial seen from the feet, coronal from the front: the patient's right is on the picture's
# left. Sagittal seen from the patient's left: the front is on the picture's left.
PLANES = (
    Plane("axial", 2, 0, 1, True, ("R", "L", "A")),
    Plane("coronal", 1, 0, 2, True, ("R", "L", "S")),
    Plane("sagittal", 0, 1, 2, True, ("A", "P", "S")),
)


def ready_to_draw() -> None:
    """Loads the drawing library, which takes half a second: to be called where nothing else is done meanwhile."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def preview(
    hu: npt.NDArray[Any],
    label_map: npt.NDArray[np.unsignedinteger],
    spacing_mm: SpacingMm,
    structures: Sequence[Structure],
    path: str | Path,
    *,
    title: str = "",
    note: str = "",
) -> None:
    """Writes a PNG with two cuts of each plane, legend, and the patient's sides marked.

    hu, label_map  [X, Y, Z], RAS axes; the label map holds class ids
    structures     the classes that appear, for the legend
    note           a warning shown in red, e.g. that the weights are untrained
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = np.zeros((256, 3))
    for s in structures:
        colours[s.id] = np.array(s.colour) / 255

    size_mm = [n * mm for n, mm in zip(hu.shape, spacing_mm, strict=True)]
    widths = [size_mm[plane.across] for plane in PLANES]
    figure = Figure(figsize=(15, 8.2), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2,
        4,
        width_ratios=[*[max(w, 0.25 * max(widths)) for w in widths], 0.75 * max(widths)],
        wspace=0.03,
        hspace=0.08,
        left=0.01,
        right=0.99,
        top=0.92,
        bottom=0.02,
    )
    for column, plane in enumerate(PLANES):
        for row, index in enumerate(informative_slices(label_map, plane.axis)):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, plane, index, hu, label_map, spacing_mm, colours)
    legend = figure.add_subplot(grid[:, 3])
    legend.axis("off")
    if structures:
        handles = [Patch(color=colours[s.id], label=s.name) for s in structures]
        legend.legend(
            handles=handles,
            loc="upper left",
            ncols=1 if len(structures) <= 24 else 2,
            fontsize=9,
            frameon=False,
            labelcolor="white",
            borderaxespad=0,
        )
    else:
        legend.text(0, 1, "nothing was found", color="white", va="top")
    figure.text(0.01, 0.965, title, color="white", fontsize=13, va="center")
    if note:
        figure.text(0.99, 0.965, _short(note), color="#ff6b6b", fontsize=11, va="center", ha="right")
    with whole_file(path) as unfinished:
        quick = {"compress_level": 3}  # half the time of the usual 6, and the file is no larger
        figure.savefig(unfinished, dpi=100, facecolor=_BACKGROUND, format="png", pil_kwargs=quick)


def _short(note: str, most: int = 120) -> str:
    """The note's first sentence, cut at a word if it is long."""
    first = note.split(". ")[0].split(": ")[0] if len(note) > most else note
    return first if len(first) <= most else first[: most - 1].rsplit(" ", 1)[0] + " ..."


def informative_slices(label_map: npt.NDArray[np.unsignedinteger], axis: int) -> tuple[int, int]:
    """Two slices across `axis` that show most: many classes first, then much area; apart by a sixth of the axis.

    Where classes lie in one place only, the other slice shows the scan: that at one or at two thirds of the axis, the
    one further away. Without any class: both of these.
    """
    slices = np.moveaxis(label_map, axis, 0)
    n = len(slices)
    step = [max(1, side // 128) for side in slices.shape[1:]]
    score = np.zeros(n)
    for i, cut in enumerate(slices):
        counts = np.bincount(cut[:: step[0], :: step[1]].ravel())[1:]
        if counts.any():
            score[i] = (counts > 0).sum() + counts.sum() / cut.size
    if not score.any():
        return n // 3, (2 * n) // 3
    first = int(score.argmax())
    far = np.abs(np.arange(n) - first) >= max(1, n // 6)
    if score[far].any():
        second = int(np.where(far, score, -1).argmax())
    else:
        second = max(n // 3, (2 * n) // 3, key=lambda i: abs(i - first))
    # The upper (more right, more anterior) slice first.
    return max(first, second), min(first, second)


def _show(
    axes: Any,
    plane: Plane,
    index: int,
    hu: npt.NDArray[Any],
    label_map: npt.NDArray[np.unsignedinteger],
    spacing_mm: SpacingMm,
    colours: npt.NDArray[np.float64],
) -> None:
    """One cut as a picture: grey values in the window, classes filled and outlined, sides marked."""
    order = [axis for axis in (plane.up, plane.across)]

    def cut(array: npt.NDArray[Any]) -> Any:
        if plane.axis == 2:
            flat = array[:, :, index]
        else:
            parts = [np.moveaxis(part, plane.axis, 0)[index].copy() for _, part in in_slabs(array)]
            flat = np.concatenate(parts, axis=-1)
        rest = [axis for axis in range(3) if axis != plane.axis]
        picture = flat.transpose([rest.index(axis) for axis in order])[::-1]  # row 0 is the top
        return picture[:, ::-1] if plane.mirrored else picture

    low, high = PREVIEW_WINDOW_HU
    grey = np.clip((cut(hu).astype(np.float32) - low) / (high - low), 0, 1)
    labels = cut(label_map)
    picture = np.repeat(grey[..., None], 3, axis=2)
    inside = labels > 0
    picture[inside] = (1 - _FILL) * picture[inside] + _FILL * colours[labels[inside]]
    edge = inside & _outline(labels)
    picture[edge] = colours[labels[edge]]
    extent = (0, picture.shape[1] * spacing_mm[plane.across], 0, picture.shape[0] * spacing_mm[plane.up])
    axes.imshow(picture, extent=extent, interpolation="nearest")
    axes.set_anchor("C")
    axes.axis("off")
    left, right, top = plane.marks
    style = {"color": "#ffd166", "fontsize": 12, "fontweight": "bold", "transform": axes.transAxes}
    axes.text(0.015, 0.5, left, ha="left", va="center", **style)
    axes.text(0.985, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 0.985, top, ha="center", va="top", **style)
    axes.text(
        0.015, 0.015, f"{plane.name} {index}", ha="left", va="bottom", **{**style, "color": "white", "fontsize": 8}
    )


def _outline(labels: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour of another class to the right, left, above or below."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels.astype(np.int32), axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= differs
        edge[tuple(second)] |= differs
    return edge
