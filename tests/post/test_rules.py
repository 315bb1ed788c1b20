"""Each rule on masks small enough to draw by hand."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from viscera.components import components, largest_component, without_small
from viscera.data.anatomy import anatomy
from viscera.errors import KnowledgeError
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.masks import Densities, MaskSet, SoftMask
from viscera.post import rules
from viscera.post.pipeline import apply_rules, needed_classes, rule_entries
from viscera.shapes import Box
from viscera.taxonomy import taxonomy

SHAPE = (40, 20, 16)
MM = (3.0, 3.0, 3.0)
LUNGS = ("right_lung", "left_lung")
LUNG_RULE = {"second_lung_part": 0.1, "apart_mm": 40.0}


def block(*ranges):
    """A block given as (start, stop) for each axis."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in ranges)] = True
    return mask


RIGHT = block((26, 36), (4, 14), (2, 14))  # x grows to the patient's right
LEFT = block((4, 12), (4, 14), (2, 14))


def mask_set(**masks):
    return MaskSet(SHAPE, MM, {key: SoftMask.of(mask) for key, mask in masks.items()})


def after(masks, changes):
    done = masks.changed(changes)
    return {key: done.whole(key) for key in done}


def test_corners_connect_and_of_equals_the_first_is_largest():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # one component, by a corner
    mask[3, 3, 2:4] = True
    assert len(components(mask)) == 2
    assert largest_component(mask).sum() == 2
    assert largest_component(mask)[0, 0, 0]
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()
    assert without_small(mask, 2).sum() == 4
    assert without_small(mask, 3).sum() == 0


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1), (1, 1, 3)])
def test_a_single_line_of_voxels_has_its_parts(shape):
    line = np.array([True, False, True]).reshape(shape)
    assert len(components(line)) == 2
    assert largest_component(line).sum() == 1


def test_lungs_given_to_the_wrong_sides_are_put_right():
    masks = mask_set(right_lung=LEFT, left_lung=RIGHT)
    out = after(masks, rules.split_lungs(masks, LUNGS, **LUNG_RULE))
    assert np.array_equal(out["right_lung"], RIGHT)
    assert np.array_equal(out["left_lung"], LEFT)


def test_a_merged_lung_is_cut_at_its_narrowest_place():
    bridge = block((12, 26), (8, 10), (6, 8))
    neck = bridge.copy()
    neck[18] = False
    neck[18, 8, 6] = True  # the narrowest sagittal slice
    union = RIGHT | LEFT | neck
    masks = mask_set(
        right_lung=union & (np.arange(40) > 14)[:, None, None], left_lung=union & (np.arange(40) <= 14)[:, None, None]
    )
    out = after(masks, rules.split_lungs(masks, LUNGS, **LUNG_RULE))
    assert np.array_equal(out["right_lung"], union & (np.arange(40) > 18)[:, None, None])
    assert np.array_equal(out["left_lung"] | out["right_lung"], union)


def test_a_single_lung_stays_on_the_side_most_of_it_was_given_to():
    """The left lung alone, a few voxels called right: no right lung appears."""
    speck = block((10, 12), (4, 5), (2, 3))
    masks = mask_set(right_lung=speck, left_lung=LEFT & ~speck)
    out = after(masks, rules.split_lungs(masks, LUNGS, **LUNG_RULE))
    assert not out["right_lung"].any()
    assert np.array_equal(out["left_lung"], LEFT)


def test_a_third_component_is_no_lung():
    gas = block((18, 21), (4, 7), (2, 5))
    masks = mask_set(right_lung=RIGHT | gas, left_lung=LEFT)
    out = after(masks, rules.split_lungs(masks, LUNGS, **LUNG_RULE))
    assert np.array_equal(out["right_lung"], RIGHT)
    assert np.array_equal(out["left_lung"], LEFT)


def test_two_parts_of_one_side_stay_on_it():
    lower = block((26, 36), (4, 14), (2, 7))
    upper = block((26, 36), (4, 14), (9, 14))
    masks = mask_set(right_lung=lower | upper, left_lung=np.zeros(SHAPE, bool))
    out = after(masks, rules.split_lungs(masks, LUNGS, **LUNG_RULE))
    assert np.array_equal(out["right_lung"], lower | upper)
    assert not out["left_lung"].any()


def test_nothing_is_found_in_nothing():
    empty = np.zeros(SHAPE, bool)
    masks = mask_set(right_lung=empty, left_lung=empty, liver=empty, liver_tumor=empty)
    done, notes = apply_rules(masks)
    assert not any(done.whole(key).any() for key in done)
    assert notes == ()


