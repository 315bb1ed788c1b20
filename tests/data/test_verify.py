from __future__ import annotations

import json
import shutil

import numpy as np

from tests.data.conftest import write_nifti
from viscera.data.catalogue import dataset_table, parse_table
from viscera.data.layout import find_cases
from viscera.data.verify import verify_sets

SHAPE = (60, 50, 40)
SPACING = (5.0, 5.0, 5.0)
LABELS = {"1": "liver", "2": "liver_tumor", "3": "right_kidney", "4": "left_kidney", "5": "spleen"}


def table(labels=LABELS):
    return parse_table("mine", {"title": "t", "image": "i/{case}{ext}", "label": "l/{case}{ext}", "labels": labels})


def body(seed=0):
    """A block of a body in air: HU and labels, RAS at 5 mm, with organs of plausible sizes where they belong."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[4:56, 4:46] = -100
    hu[8:52, 8:42] = 40
    hu[28:32, 9:14] = 400
    labels = np.zeros(SHAPE, np.uint8)
    labels[34:50, 10:30, 8:32] = 1
    labels[38:41, 14:17, 12:15] = 2
    labels[36:42, 34:40, 10:24] = 3
    labels[16:22, 34:40, 10:24] = 4
    labels[12:20, 12:22, 12:24] = 5
    hu[labels > 0] = 110
    hu += np.random.default_rng(seed).integers(-5, 6, SHAPE, dtype=np.int16)
    return hu, labels


def written(folder, case="a", hu=None, labels=None, **fields):
    own = body()
    write_nifti(folder / f"i/{case}.nii.gz", own[0] if hu is None else hu, SPACING)
    write_nifti(folder / f"l/{case}.nii.gz", own[1] if labels is None else labels, SPACING, **fields)
    return folder


def faults(folder, **fields):
    return verify_sets([find_cases(table(**fields), folder)])


def only(result, check, severity="error"):
    """The verdict of the one fault found (notes aside)."""
    found = [fault for fault in result.faults if fault.severity != "note"]
    assert [(fault.check, fault.severity) for fault in found] == [(check, severity)], found
    return found[0].verdict


def test_a_sound_set_passes(tmp_path):
    result = faults(written(tmp_path))
    assert result.errors == 0 and not result.faults
    assert result.verdict == "All 1 cases can be used (0 warnings)."


def test_a_missing_partner(tmp_path):
    written(tmp_path)
    (tmp_path / "i/b.nii.gz").touch()
    result = faults(tmp_path)
    assert only(result, "pair") == "the image has no label (l/{case}{ext})"
    assert result.faults[0].file.endswith("i/b.nii.gz") and result.cases == 2


def test_a_truncated_file(tmp_path):
    written(tmp_path)
    path = tmp_path / "i/a.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])
    assert "truncated" in only(faults(tmp_path), "unreadable")


def test_an_image_that_is_no_ct(tmp_path):
    hu, _ = body()
    written(tmp_path, hu=((hu + 1024) / 2048).astype(np.float32))
    assert "not Hounsfield units" in only(faults(tmp_path), "hu")


def test_an_empty_image(tmp_path):
    hu = np.random.default_rng(0).integers(-1020, -980, SHAPE).astype(np.int16)
    checks = {fault.check for fault in faults(written(tmp_path, hu=hu)).faults}
    assert "hu" in checks


def test_labels_of_another_shape(tmp_path):
    written(tmp_path, labels=body()[1][:, :, :-1])
    assert "has shape (60, 50, 39), its image (60, 50, 40)" in only(faults(tmp_path), "grid")


def test_labels_at_another_place(tmp_path):
    affine = np.diag([*SPACING, 1.0])
    affine[2, 3] = 25
    assert "25 mm away from its image" in only(faults(written(tmp_path, affine=affine)), "grid")


def test_values_that_the_table_does_not_explain(tmp_path):
    labels = body()[1]
    labels[0, 0, 0] = 77
    assert only(faults(written(tmp_path, labels=labels)), "value") == "the values 77 are not in the table of mine"


def test_an_empty_label(tmp_path):
    assert only(faults(written(tmp_path, labels=np.zeros(SHAPE, np.uint8))), "empty") == "nothing is drawn"


def test_a_copy_within_a_set_even_in_another_axis_order(tmp_path):
    written(tmp_path)
    hu, labels = body()
    flipped = np.diag([-5.0, 5.0, 5.0, 1.0])
    flipped[0, 3] = 5.0 * (SHAPE[0] - 1)
    for kind, array in (("i", hu), ("l", labels)):
        write_nifti(tmp_path / kind / "b.nii.gz", array[::-1], affine=flipped)
    result = faults(tmp_path)
    assert only(result, "duplicate").startswith("the same scan as mine/a (")
    assert result.faults[0].case == "mine/b"


def test_a_copy_in_another_set_is_a_warning(tmp_path):
    written(tmp_path / "mine")
    other = parse_table("other", {"title": "t", "image": "i/{case}{ext}", "label": "l/{case}{ext}", "labels": LABELS})
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    result = verify_sets([find_cases(table(), tmp_path / "mine"), find_cases(other, tmp_path / "theirs")])
    only(result, "duplicate", "warning")


def test_a_tumour_outside_its_organ(tmp_path):
    labels = body()[1]
    labels[45:48, 44:47, 35:38] = 2
    verdict = only(faults(written(tmp_path, labels=labels)), "outside")
    assert verdict == "1 of 2 parts of the liver tumor (3.4 ml) do not touch the liver"


def test_a_tumour_at_the_organs_surface_is_inside(tmp_path):
    labels = body()[1]
    labels[50:52, 20:24, 20:24] = 2
    assert faults(written(tmp_path, labels=labels)).errors == 0


def test_an_implausible_volume(tmp_path):
    labels = body()[1]
    labels[labels == 5] = 0
    labels[12:14, 12:14, 12:14] = 5
    verdict = only(faults(written(tmp_path, labels=labels)), "volume", "warning")
    assert verdict == "the spleen measures 1 ml; adults have at least 30 ml"


def test_an_organ_that_the_scan_cuts_may_be_small(tmp_path):
    labels = body()[1]
    labels[labels == 5] = 0
    labels[12:14, 12:14, :2] = 5
    assert not faults(written(tmp_path, labels=labels)).faults


def test_exchanged_sides(tmp_path):
    labels = body()[1]
    swapped = np.where(labels == 3, 4, np.where(labels == 4, 3, labels)).astype(np.uint8)
    verdict = only(faults(written(tmp_path, labels=swapped)), "side")
    assert verdict == "the right kidney lies to the left of the left kidney: the labels are exchanged"


def test_a_mirrored_body(tmp_path):
    hu, labels = body()
    result = faults(written(tmp_path, hu=hu[::-1], labels=labels[::-1]))
    verdicts = [fault.verdict for fault in result.faults]
    assert any("the affine mirrors the body" in verdict for verdict in verdicts)
    assert any("as the whole body is" in verdict for verdict in verdicts)


def test_what_was_handled_while_reading_is_a_note(tmp_path):
    hu = body()[0]
    hu[:4] = -2048
    result = faults(written(tmp_path, hu=hu))
    assert result.errors == 0 and result.faults[0].severity == "note" and "count as air" in result.faults[0].verdict


def test_several_workers_find_the_same(tmp_path, hospitals):
    found = find_cases(dataset_table("amos"), hospitals / "amos")
    assert verify_sets([found], workers=2) == verify_sets([found])


def test_a_set_of_label_maps_alone(tmp_path):
    write_nifti(tmp_path / "l/a.nii.gz", body()[1], SPACING)
    alone = parse_table("maps", {"title": "t", "label": "l/{case}{ext}", "labels": LABELS})
    assert verify_sets([find_cases(alone, tmp_path)]).errors == 0


def test_the_result_is_plain_json(tmp_path):
    written(tmp_path, labels=np.zeros(SHAPE, np.uint8))
    told = json.loads(json.dumps(faults(tmp_path).as_json()))
    assert told["errors"] == 1 and told["faults"][0]["check"] == "empty" and told["cases"] == 1
