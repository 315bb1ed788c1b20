"""Quality flags on cases made by hand, and on real scans that deserve none."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.phantoms import GRIDS
from tests.workflow.conftest import SPACING_MM, BandNetwork, phantom_hu
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.report.findings import Crop, findings_csv, measure, write_findings
from viscera.report.flags import organ_flags, scan_flags
from viscera.shapes import Box
from viscera.taxonomy import read_table, taxonomy
from viscera.workflow.scan import SegmentSettings, segment_scan

SHAPE = (20, 20, 20)
LIVER, TUMOUR = taxonomy()["liver"], taxonomy()["liver_tumor"]
PLAIN = SegmentSettings(post=False)


@pytest.fixture
def bands():
    return BandNetwork()


@pytest.fixture
def phantom():
    return Volume(phantom_hu(), np.diag([*SPACING_MM, 1.0]))


def keys(flags):
    return [flag.key for flag in flags]


def organ(structure=LIVER, volume_ml=1500.0, *, touches_border=False, **more):
    return organ_flags(structure, volume_ml, touches_border=touches_border, **more)


# --- one class -------------------------------------------------------------------------------------------------------


def test_a_plausible_organ_has_no_flag():
    assert organ(mean_probability=0.95) == ()


def test_what_was_not_found_has_no_flag():
    assert organ(volume_ml=0.0, mean_probability=math.nan) == ()


@pytest.mark.parametrize(
    ("volume_ml", "touches_border", "expected"),
    [
        (499.0, False, ["implausible_volume"]),
        (500.0, False, []),
        (4500.0, False, []),
        (4501.0, False, ["implausible_volume"]),
        (499.0, True, ["cut_by_scan"]),  # the rest lies outside the scan
        (4501.0, True, ["cut_by_scan", "implausible_volume"]),
    ],
)
def test_the_liver_of_an_adult_has_500_to_4500_ml(volume_ml, touches_border, expected):
    assert keys(organ(volume_ml=volume_ml, touches_border=touches_border)) == expected


def test_the_sentence_says_what_was_measured_and_what_is_usual():
    (flag,) = organ(volume_ml=310.4)
    assert "The liver measures 310 ml" in flag.sentence and "500 to 4500 ml" in flag.sentence
    assert flag.remark == "adults have 500-4500 ml"


def test_no_volume_of_a_tumour_is_implausible():
    assert organ(TUMOUR, 0.01) == organ(TUMOUR, 9000.0) == ()


@pytest.mark.parametrize(
    ("probability", "threshold", "expected"),
    [
        (0.64, 0.5, ["low_probability"]),
        (0.66, 0.5, []),
        (0.40, 0.3, ["low_probability"]),  # odds 0.67 over 0.43: 0.609 on the common scale
        (0.50, 0.3, []),  # odds 1 over 0.43: 0.7
        (0.93, 0.9, ["low_probability"]),  # odds 13.3 over 9: 0.596
        (1.0, 0.5, []),
        (math.nan, 0.5, []),
    ],
)
def test_a_probability_is_low_when_it_lies_near_the_classs_threshold(probability, threshold, expected):
    assert keys(organ(mean_probability=probability, threshold=threshold)) == expected


def test_measuring_flags_a_class_at_once():
    """8000 voxels of 27 mm³ are 216 ml of liver, and they reach every side of the scan."""
    found = measure(
        LIVER,
        Crop(Box.whole(SHAPE), np.ones(SHAPE, bool)),
        np.zeros(SHAPE),
        np.diag([3.0, 3, 3, 1]),
        mean_probability=0.4,
        threshold=0.3,
    )
    assert keys(found.flags) == ["cut_by_scan", "low_probability"]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", ["first", "last"])
def test_an_organ_at_the_edge_of_a_filled_region_is_cut(axis, end):
    """Three slices of the scan are filling; the organ begins at the fourth."""
    mask = np.zeros(SHAPE, bool)
    mask[5:9, 5:9, 5:9] = True
    mask = np.roll(mask, -2 if end == "first" else 8, axis)  # now from 3 to 6, or from 13 to 16
    span = (3, 20) if end == "first" else (0, 17)
    imaged = Box(
        tuple(span[0] if a == axis else 0 for a in range(3)), tuple(span[1] if a == axis else 20 for a in range(3))
    )
    box = Box.around(mask)
    crop = Crop(box, mask[box.slices])
    for part, expected in ((imaged, True), (None, False)):
        found = measure(LIVER, crop, np.zeros(SHAPE), np.diag([1.0, 1, 1, 1]), imaged=part)
        assert found.touches_border is expected


# --- the whole scan --------------------------------------------------------------------------------------------------


def body(fat=0.2, soft=0.5, rest_hu=500.0, shape=(50, 50, 50)):
    """A scan of which these shares (of all that is no air) are fat and soft tissue; half of it is air."""
    n = int(np.prod(shape)) // 2
    dense = np.full(n, rest_hu)
    dense[: int(fat * n)] = -100
    dense[int(fat * n) : int(fat * n) + int(soft * n)] = 40
    hu = np.concatenate([np.full(int(np.prod(shape)) - n, -1000.0), dense])
    return np.random.default_rng(0).permutation(hu).reshape(shape)


def of_scan(hu, voxel_mm3=27.0, asked=10, found=10):
    return keys(scan_flags(hu, voxel_mm3, organs_asked=asked, organs_found=found))


def test_fat_and_soft_tissue_make_a_body():
    assert of_scan(body()) == []


@pytest.mark.parametrize(
    "hu",
    [
        body(fat=0.0, soft=1.0),  # a water phantom
        body(fat=0.3, soft=0.1),
        body(fat=0.1, soft=0.2),  # mostly bone, or metal
        np.full((40, 40, 40), -1000.0),
        np.random.default_rng(0).uniform(-1000, 1000, (60, 60, 60)),
    ],
    ids=["water", "hardly soft", "mostly bone", "air", "noise"],
)
def test_what_is_no_body_is_told(hu):
    assert of_scan(hu) == ["not_body_ct"]


def test_a_thimble_is_no_body():
    """62 500 dense voxels: 62.5 ml at 1 mm, 500 ml at 2 mm."""
    assert of_scan(body(), voxel_mm3=1.0) == ["not_body_ct"]
    assert of_scan(body(), voxel_mm3=8.0) == []


def test_a_large_scan_is_judged_by_a_raster_of_its_voxels():
    assert of_scan(body(shape=(130, 130, 130))) == []


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [(5, 0, ["nothing_found"]), (4, 0, []), (25, 1, []), (0, 0, [])],  # 0 asked: only tumours were
)
def test_nothing_found_counts_only_where_much_was_asked(asked, found, expected):
    assert of_scan(body(), asked=asked, found=found) == expected


def test_real_scans_whole_and_cropped_are_bodies(shared_dir):
    paths = [shared_dir / "data" / name for name in ("abdomen_pelvis_3mm/ct.nii.gz", "aorta_crop/ct.nii.gz")]
    paths += [shared_dir / "data/pulmonary_crop/ct.nii.gz", shared_dir / "data/dicom_series_20"]
    for path in paths:
        volume = read_volume(path)
        assert of_scan(volume.array, volume.voxel_volume_mm3) == [], path


# --- through the program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [False, True])
def test_that_nothing_was_found_is_no_news_of_untrained_weights(bands, phantom, trained):
    bands.config = replace(bands.config, trained=trained, classes=taxonomy().keys[:6])
    bands.decode = lambda features, embedding, classes: features[:, :1].repeat(1, len(classes), 1, 1, 1) * 0 - 9
    assert ("nothing_found" in keys(segment_scan(phantom, bands, PLAIN).flags)) is trained


def test_only_classes_that_were_asked_for_are_flagged(bands, phantom):
    """The liver has 27 ml and the kidneys 4 and 3; for the tumour the kidneys are computed, but not asked for."""
    by_key = {f.key: keys(f.flags) for f in segment_scan(phantom, bands, PLAIN).findings}
    assert by_key["liver"] == by_key["left_kidney"] == by_key["right_kidney"] == ["implausible_volume"]
    (tumour,) = segment_scan(phantom, bands, SegmentSettings(classes="kidney tumor")).findings
    assert keys(tumour.flags) == []


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, False), (1 - 6e-5, True)])
def test_the_threshold_of_the_model_is_the_one_that_counts(bands, phantom, threshold, expected):
    """The network's logit is 10 in the liver; a threshold of 1 - 6e-5 lies at 9.7, and 0.3 above it is little."""
    bands.config = replace(bands.config, thresholds={"liver": threshold})
    liver = next(f for f in segment_scan(phantom, bands, PLAIN).findings if f.key == "liver")
    assert ("low_probability" in keys(liver.flags)) is expected