def test_the_vein_is_cut_below_the_pancreas():
    vein = block((10, 12), (5, 7), (1, 12))
    masks = mask_set(portal_splenic_vein=vein, pancreas=block((8, 20), (5, 9), (5, 8)))
    out = after(masks, rules.cut_below(masks, ["portal_splenic_vein"], floor="pancreas"))
    assert np.array_equal(out["portal_splenic_vein"], block((10, 12), (5, 7), (5, 12)))


def test_without_a_pancreas_the_vein_stays():
    masks = mask_set(portal_splenic_vein=block((10, 12), (5, 7), (1, 12)))
    assert rules.cut_below(masks, ["portal_splenic_vein"], floor="pancreas") == {}


def test_a_tumour_is_kept_within_the_grown_organ():
    """At 3 mm a growth of 3 mm is one voxel: of a tumour that leaves the liver, one voxel beyond it stays."""
    masks = mask_set(liver=RIGHT, liver_tumor=block((22, 28), (6, 8), (6, 8)))
    out = after(masks, rules.inside_organ(masks, ["liver_tumor"], grow_mm=3.0))
    assert np.array_equal(out["liver_tumor"], block((25, 28), (6, 8), (6, 8)))


def test_a_tumour_of_an_organ_that_is_not_there_goes_and_of_one_not_computed_stays():
    tumour = block((22, 28), (6, 8), (6, 8))
    gone = mask_set(liver=np.zeros(SHAPE, bool), liver_tumor=tumour)
    assert not after(gone, rules.inside_organ(gone, ["liver_tumor"], grow_mm=3.0))["liver_tumor"].any()
    alone = mask_set(liver_tumor=tumour)
    assert rules.inside_organ(alone, ["liver_tumor"], grow_mm=3.0) == {}


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 1.0, 2.5)])
def test_the_crop_gives_what_the_whole_grid_would(spacing):
    rng = np.random.default_rng(0)
    organ = ndimage.gaussian_filter(rng.random(SHAPE), 1.5) > 0.51
    tumour = ndimage.gaussian_filter(rng.random(SHAPE), 1.0) > 0.56
    masks = MaskSet(SHAPE, spacing, {"liver": SoftMask.of(organ), "liver_tumor": SoftMask.of(tumour)})
    out = after(masks, rules.inside_organ(masks, ["liver_tumor"], grow_mm=3.0))["liver_tumor"]
    cube = np.ones([2 * round(3.0 / s) + 1 for s in spacing], bool)
    near = ndimage.binary_dilation(ndimage.binary_closing(organ, cube), cube)
    assert np.array_equal(out, tumour & near)
    assert 0 < out.sum() < tumour.sum()


# --- rules that look at the scan -------------------------------------------------------------------------------------


def scan(*parts, fill=-1000):
    """Densities of the whole grid: `fill`, with (mask, HU) painted one after the other."""
    hu = np.full(SHAPE, fill, np.int16)
    for mask, value in parts:
        hu[mask] = value
    return Densities(Box.whole(SHAPE), hu)


BODY = block((5, 35), (3, 17), (0, 16))


def test_a_liver_that_reaches_into_the_lung_ends_at_it():
    lung = block((26, 36), (4, 14), (10, 14))
    masks = mask_set(liver=RIGHT)
    out = after(masks, rules.not_in_air(masks, ["liver"], scan((BODY | RIGHT, 40), (lung, -800)), below_hu=-300.0))
    assert np.array_equal(out["liver"], RIGHT & ~lung)


def test_the_density_at_the_limit_stays_and_what_was_not_looked_at_is_air():
    masks = mask_set(liver=block((10, 14), (5, 7), (5, 7)))
    hu = np.full((2, 20, 16), -300, np.int16)
    out = after(masks, rules.not_in_air(masks, ["liver"], Densities(Box((11, 0, 0), (13, 20, 16)), hu), below_hu=-300))
    assert np.array_equal(out["liver"], block((11, 13), (5, 7), (5, 7)))


def test_gas_inside_the_body_stays_and_the_air_around_it_goes():
    """The colon reaches the first slice and holds gas there; a second piece lies in the room."""
    gas, room = block((10, 14), (5, 8), (0, 4)), block((0, 4), (5, 8), (5, 9))
    masks = mask_set(colon=gas | room)
    rule = {"classes": ["colon"], "densities": scan((BODY, 40), (gas, -1000)), "below_hu": -950.0}
    assert np.array_equal(after(masks, rules.not_beside_body(masks, **rule))["colon"], gas)


