"""What is told of a mask, against answers worked out by hand from voxels and millimetres."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial import KDTree

from tests.phantoms import GRIDS, grid, stored_as
from tests.workflow.conftest import BandNetwork, phantom_hu
from viscera.io.volume import Volume
from viscera.report.findings import COLUMNS, Crop, Finding, _longest, findings_csv, measure, write_findings
from viscera.shapes import Box
from viscera.taxonomy import taxonomy
from viscera.workflow.scan import segment_scan

SHAPE = (20, 20, 20)
Voxel = tuple[int, int, int]


def crop(*voxels: Voxel, shape: Voxel = SHAPE) -> Crop:
    """A class that holds exactly these voxels, in the tight box around them."""
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    box = Box.around(mask)
    return Crop(box, mask[box.slices])


def block(start: Voxel, stop: Voxel) -> Crop:
    """A class that fills a box."""
    return Crop(Box(start, stop), np.ones(Box(start, stop).shape, bool))


def measured(found: Crop, key: str = "liver_tumor", spacing_mm: tuple[float, float, float] = (1, 1, 1), **more: Any):
    hu = more.pop("hu", np.zeros(SHAPE, np.int16))
    return measure(taxonomy()[key], found, hu, np.diag([*spacing_mm, 1.0]), **more)


def lesion(found: Crop, spacing_mm: tuple[float, float, float] = (1, 1, 1)) -> Any:
    (only,) = measured(found, spacing_mm=spacing_mm).lesions
    return only


# --- volume and density ----------------------------------------------------------------------------------------------


def test_the_volume_is_the_voxels_times_their_size():
    found = measured(crop((3, 3, 3), (4, 3, 3), (5, 3, 3), (9, 9, 9), (9, 9, 12)), "liver", (2, 3, 4))
    assert found.volume_ml == pytest.approx(5 * 24 / 1000)


def test_a_sheared_voxel_has_the_volume_of_its_parallelepiped():
    """Slices 4 mm apart that lean by 3 mm have an edge of 5 mm; the voxel is still 2 x 2 x 4."""
    affine = np.array([[2.0, 0, 3, 0], [0, 2, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    found = measure(taxonomy()["liver"], crop((3, 3, 3), (4, 3, 3)), np.zeros(SHAPE), affine)
    assert found.volume_ml == pytest.approx(2 * 16 / 1000)


def test_density_is_that_of_the_classs_voxels_alone():
    hu = np.full(SHAPE, 1000, np.int16)
    hu[3, 3, 3], hu[4, 3, 3], hu[3, 4, 3] = 10, 20, 60
    hu[4, 4, 3] = -500  # inside the box, outside the class
    found = measured(crop((3, 3, 3), (4, 3, 3), (3, 4, 3)), "liver", hu=hu)
    assert found.mean_hu == pytest.approx(30)
    assert found.sd_hu == pytest.approx(math.sqrt((20**2 + 10**2 + 30**2) / 3))


def test_density_of_a_large_class_does_not_overflow():
    found = measured(block((0, 0, 0), SHAPE), "liver", hu=np.full(SHAPE, 3071, np.int16))
    assert (found.mean_hu, found.sd_hu) == (3071, 0)


def test_an_empty_class_has_volume_0_and_no_density_and_no_place():
    found = measured(Crop(Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), bool)))
    assert (found.volume_ml, found.components, found.lesions, found.centre_mm) == (0, 0, (), None)
    assert math.isnan(found.mean_hu) and math.isnan(found.sd_hu) and math.isnan(found.mean_probability)
    assert not found.touches_border


# --- parts -----------------------------------------------------------------------------------------------------------


def test_voxels_that_share_a_corner_are_one_part_and_a_gap_parts_them():
    assert measured(crop((3, 3, 3), (4, 4, 4)), "liver").components == 1
    assert measured(crop((3, 3, 3), (5, 3, 3)), "liver").components == 2


def test_an_organ_in_parts_has_no_lesions():
    assert measured(crop((3, 3, 3), (5, 3, 3)), "liver").lesions == ()


@pytest.mark.parametrize("key", ["liver_tumor", "kidney_cyst"])
def test_tumours_and_cysts_are_listed_the_largest_first(key):
    hu = np.zeros(SHAPE, np.int16)
    hu[1, 1, 1], hu[9, 9, 9], hu[9, 9, 10] = 7, 40, 50
    first, second, third = measured(crop((1, 1, 1), (9, 9, 9), (9, 9, 10), (15, 1, 1)), key, (1, 2, 5), hu=hu).lesions
    assert [x.number for x in (first, second, third)] == [1, 2, 3]
    assert [x.volume_ml for x in (first, second, third)] == pytest.approx([0.02, 0.01, 0.01])
    assert [x.mean_hu for x in (first, second, third)] == [45, 7, 0], "of equals, the first in scan order comes first"
    assert first.centre_mm == pytest.approx((9, 18, 47.5))


# --- diameters -------------------------------------------------------------------------------------------------------


def sizes(found: Any) -> tuple[float, float, float]:
    return (found.longest_diameter_mm, found.axial_diameter_mm, found.axial_width_mm)


def test_two_voxels_2_mm_apart_are_4_mm_long():
    """2 mm between the centres, and half a voxel of 2 mm on either end."""
    assert sizes(lesion(crop((3, 3, 3), (4, 3, 3)), (2, 2, 2))) == pytest.approx((4, 4, 2))


def test_two_voxels_above_each_other_are_long_but_not_within_a_slice():
    assert sizes(lesion(crop((3, 3, 3), (3, 3, 4)), (2, 2, 5))) == pytest.approx((7, 2, 2))


def test_a_diagonal_is_measured_in_mm_and_not_in_voxels():
    """3 mm across and 4 mm up is 5 mm; and one voxel of 3 mm."""
    assert sizes(lesion(crop((3, 3, 3), (4, 4, 3)), (3, 4, 10))) == pytest.approx((8, 8, 3))


def test_a_single_voxel_is_as_large_as_itself():
    assert sizes(lesion(crop((3, 3, 3)), (2, 3, 5))) == pytest.approx((2, 2, 2))


def test_the_width_stands_at_right_angles_to_the_length():
    plus = [(x, 5, 5) for x in range(3, 8)] + [(5, 4, 5), (5, 6, 5)]
    assert sizes(lesion(crop(*plus))) == pytest.approx((5, 5, 3))


def test_the_width_of_a_corner_is_the_height_over_its_longest_side():
    """Two legs of 8 and 4 mm: the corner stands 8 * 4 / √80 mm off the line between their ends."""
    legs = [(x, 4, 5) for x in range(4, 13)] + [(4, y, 5) for y in range(5, 9)]
    long = math.sqrt(80)
    assert sizes(lesion(crop(*legs))) == pytest.approx((long + 1, long + 1, 32 / long + 1))


def test_the_axial_diameter_is_that_of_the_slice_where_it_is_longest():
    steps = [(5, 5, 3), *((x, 5, 4) for x in range(4, 8)), (5, 5, 5), (6, 5, 5)]
    assert lesion(crop(*steps)).axial_diameter_mm == pytest.approx(4)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((12, 6, 3), (math.sqrt(90) + 1, math.sqrt(90) + 1, 2 * 27 / math.sqrt(90) + 1)),  # a plate 10 x 4 x 1
        ((3, 6, 12), (math.sqrt(90) + 1, 4, 1)),  # the same upright: 1 x 4 x 10
        ((18, 3, 3), (16, 16, 1)),  # a rod
        ((6, 6, 6), (math.sqrt(27) + 1, math.sqrt(18) + 1, math.sqrt(18) + 1)),  # a cube
    ],
)
def test_blocks_have_the_diameters_of_their_diagonals(stop, expected):
    start = (2, 2, 2)
    assert sizes(lesion(block(start, stop))) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["plain", "oblique"])
def test_a_turned_grid_does_not_change_diameters(name):
    """Grids of 3 x 3.5 x 5 mm: 6 mm in x and 3.5 mm in y, plus a voxel of 3 mm."""
    found = measure(taxonomy()["liver_tumor"], block((4, 4, 4), (7, 6, 5)), np.zeros(SHAPE), GRIDS[name])
    long = math.hypot(6, 3.5) + 3
    assert sizes(found.lesions[0])[:2] == pytest.approx((long, long))


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_centre_is_in_the_worlds_millimetres():
    affine = np.array([[2.0, 0, 0, -100], [0, 3, 0, 50], [0, 0, 4, 700], [0, 0, 0, 1]])
    found = measure(taxonomy()["liver"], crop((1, 2, 3), (3, 2, 3)), np.zeros(SHAPE), affine)
    assert found.centre_mm == pytest.approx((-96, 56, 712))


def test_the_centre_weighs_every_voxel_the_same():
    found = measured(crop((0, 5, 5), (10, 5, 5), (11, 5, 5), (12, 5, 5)), "liver")
    assert found.centre_mm == pytest.approx((33 / 4, 5, 5))


@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (False, False, False)), ((0, 1, 2), (True, True, False)), ((2, 0, 1), (True, False, True))],
)
def test_a_lesion_has_the_same_place_however_the_scan_is_stored(axes, flips):
    """The tumour fills x 22-23, y 8-9, z 6-7: its centre is 22.5, 8.5 and 6.5 steps from the corner."""
    stored, affine = stored_as(phantom_hu(), grid((3, 3, 3), (-40, 12, 700)), axes, flips)
    result = segment_scan(Volume(np.ascontiguousarray(stored), affine), BandNetwork())
    tumour = next(f for f in result.findings if f.key == "kidney_tumor")
    assert tumour.centre_mm == pytest.approx((-40 + 67.5, 12 + 25.5, 700 + 19.5))
    assert tumour.lesions[0].centre_mm == pytest.approx(tumour.centre_mm)
    assert tumour.lesions[0].host == "right_kidney"


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("at", [0, 19])
def test_a_class_on_a_face_of_the_scan_touches_the_border(axis, at):
    voxel = [10, 10, 10]
    voxel[axis] = at
    x, y, z = voxel
    assert measured(crop((x, y, z)), "liver").touches_border
    voxel[axis] = 1 if at == 0 else 18
    x, y, z = voxel
    assert not measured(crop((x, y, z)), "liver").touches_border


def test_a_box_on_the_border_with_nothing_on_it_does_not_touch():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    assert not measured(Crop(Box((0, 0, 0), (3, 3, 3)), mask), "liver").touches_border


def test_a_scan_of_one_slice_does_not_end_in_every_class():
    hu = np.zeros((20, 20, 1))
    assert not measured(crop((5, 5, 0), shape=(20, 20, 1)), "liver", hu=hu).touches_border
    assert measured(crop((0, 5, 0), shape=(20, 20, 1)), "liver", hu=hu).touches_border


# --- the organ a lesion lies in --------------------------------------------------------------------------------------


def host(found: Crop, spacing_mm: tuple[float, float, float] = (1, 1, 1), **organs: Crop) -> str | None:
    (only,) = measured(found, "kidney_tumor", spacing_mm, hosts=organs).lesions
    name: str | None = only.host
    return name


def test_the_host_is_the_organ_that_shares_most_voxels():
    tumour = block((5, 5, 5), (10, 6, 6))
    left, right = block((0, 5, 5), (7, 6, 6)), block((7, 5, 5), (20, 6, 6))
    assert host(tumour, left_kidney=left, right_kidney=right) == "right_kidney"
    assert host(tumour, left_kidney=right, right_kidney=left) == "left_kidney"


def test_an_organ_around_a_lesion_shares_nothing_with_it():
    """The left one lies on both sides of the tumour, and only its box holds it; the right one holds one voxel."""
    around = crop((2, 5, 5), (3, 5, 5), (16, 5, 5), (17, 5, 5))
    assert host(block((8, 5, 5), (11, 6, 6)), left_kidney=around, right_kidney=crop((10, 5, 5))) == "right_kidney"


def test_without_a_shared_voxel_the_host_is_the_nearest_in_mm():
    """Two slices of 10 mm are farther than three voxels of 1 mm."""
    across, above = crop((8, 5, 5)), crop((5, 5, 7))
    assert host(crop((5, 5, 5)), (1, 1, 10), left_kidney=above, right_kidney=across) == "right_kidney"
    assert host(crop((5, 5, 5)), (1, 1, 1), left_kidney=above, right_kidney=across) == "left_kidney"


def test_each_lesion_has_a_host_of_its_own():
    found = measured(
        crop((2, 5, 5), (17, 5, 5), (17, 6, 5)),
        "kidney_tumor",
        hosts={"left_kidney": block((0, 0, 0), (6, 20, 20)), "right_kidney": block((14, 0, 0), (20, 20, 20))},
    )
    assert [x.host for x in found.lesions] == ["right_kidney", "left_kidney"]


def test_an_organ_that_was_not_found_is_no_host():
    empty = Crop(Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), bool))
    assert host(crop((5, 5, 5))) is None
    assert host(crop((5, 5, 5)), left_kidney=empty) is None
    assert host(crop((5, 5, 5)), left_kidney=empty, right_kidney=crop((19, 19, 19))) == "right_kidney"


# --- noise -----------------------------------------------------------------------------------------------------------


def test_thousands_of_specks_are_told_apart_without_looking_at_an_organ_for_each(monkeypatch):
    """What a network with random weights gives. Counted are the searches and the voxels that they are made of."""
    made, real = [], KDTree
    monkeypatch.setattr("viscera.report.findings.KDTree", lambda points: made.append(len(points)) or real(points))
    specks = np.zeros((40, 40, 40), bool)
    specks[::3, ::3, ::3] = True
    left, right = block((0, 0, 0), (8, 40, 40)), block((35, 0, 0), (40, 40, 40))
    found = measured(
        Crop(Box.whole(specks.shape), specks),
        "kidney_tumor",
        hu=np.zeros(specks.shape),
        hosts={"left_kidney": left, "right_kidney": right},
    )
    assert found.components == len(found.lesions) == 14**3
    assert len(made) == 2 and sum(made) < left.mask.sum() + right.mask.sum()
    hosts = [(lesion.centre_mm[0], lesion.host) for lesion in found.lesions]
    assert all(host == ("left_kidney" if x <= 21 else "right_kidney") for x, host in hosts)


def test_a_lesion_as_large_as_the_scan_is_measured_by_the_ends_of_its_rows(monkeypatch):
    """A sponge of 32 thousand voxels in one piece, of which 3200 may be ends of a diameter."""
    seen, real = [], _longest
    monkeypatch.setattr("viscera.report.findings._longest", lambda points: seen.append(len(points)) or real(points))
    sponge = np.random.default_rng(0).random((40, 40, 40)) < 0.5
    sponge[0, 0, 0] = sponge[-1, -1, -1] = True
    found = measured(Crop(Box.whole(sponge.shape), sponge), "liver_tumor", hu=np.zeros(sponge.shape))
    assert max(seen) <= 2 * 40 * 40
    largest = found.lesions[0]
    assert largest.volume_ml * 1000 > 30_000
    assert largest.longest_diameter_mm == pytest.approx(39 * math.sqrt(3) + 1)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def findings() -> list[Finding]:
    hu: npt.NDArray[np.int16] = np.zeros(SHAPE, np.int16)
    hu[5, 5, 5] = 100
    return [
        measured(crop((5, 5, 5)), "liver", (10, 10, 10), hu=hu, mean_probability=0.75),
        measured(Crop(Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), bool)), "spleen"),
        measured(crop((5, 5, 5), (0, 9, 9)), "liver_tumor", (10, 10, 10), hu=hu, hosts={"liver": crop((5, 5, 5))}),
    ]


def test_findings_as_json_hold_everything_and_null_where_there_is_no_number(findings, tmp_path: Path):
    write_findings(findings, tmp_path)
    data = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert (data["schema"], data["frame"]) == ("viscera findings 1", "RAS mm")
    liver, spleen, tumour = data["findings"]
    assert (liver["id"], liver["key"], liver["kind"]) == (6, "liver", "organ")
    assert liver["volume_ml"] == pytest.approx(1)
    assert (liver["mean_hu"], liver["centre_mm"], liver["mean_probability"]) == (100, [50, 50, 50], 0.75)
    assert (spleen["volume_ml"], spleen["mean_hu"], spleen["centre_mm"]) == (0, None, None)
    assert [(x["number"], x["host"], x["mean_hu"]) for x in tumour["lesions"]] == [(1, "liver", 0), (2, "liver", 100)]
    assert tumour["touches_border"] is True


def test_findings_as_csv_have_a_row_a_class_and_a_row_a_lesion(findings, tmp_path: Path):
    write_findings(findings, tmp_path)
    with (tmp_path / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["key"], row["lesion"]) for row in rows] == [
        ("liver", ""), ("spleen", ""), ("liver_tumor", ""), ("liver_tumor", "1"), ("liver_tumor", "2"),
    ]  # fmt: skip
    assert float(rows[0]["volume_ml"]) == 1 and float(rows[0]["centre_z_mm"]) == 50
    assert (rows[1]["volume_ml"], rows[1]["mean_hu"], rows[1]["centre_x_mm"]) == ("0", "", "")
    assert (rows[3]["host"], rows[3]["longest_diameter_mm"], rows[3]["components"]) == ("liver", "10.00", "")


def test_no_findings_are_a_head_without_rows():
    assert findings_csv([]) == ",".join(COLUMNS) + "\n"
