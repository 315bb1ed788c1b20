"""One scan through the whole path, with a network whose answer is known."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from viscera.errors import ClassNameError, OutputError, SettingError
from viscera.io.volume import Volume
from viscera.taxonomy import taxonomy
from viscera.workflow.outputs import is_whole
from viscera.workflow.scan import SaveSettings, SegmentSettings, segment_scan

from .conftest import BANDS, SHAPE, BandNetwork, phantom_hu

PLAIN = SegmentSettings(post=False)


def expected():
    hu = phantom_hu()
    label_map = np.zeros(SHAPE, np.uint8)
    for key, (low, high) in BANDS.items():
        label_map[(hu >= low) & (hu <= high)] = taxonomy()[key].id
    return label_map


@pytest.mark.parametrize("mode", ["whole", "body", "window"])
def test_the_label_map_is_the_closed_form_answer(phantom, mode):
    result = segment_scan(phantom, BandNetwork(mode), PLAIN)
    assert np.array_equal(result.label_map, expected())


def orders():
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product([False, True], repeat=3):
            yield pytest.param(axes, flips, id="".join(map(str, axes)) + "".join("-" if f else "+" for f in flips))


@pytest.mark.parametrize(("axes", "flips"), list(orders()))
def test_all_48_axis_orders_give_the_same_anatomy(bands, axes, flips):
    """The stored array is permuted and flipped, and the affine says so; undoing it gives the same voxels."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    stored = np.ascontiguousarray(phantom_hu().transpose(axes)[steps])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored_axis, (ras_axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[ras_axis, stored_axis] = -3.0 if flip else 3.0
        affine[ras_axis, 3] = 7.0 + (3.0 * (stored.shape[stored_axis] - 1) if flip else 0.0)
    result = segment_scan(Volume(stored, affine), bands, SegmentSettings())
    undone = result.label_map[steps].transpose(np.argsort(axes))
    assert result.label_map.shape == stored.shape
    assert np.array_equal(undone, expected())


def test_a_tumour_is_painted_over_its_organ(bands, phantom):
    result = segment_scan(phantom, bands, PLAIN)
    tumour = result.mask("kidney tumor")
    assert tumour.sum() == 8
    assert (result.label_map[tumour] == taxonomy()["kidney_tumor"].id).all()


def test_only_what_is_asked_is_there(bands, phantom):
    result = segment_scan(phantom, bands, SegmentSettings(classes="liver"))
    assert set(np.unique(result.label_map)) == {0, taxonomy()["liver"].id}
    assert [f.key for f in result.findings] == ["liver"]
    with pytest.raises(ClassNameError, match="left_kidney"):
        result.mask("left_kidney")


def test_a_class_the_model_lacks_is_an_error_that_lists_what_it_has(bands, phantom):
    with pytest.raises(ClassNameError, match=r"spleen.*It has: .*liver"):
        segment_scan(phantom, bands, SegmentSettings(classes="spleen"))


def test_volumes_are_those_of_the_voxels(bands, phantom):
    result = segment_scan(phantom, bands, PLAIN)
    by_key = {f.key: f for f in result.findings}
    assert by_key["liver"].volume_ml == pytest.approx((11 * 13 * 7) * 27 / 1000)
    assert by_key["liver"].mean_hu == pytest.approx(100)


def test_saving_writes_a_whole_folder_in_the_scans_grid(bands, phantom, tmp_path):
    result = segment_scan(phantom, bands)
    out = result.save(tmp_path / "out", SaveSettings(masks=True))
    image = nib.load(out / "segmentation.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), result.label_map)
    assert np.allclose(image.affine, phantom.affine)
    assert {p.name for p in (out / "masks").iterdir()} == {f"{key}.nii.gz" for key in BANDS}
    assert (out / "preview.png").stat().st_size > 1000
    record = json.loads((out / "run.json").read_text())
    assert record["model"]["name"] == "bands"
    assert "masks/liver.nii.gz" in record["outputs"]
    assert is_whole(out)
    (out / "findings.csv").unlink()
    assert not is_whole(out)


def faint_phantom():
    """The phantom with a piece in the left kidney that is a tumour with a probability of 0.12."""
    hu = phantom_hu()
    hu[6:8, 8:10, 6:9] = 238
    return Volume(hu[::-1].copy(), np.array([[-3.0, 0, 0, 87], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))


def test_probability_maps_hold_what_is_below_the_threshold_and_change_nothing_else(bands, tmp_path):
    scan = faint_phantom()
    plain = segment_scan(scan, bands)
    result = segment_scan(scan, bands, SegmentSettings(probabilities=True))
    assert np.array_equal(result.label_map, plain.label_map)
    assert [f.volume_ml for f in result.findings] == [f.volume_ml for f in plain.findings]
    out = result.save(tmp_path / "out")
    assert [path.name for path in (out / "probabilities").iterdir()] == ["kidney_tumor.nii.gz"]
    image = nib.load(out / "probabilities" / "kidney_tumor.nii.gz")
    true = np.select([scan.array == 250, scan.array == 238], [1.0, 1 / (1 + np.exp(2))])
    assert np.allclose(image.get_fdata(), true, atol=1 / 256) and np.allclose(image.affine, scan.affine)
    record = json.loads((out / "run.json").read_text())
    assert is_whole(out) and "probabilities/kidney_tumor.nii.gz" in record["outputs"]
    assert record["request"]["probabilities"] is True


def test_the_threshold_of_a_class_does_not_change_its_probabilities(bands):
    bands.config = replace(bands.config, thresholds={"kidney_tumor": 0.1})
    result = segment_scan(faint_phantom(), bands, SegmentSettings(post=False, probabilities=True))
    assert result.mask("kidney tumor").sum() == 8 + 12
    found = np.unique(result.probabilities.whole("kidney_tumor"))
    assert found == pytest.approx([0, 256 / (1 + np.exp(2)), 255], abs=4)  # near 1 the levels lie further apart


def test_probability_maps_of_organs_are_refused(bands, phantom):
    with pytest.raises(SettingError, match="tumours and cysts"):
        segment_scan(phantom, bands, SegmentSettings(classes="liver", probabilities=True))


def test_an_earlier_result_is_kept_unless_overwrite(bands, phantom, tmp_path):
    result = segment_scan(phantom, bands)
    result.save(tmp_path / "out", SaveSettings(masks=True))
    with pytest.raises(OutputError, match="--overwrite"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", SaveSettings(overwrite=True))
    assert not (tmp_path / "out" / "masks").exists(), "masks of the earlier run must not stay beside the new map"


def test_a_failure_while_writing_leaves_nothing(bands, phantom, tmp_path, monkeypatch):
    result = segment_scan(phantom, bands)

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("viscera.workflow.scan.write_findings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_scan_twice_gives_the_same_bytes(bands, phantom, tmp_path):
    for name in "ab":
        segment_scan(phantom, bands).save(tmp_path / name)
    a, b = ((tmp_path / name / "segmentation.nii.gz").read_bytes() for name in "ab")
    assert a == b