def test_the_room_is_air_whatever_side_it_is_seen_from():
    for rim in (
        block((0, 3), (0, 20), (2, 9)),
        block((37, 40), (0, 20), (2, 9)),
        block((4, 9), (0, 3), (2, 9)),
        block((4, 9), (17, 20), (2, 9)),
    ):
        masks = mask_set(stomach=rim)
        whole = scan((rim, -1000), fill=40)
        assert not after(masks, rules.not_beside_body(masks, ["stomach"], whole, -950.0))["stomach"].any()


def test_lung_at_the_side_of_a_small_image_is_no_room():
    masks = mask_set(right_lung=RIGHT)
    whole = scan(fill=-850)
    out = after(masks, rules.not_beside_body(masks, ["right_lung"], whole, below_hu=-950.0))
    assert np.array_equal(out["right_lung"], RIGHT)


def test_the_image_may_be_a_part_of_the_grid():
    box = Box((4, 2, 0), (36, 18, 16))
    hu = scan((BODY, 40)).hu[box.slices]
    beside = block((4, 5), (5, 8), (5, 9))
    masks = mask_set(colon=BODY | beside)
    out = after(masks, rules.not_beside_body(masks, ["colon"], Densities(box, hu), below_hu=-950.0))
    assert np.array_equal(out["colon"], BODY)
    beyond = mask_set(colon=block((37, 39), (5, 8), (5, 9)))
    out = after(beyond, rules.not_beside_body(beyond, ["colon"], Densities(box, hu), below_hu=-950.0))
    assert not out["colon"].any()


def test_a_cover_as_dark_as_lung_is_no_lung():
    hu = np.full((60, 50, 20), -1000, np.int16)
    hu[15:45, 10:40] = 40
    hu[20:40, 15:35] = -850  # lungs
    hu[48:56, 15:35] = -850  # a cushion beside the patient
    hu[20:40, 42:46] = -850  # a cover on the chest
    dark = hu == -850
    masks = MaskSet(hu.shape, (3.0, 3.0, 3.0), {"right_lung": SoftMask.of(dark)})
    out = rules.within_body(masks, ["right_lung"], Densities(Box.whole(hu.shape), hu))["right_lung"]
    inside = np.zeros(hu.shape, bool)
    inside[20:40, 15:35] = True
    assert np.array_equal(out.mask, inside[out.box.slices])


def test_lung_at_the_border_of_a_crop_lies_in_the_body():
    hu = np.full((30, 30, 20), -850, np.int16)
    hu[:, 22:] = 40  # the back alone is in the image
    masks = MaskSet(hu.shape, (3.0, 3.0, 3.0), {"right_lung": SoftMask.of(hu == -850)})
    out = rules.within_body(masks, ["right_lung"], Densities(Box.whole(hu.shape), hu))["right_lung"]
    assert out.mask.sum() == (hu == -850).sum()


def test_a_piece_as_dense_as_bone_or_fat_is_no_liver_however_large():
    true, bone, fat = block((6, 10), (5, 9), (5, 9)), block((15, 25), (5, 15), (2, 12)), block((30, 34), (4, 8), (4, 8))
    masks = mask_set(liver=true | bone | fat)
    whole = scan((BODY, 40), (bone, 500), (fat, -100))
    out = after(masks, rules.plausible_density(masks, ["liver"], whole, least_hu=-80.0, most_hu=300.0))
    assert np.array_equal(out["liver"], true)


def test_a_piece_is_judged_by_its_mean():
    """A calcified granuloma of 8 of 64 voxels: (56 * 40 + 8 * 1000) / 64 = 160 HU."""
    liver = block((6, 10), (5, 9), (5, 9))
    masks = mask_set(liver=liver)
    whole = scan((BODY, 40), (block((6, 8), (5, 7), (5, 7)), 1000))
    for most, stays in ((159.0, False), (161.0, True)):
        out = after(masks, rules.plausible_density(masks, ["liver"], whole, least_hu=-80.0, most_hu=most))
        assert out["liver"].any() == stays