def test_a_scan_that_ends_in_filling_cuts_its_organs(bands):
    hu = phantom_hu()
    hu[:, :, 16:] = 0  # the liver filled slices 12 to 18
    result = segment_scan(Volume(hu, GRIDS["plain"]), bands, PLAIN)
    liver = next(f for f in result.findings if f.key == "liver")
    assert liver.touches_border and "cut_by_scan" in keys(liver.flags)


def test_the_flags_of_the_scan_are_in_every_file(bands, phantom, tmp_path):
    """A phantom of 20 HU everywhere holds no fat."""
    result = segment_scan(phantom, bands, PLAIN)
    assert keys(result.flags) == ["not_body_ct"]
    result.save(tmp_path / "out")
    findings = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))
    assert [flag["key"] for flag in findings["flags"]] == ["not_body_ct"]
    assert result.flags[0].sentence in json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "findings.csv").read_text(encoding="utf-8"))))
    assert {row["scan_flags"] for row in rows} == {"not_body_ct"}


def test_a_class_has_its_flags_in_both_files(tmp_path):
    found = measure(LIVER, Crop(Box.whole(SHAPE), np.ones(SHAPE, bool)), np.zeros(SHAPE), np.diag([9.0, 9, 9, 1]))
    assert keys(found.flags) == ["cut_by_scan", "implausible_volume"]
    write_findings([found], tmp_path)
    (row,) = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))["findings"]
    assert [flag["key"] for flag in row["flags"]] == keys(found.flags)
    assert all(flag["sentence"].startswith("The ") for flag in row["flags"])
    (line,) = csv.DictReader(io.StringIO(findings_csv([found])))
    assert (line["flags"], line["scan_flags"]) == ("cut_by_scan;implausible_volume", "")


def test_every_flag_is_explained():
    page = (REPOSITORY / "docs/how-to/results.md").read_text(encoding="utf-8")
    for part in read_table("flags.toml").values():
        assert all(f"`{key}`" in page for key in part)
