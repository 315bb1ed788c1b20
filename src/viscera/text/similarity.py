"""What a bank takes to be alike: cosines between classes, as numbers and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import SettingError
from viscera.io.atomic import whole_file, write_pieces
from viscera.taxonomy import taxonomy
from viscera.text.bank import NO_PROMPT, Bank

_LESION_COLOUR = "#b3123f"


def cosines(bank: Bank) -> npt.NDArray[np.float64]:
    """[N, N], -1 to 1: the cosine of every two label vectors. Raises SettingError if a vector is zero."""
    vectors = bank.vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise SettingError(f"The vector of {bank.keys[int(lengths.argmin())]} is zero: it has no direction to compare.")
    unit = vectors / lengths
    return np.asarray(np.clip(unit @ unit.T, -1, 1))


def mean_cosine(bank: Bank) -> float:
    """Mean over all pairs of two different classes; 1 where all vectors are parallel."""
    return float(cosines(bank)[np.triu_indices(len(bank.keys), k=1)].mean())


def closest(bank: Bank) -> tuple[str, str, float]:
    """The two classes that are most alike, and their cosine."""
    pairs = np.triu(cosines(bank) + 2, k=1)  # + 2: every pair above the zeros of the other half
    one, other = np.unravel_index(int(pairs.argmax()), pairs.shape)
    return bank.keys[one], bank.keys[other], float(pairs[one, other] - 2)


def title(bank: Bank) -> str:
    """How people tell one bank from another: encoder, prompt and finish."""
    return ", ".join([bank.encoder_name, *([bank.prompt] if bank.prompt != NO_PROMPT else []), str(bank.finish)])


def save_table(banks: Sequence[Bank], path: Path) -> None:
    """Write a CSV with a row for every two classes and their cosine in each bank, most alike in the first bank first.

    Raises SettingError if the banks hold different classes, OutputError if the file cannot be written.
    """
    _check_same_classes(banks)
    keys = banks[0].keys
    first, second = np.triu_indices(len(keys), k=1)
    columns = [cosines(bank)[first, second] for bank in banks]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "other", *map(title, banks)])
    for i in np.argsort(-columns[0], kind="stable"):
        writer.writerow([keys[first[i]], keys[second[i]], *(f"{column[i]:.4f}" for column in columns)])
    write_pieces(path, [text.getvalue().encode()])


def save_picture(banks: Sequence[Bank], path: Path) -> None:
    """Draw a heat map of the cosines with a tree of likeness beside it, one column per bank, as PNG.

    The tree joins the most alike first (average linkage of 1 - cosine) and gives the order of the classes.
    Raises SettingError if the banks hold different or fewer than two classes, OutputError if it cannot be written.
    """
    from matplotlib.figure import Figure

    _check_same_classes(banks)
    if len(banks[0].keys) < 2:
        raise SettingError("A picture of likeness needs at least two classes.")
    side_inches = 2.5 + 0.24 * len(banks[0].keys)
    figure = Figure(figsize=((side_inches + 3.2) * len(banks), side_inches), layout="constrained")
    for bank, part in zip(banks, figure.subfigures(1, len(banks), squeeze=False)[0], strict=True):
        _draw(bank, part)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw(bank: Bank, part: Any) -> None:
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    likeness = cosines(bank)
    tree_axes, map_axes = part.subplots(1, 2, width_ratios=[1, 4])
    distances = squareform(np.maximum(1 - likeness, 0), checks=False)
    tree = dendrogram(
        linkage(distances, method="average"),
        orientation="left",
        no_labels=True,
        ax=tree_axes,
        color_threshold=0,
        above_threshold_color="#555555",
    )
    order = tree["leaves"] or []
    tree_axes.invert_yaxis()  # the first leaf on top, as in the map
    tree_axes.set_xlim(right=0)
    tree_axes.set_xlabel("1 - cosine")
    tree_axes.spines[["top", "left", "right"]].set_visible(False)
    image = map_axes.imshow(likeness[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    names = [taxonomy()[bank.keys[i]].name for i in order]
    places = range(len(names))
    map_axes.set_xticks(places, names, rotation=90, fontsize=7)
    map_axes.yaxis.tick_right()  # the tree touches the map's left side
    map_axes.set_yticks(places, names, fontsize=7)
    for label, i in zip([*map_axes.get_xticklabels(), *map_axes.get_yticklabels()], [*order, *order], strict=True):
        if taxonomy()[bank.keys[i]].is_lesion:
            label.set_color(_LESION_COLOUR)
    part.colorbar(image, ax=map_axes, shrink=0.6, label="cosine")
    part.suptitle(f"{title(bank)}\nmean over all pairs {mean_cosine(bank):.2f}", fontsize=10)


def _check_same_classes(banks: Sequence[Bank]) -> None:
    for bank in banks[1:]:
        if bank.keys != banks[0].keys:
            raise SettingError(f"{title(bank)} holds other classes than {title(banks[0])}, or another order.")