@pytest.mark.parametrize(("edge", "stays"), [("top", (True, True, False)), ("bottom", (True, False, False))])
def test_pieces_above_an_organ_go_by_their_middle_slice(edge, stays):
    """The liver holds slices 5 to 11; the pieces' middles are 3.5, 8 and 12.5. An island is not the liver."""
    liver = block((5, 15), (5, 12), (5, 12))
    pieces = [block((22, 25), (5, 8), z) for z in ((2, 6), (7, 10), (11, 15))]
    masks = mask_set(liver=liver | block((22, 23), (12, 14), (0, 20)), colon=np.logical_or.reduce(pieces))
    ml = liver.sum() * 27 / 1000
    arguments = {"organ": "liver", "edge": edge}
    out = after(masks, rules.not_above(masks, ["colon"], least_ml=ml, **arguments))["colon"]
    assert tuple(bool(out[piece].all()) for piece in pieces) == stays
    assert out.sum() == sum(piece.sum() for piece, kept in zip(pieces, stays, strict=True) if kept)
    assert rules.not_above(masks, ["colon"], least_ml=ml + 0.01, **arguments) == {}
    assert rules.not_above(mask_set(colon=pieces[2]), ["colon"], least_ml=0.0, **arguments) == {}


def test_pieces_on_the_other_side_go():
    """Kidneys at x 26-36 and 4-12; a piece of the right one at x 0-2, and one of the left one at x 38-40."""
    lost, other = block((0, 2), (4, 8), (2, 6)), block((38, 40), (4, 8), (2, 6))
    between = block((16, 18), (4, 8), (2, 6))
    masks = mask_set(right_kidney=RIGHT | lost | between, left_kidney=LEFT | other)
    out = after(masks, rules.on_its_side(masks, ("right_kidney", "left_kidney")))
    assert np.array_equal(out["right_kidney"], RIGHT | between)
    assert np.array_equal(out["left_kidney"], LEFT)


def test_a_small_right_organ_beyond_a_large_left_one_goes_and_never_both():
    small = block((0, 2), (4, 8), (2, 6))
    masks = mask_set(right_kidney=small, left_kidney=LEFT)
    out = after(masks, rules.on_its_side(masks, ("right_kidney", "left_kidney")))
    assert not out["right_kidney"].any() and np.array_equal(out["left_kidney"], LEFT)
    exchanged = mask_set(right_kidney=LEFT, left_kidney=RIGHT)  # as large as each other, or the larger one: stays
    out = after(exchanged, rules.on_its_side(exchanged, ("right_kidney", "left_kidney")))
    assert out["left_kidney"].any() or out["right_kidney"].any()
    assert rules.on_its_side(mask_set(right_kidney=small), ("right_kidney", "left_kidney")) == {}


def test_without_the_scan_these_rules_are_left_out():
    masks = mask_set(liver=RIGHT)
    assert apply_rules(masks)[1] == ()
    done, notes = apply_rules(masks, scan())
    assert not done.whole("liver").any()
    assert [(note.rule, note.key) for note in notes] == [("not_in_air", "liver")]


@pytest.mark.parametrize("hu", [-1000, -1024, 2000], ids=["air", "padding", "metal"])
def test_nothing_is_painted_where_there_is_no_body(hu):
    """A network that calls everything everything, in a scan that shows nothing."""
    everything = {key: np.ones(SHAPE, bool) for key in taxonomy().keys}
    done, _ = apply_rules(mask_set(**everything), scan(fill=hu))
    left = {key for key in done if done.whole(key).any()}
    gas = {"esophagus", "stomach", "duodenum", "colon", "intestine", "rectum"}
    assert left <= (set() if hu < 0 else gas | {"lung_tumor", "colon_tumor"})


def test_specks_of_organs_go():
    speck = block((5, 8), (5, 8), (5, 8))  # 27 voxels: 0.7 ml
    done, _ = apply_rules(mask_set(liver=speck, aorta=speck, left_adrenal_gland=speck))
    assert {key: bool(done.whole(key).any()) for key in done} == {
        "liver": False, "aorta": True, "left_adrenal_gland": True,
    }  # fmt: skip


def test_no_rule_takes_an_organ_that_looks_and_measures_as_the_anatomy_says():
    """Two tables that could drift apart: densities in every phase, and the smallest plausible volume."""
    tissues = anatomy().tissues
    for entry in rule_entries():
        for key in entry.classes:
            means_hu = [mean for mean, _ in tissues[key].hu.values()]
            limits_ml = tissues[key].volume_ml
            if entry.name == "plausible_density":
                assert entry.arguments["least_hu"] < min(means_hu) and max(means_hu) < entry.arguments["most_hu"], key
            if entry.name in ("not_in_air", "not_beside_body"):
                assert entry.arguments["below_hu"] < min(means_hu), key
            if entry.name == "minimum_volume" and limits_ml is not None:
                assert entry.arguments["volume_mm3"] / 1000 < limits_ml[0], key


