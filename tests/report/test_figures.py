"""The preview picture: what is drawn, where, and on which side of the patient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from viscera.errors import OutputError
from viscera.report.figures import PREVIEW_WINDOW_HU, informative_slices, preview
from viscera.taxonomy import taxonomy

LIVER, SPLEEN = taxonomy()["liver"], taxonomy()["spleen"]
SHAPE = (40, 30, 20)  # x, y, z: no two sides are alike
SPACING_MM = (1.0, 2.0, 5.0)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Draws a preview and gives back the figure that went into the file."""
    figures: list[Figure] = []
    real = Figure.savefig

    def keeping(self: Figure, *arguments: Any, **more: Any) -> None:
        figures.append(self)
        real(self, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", keeping)

    def draw(labels: npt.NDArray[np.uint8], hu: npt.NDArray[Any] | None = None, **more: Any) -> Figure:
        image = np.full(labels.shape, 40, np.int16) if hu is None else hu
        spacing_mm = more.pop("spacing_mm", SPACING_MM)
        found = [s for s in (SPLEEN, LIVER) if (labels == s.id).any()]
        preview(image, labels, spacing_mm, found, tmp_path / "preview.png", **more)
        return figures[-1]

    return draw


def panels(figure: Figure, plane: str) -> list[Any]:
    """The pictures of one plane."""
    return [axes for axes in figure.axes if any(text.get_text().startswith(plane) for text in axes.texts)]


def panels_with_liver(figure: Figure, plane: str) -> list[Any]:
    """Those of them that show the liver; at least one."""
    colour = np.array(LIVER.colour) / 255
    shown = [a for a in panels(figure, plane) if np.isclose(a.images[0].get_array(), colour, atol=1e-3).all(2).any()]
    assert shown
    return shown


def written(axes: Any) -> dict[str, tuple[float, float]]:
    """Where each text of a panel stands: parts of its width from the left and of its height from below."""
    return {text.get_text(): text.get_position() for text in axes.texts}


def middle_of(axes: Any, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Where a class lies in a panel, by the colour of its outline: parts from the left and from above."""
    picture = np.asarray(axes.images[0].get_array())
    places = np.argwhere(np.isclose(picture, np.array(colour) / 255, atol=1e-3).all(axis=2))
    assert len(places), "the class is not in this picture"
    down, right = (places + 0.5).mean(axis=0) / picture.shape[:2]
    return (float(right), float(down))


def corner(right: bool, front: bool, head: bool) -> npt.NDArray[np.uint8]:
    """A label map with the liver in one corner of the body; x grows to the right, y to the front, z to the head."""
    labels = np.zeros(SHAPE, np.uint8)
    x, y, z = (slice(-8, -2) if far else slice(2, 8) for far in (right, front, head))
    labels[x, y, z] = LIVER.id
    return labels


def test_the_file_is_a_picture_that_shows_something(tmp_path):
    hu = np.random.default_rng(0).normal(40, 100, SHAPE).astype(np.int16)
    preview(hu, corner(True, True, True), SPACING_MM, [LIVER], tmp_path / "preview.png", title="ct.nii.gz")
    picture = imread(tmp_path / "preview.png")[..., :3]
    assert picture.shape[0] > 600 and picture.shape[1] > 1000
    assert picture.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_patients_right_is_on_the_left_and_marked_so(drawn, plane, right):
    for axes in panels_with_liver(drawn(corner(right, True, True)), plane):
        assert written(axes)["R"][0] < 0.5 < written(axes)["L"][0]
        side = "R" if right else "L"
        assert (middle_of(axes, LIVER.colour)[0] < 0.5) == (written(axes)[side][0] < 0.5)


@pytest.mark.parametrize("front", [True, False])
def test_the_front_is_on_top_of_axial_and_on_the_left_of_sagittal_pictures(drawn, front):
    figure = drawn(corner(True, front, True))
    for axes in panels_with_liver(figure, "axial"):
        assert written(axes)["A"][1] > 0.5
        assert (middle_of(axes, LIVER.colour)[1] < 0.5) == front
    for axes in panels_with_liver(figure, "sagittal"):
        assert written(axes)["A"][0] < 0.5 < written(axes)["P"][0]
        assert (middle_of(axes, LIVER.colour)[0] < 0.5) == front


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_the_head_is_on_top(drawn, plane, head):
    for axes in panels_with_liver(drawn(corner(True, True, head)), plane):
        assert written(axes)["S"][1] > 0.5
        assert (middle_of(axes, LIVER.colour)[1] < 0.5) == head


def test_there_are_two_pictures_of_each_plane_in_the_bodys_proportions(drawn):
    """The body is 40 x 60 x 100 mm, whatever its voxels are."""
    figure = drawn(corner(True, True, True))
    for plane, size_mm in {"axial": (40, 60), "coronal": (40, 100), "sagittal": (60, 100)}.items():
        pair = panels(figure, plane)
        assert len(pair) == 2
        for axes in pair:
            assert (np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())) == size_mm
            assert axes.get_aspect() in (1, "equal")


def test_grey_values_are_those_of_the_abdominal_window(drawn):
    low, high = PREVIEW_WINDOW_HU
    assert (low, high) == (-160, 240)
    hu = np.full(SHAPE, 40, np.int16)
    hu[:, :, 10:] = 3000
    hu[:, :, :5] = -1000
    (axes, _) = panels(drawn(np.zeros(SHAPE, np.uint8), hu), "coronal")
    picture = np.asarray(axes.images[0].get_array())
    assert picture[0].min() == 1 and picture[-1].max() == 0  # the head is white, the feet are black
    assert np.allclose(picture[12], 0.5)


def test_the_legend_names_what_is_there_and_nothing_else(drawn):
    def named(labels: npt.NDArray[np.uint8]) -> list[str]:
        legend = drawn(labels).axes[-1]
        return [text.get_text() for text in (legend.get_legend().get_texts() if legend.get_legend() else legend.texts)]

    assert named(corner(True, True, True)) == ["liver"]
    assert named(np.zeros(SHAPE, np.uint8)) == ["nothing was found"]


def test_title_and_warning_are_on_the_picture(drawn):
    texts = [t.get_text() for t in drawn(corner(True, True, True), title="ct.nii.gz", note="UNTRAINED weights").texts]
    assert texts == ["ct.nii.gz", "UNTRAINED weights"]
    (_, long) = drawn(corner(True, True, True), note="word " * 100).texts
    assert len(long.get_text()) < 130


@pytest.mark.parametrize("shape", [(1, 30, 20), (40, 1, 20), (40, 30, 1), (1, 1, 1), (2, 3, 200), (300, 2, 2)])
@pytest.mark.parametrize("found", [True, False])
def test_odd_shapes_are_drawn(drawn, tmp_path, shape, found):
    figure = drawn(np.full(shape, LIVER.id if found else 0, np.uint8), spacing_mm=(1.0, 1.0, 1.0))
    assert [len(panels(figure, plane)) for plane in ("axial", "coronal", "sagittal")] == [2, 2, 2]
    assert imread(tmp_path / "preview.png").std() > 0


def test_the_picture_does_not_need_a_stored_order(drawn):
    """A scan in another axis order comes as a view that is not contiguous."""
    labels = corner(True, False, True)
    view = np.ascontiguousarray(labels.transpose(2, 0, 1)[::-1])[::-1].transpose(1, 2, 0)
    straight, turned = (np.asarray(panels(drawn(x), "axial")[0].images[0].get_array()) for x in (labels, view))
    assert np.array_equal(straight, turned)


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        preview(np.zeros(SHAPE), np.zeros(SHAPE, np.uint8), SPACING_MM, [LIVER], tmp_path / "file" / "preview.png")


# --- which slices ----------------------------------------------------------------------------------------------------


def test_the_slices_shown_are_those_with_most_classes_apart_from_each_other():
    labels = np.zeros((10, 10, 30), np.uint8)
    labels[1:9, 1:9, 5:8] = LIVER.id
    labels[2, 2, 6] = SPLEEN.id  # the only slice with two classes
    labels[4:6, 4:6, 20] = LIVER.id
    assert informative_slices(labels, 2) == (20, 6)


def test_without_a_class_the_slices_are_at_the_thirds():
    assert informative_slices(np.zeros((30, 12, 9), np.uint8), 0) == (10, 20)
    assert informative_slices(np.zeros((30, 12, 1), np.uint8), 2) == (0, 0)


@pytest.mark.parametrize(("where", "slices"), [(20, (20, 10)), (3, (20, 3)), (29, (29, 10))])
def test_beside_a_class_in_one_slice_the_scan_is_shown(where, slices):
    labels = np.zeros((10, 10, 30), np.uint8)
    labels[4:6, 4:6, where] = LIVER.id
    assert informative_slices(labels, 2) == slices
    assert informative_slices(labels[..., where : where + 1], 2) == (0, 0)