def test_gas_is_no_lung_and_neither_is_a_solid_organ():
    lung = next(e for e in rule_entries() if e.name == "plausible_density" and "right_lung" in e.classes)
    for hu, stays in ((-1000, False), (-850, True), (-300, True), (40, False)):
        masks = mask_set(right_lung=RIGHT)
        out = after(masks, rules.plausible_density(masks, lung.classes, scan((RIGHT, hu)), **lung.arguments))
        assert out["right_lung"].any() == stays, hu


def test_real_organs_keep_their_voxels(shared_dir):
    """The labels of a whole abdomen as if a network had found them: rules of density take next to nothing away."""
    folder = shared_dir / "data/abdomen_pelvis_3mm"
    volume, labels = read_volume(folder / "ct.nii.gz"), nib.load(folder / "labels.nii.gz")
    names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    hu, _, reorientation = to_ras(volume)
    drawn = reorientation.apply(np.asarray(labels.dataobj))
    keys = {
        "spleen": "spleen", "kidney_right": "right_kidney", "kidney_left": "left_kidney", "liver": "liver",
        "gallbladder": "gallbladder", "stomach": "stomach", "pancreas": "pancreas", "duodenum": "duodenum",
        "adrenal_gland_right": "right_adrenal_gland", "colon": "colon", "urinary_bladder": "bladder", "aorta": "aorta",
    }  # fmt: skip
    organs = {keys[name]: drawn == int(value) for value, name in names.items() if name in keys}
    masks = MaskSet(hu.shape, MM, {key: SoftMask.of(mask) for key, mask in organs.items()})
    looking = [
        e for e in rule_entries() if e.name in ("not_in_air", "not_beside_body", "within_body", "plausible_density")
    ]
    done, _ = apply_rules(masks, Densities(Box.whole(hu.shape), hu.astype(np.int16)), looking)
    assert set(organs) == set(keys.values())
    for key, mask in organs.items():
        assert done.whole(key).sum() >= 0.995 * mask.sum(), key


def test_small_things_go_by_volume_not_by_voxels():
    tumour = block((5, 7), (5, 6), (5, 6)) | block((20, 21), (5, 6), (5, 6))  # 2 voxels and 1
    for spacing, left in (((3.0, 3.0, 3.0), 2), ((4.0, 4.0, 4.0), 3), ((1.0, 1.0, 1.0), 0)):
        masks = MaskSet(SHAPE, spacing, {"liver_tumor": SoftMask.of(tumour)})
        out = after(masks, rules.minimum_volume(masks, ["liver_tumor"], volume_mm3=30.0))
        assert out["liver_tumor"].sum() == left


def test_the_notes_say_what_changed():
    island = block((2, 4), (1, 3), (1, 3))
    done, notes = apply_rules(mask_set(liver=RIGHT | island))
    assert np.array_equal(done.whole("liver"), RIGHT)
    (note,) = notes
    assert (note.rule, note.key, note.added_ml) == ("largest_component", "liver", 0)
    assert note.removed_ml == pytest.approx(island.sum() * 27 / 1000)


def test_a_tumour_needs_its_organ_and_the_vein_the_pancreas():
    assert needed_classes(["kidney_tumor"]) == ["right_kidney", "left_kidney", "liver", "kidney_tumor"]
    assert needed_classes(["portal_splenic_vein"]) == ["liver", "portal_splenic_vein", "pancreas"]
    assert needed_classes(["colon_tumor"]) == ["liver", "colon", "colon_tumor"]
    assert needed_classes(["left_lung"]) == ["right_lung", "left_lung"]
    assert needed_classes(["aorta"]) == ["aorta"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"name": "nonsense", "classes": [], "reason": "x"}, "no rule 'nonsense'"),
        ({"name": "largest_component", "classes": ["liver"], "reason": " "}, "no reason"),
        ({"name": "minimum_volume", "classes": ["liver"], "reason": "x", "volume_ml": 1}, "volume_mm3"),
        ({"name": "largest_component", "classes": ["lver"], "reason": "x"}, "lver"),
    ],
)
def test_a_table_that_does_not_fit_its_functions_is_refused(monkeypatch, row, complaint):
    monkeypatch.setattr("viscera.post.pipeline.read_table", lambda name: {"rule": [row]})
    with pytest.raises(KnowledgeError, match=complaint):
        rule_entries.__wrapped__()


def test_the_shipped_table_is_read():
    assert [entry.name for entry in rule_entries()][:3] == ["not_in_air", "not_beside_body", "within_body"]
    assert all(len(entry.reason) > 20 for entry in rule_entries())
