from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from viscera.data import transforms
from viscera.data.anatomy import anatomy
from viscera.data.assemble import LabelTable
from viscera.data.catalogue import parse_labels
from viscera.data.loader import PatchSource
from viscera.data.sampling import PatchSampler, SamplingSettings
from viscera.data.spatial import patch_box
from viscera.data.transforms import NONE, PAPER, RECIPES, STRONG, AugmentSettings, draw_augmentation, mirrored
from viscera.errors import SettingError
from viscera.taxonomy import taxonomy

PATCH = (24, 24, 24)
WINDOW = (-175.0, 250.0)
CLASSES = taxonomy().keys


def source(entries, augment):
    return PatchSource(PatchSampler(entries, CLASSES, SamplingSettings(patch_voxels=PATCH), 0), augment, WINDOW)


def always(**fields):
    return replace(NONE, **fields)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_patch_can_be_made_again(entries, recipe):
    one, two = source(entries, RECIPES[recipe]), source(entries, RECIPES[recipe])
    for number in range(6):
        first, second = one[number], two[number]
        assert torch.equal(first.image, second.image) and torch.equal(first.codes, second.codes)
        assert first.image.shape == PATCH and first.image.dtype == torch.float32
        assert first.image.min() >= 0 and first.image.max() <= 1 and torch.isfinite(first.image).all()
        assert first.codes.max() < first.table.rows.shape[1]


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 10_000))
def test_a_patch_that_nothing_happens_to_is_the_crop_of_the_whole_scan(entries, number):
    """Image and codes; what lies beyond the scan is air that belongs to nothing."""
    made = source(entries, NONE)
    patch, draw = made[number], made.sampler.draw(number)
    entry = entries[draw.case]
    start, stop = patch_box(draw.centre, PATCH)
    margin = max(PATCH)  # no patch begins farther out
    around = tuple(slice(a + margin, b + margin) for a, b in zip(start, stop, strict=True))
    low, high = WINDOW
    hu = np.pad(entry.image().astype(np.float32), margin, constant_values=-1024)[around]
    np.testing.assert_allclose(patch.image.numpy(), ((hu - low) / (high - low)).clip(0, 1), atol=1e-6)
    np.testing.assert_array_equal(patch.codes.numpy(), np.pad(entry.codes(), margin)[around])


CHANGES = [
    always(spatial=1.0),
    always(spatial=1.0, bend=1.0),
    always(quarter_turn=1.0),
    always(mirror=1.0),
    always(contrast=1.0),
    always(contrast=1.0, own_phases=1.0),
    always(contrast=1.0, rim=1.0),
    always(repaint=1.0),
    always(remap=1.0),
    always(shift_window=(1.0, 0.1)),
    always(noise=1.0),
    always(blur=1.0, blur_mm=(4.0, 6.0)),
    always(sharpen=1.0),
    always(thick=1.0, thick_mm=(12.0, 20.0)),
    always(coarse=1.0, coarse_mm=(12.0, 20.0)),
    always(end=1.0),
    always(slab=1.0, slab_mm=(8.0, 16.0)),
    always(zoom=1.0, zoom_sets=("amos", "kits")),
]
GEOMETRY = {"spatial", "quarter_turn", "mirror", "end", "slab", "zoom"}


def name_of(change):
    return "+".join(name for name, value in vars(change).items() if value != vars(NONE)[name] and "_" not in name)


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_every_change_changes_images_and_only_geometry_changes_labels(entries, change):
    plain, changed = source(entries, NONE), source(entries, change)
    pairs = [(plain[n], changed[n]) for n in range(8)]
    assert any(not torch.equal(a.image, b.image) for a, b in pairs)
    moved = any(not torch.equal(a.codes, b.codes) for a, b in pairs)
    is_geometric = any(getattr(change, name) for name in GEOMETRY)
    assert moved == is_geometric


def test_nothing_is_mirrored_unless_asked():
    assert all(recipe.mirror == 0 for recipe in RECIPES.values())


def test_a_mirrored_patch_has_its_sides_exchanged(entries):
    plain, flipped = source(entries, NONE), source(entries, always(mirror=1.0))
    kidneys = [CLASSES.index("right_kidney"), CLASSES.index("left_kidney")]
    for number in range(12):
        a, b = plain[number], flipped[number]
        for one, other in (kidneys, kidneys[::-1]):
            torch.testing.assert_close(a.table.rows[one][a.codes].flip(0), b.table.rows[other][b.codes])


def test_mirroring_a_model_without_the_partner_teaches_nothing():
    classes = ("right_kidney", "liver", "spleen")
    rows = torch.tensor([[False, True], [True, False], [False, False], [True, True]])
    members = torch.tensor([[True, True, False]])
    out = mirrored(LabelTable(rows, torch.tensor([True, True, True]), members), classes)
    assert out.annotated.tolist() == [False, True, True]
    assert not out.union_members.any(), "a union that lost a member says nothing"
    assert torch.equal(out.rows[1:], rows[1:])


def test_contrast_gives_structures_the_means_of_a_phase(entries):
    """The liver of a phantom, moved all the way, lies where livers do in some phase."""
    strong = source(entries, always(contrast=1.0, contrast_strength=(1.0, 1.0)))
    strong.window_hu = (-1024.0, 3071.0)
    row = CLASSES.index("liver")
    means = []
    for number in range(60):
        patch = strong[number]
        liver = patch.table.rows[row][patch.codes]
        if liver.sum() > 200:
            means.append(float(patch.image[liver].mean()) * 4095 - 1024)
    phases = [mean for mean, _ in anatomy().tissues["liver"].hu.values()]
    assert len(means) >= 3
    assert min(phases) - 40 < min(means) and max(means) < max(phases) + 50 and np.ptp(means) > 15


def drawn(entries, change, number=0):
    made = source(entries, change)
    draw = made.sampler.draw(number)
    return entries[draw.case], draw_augmentation(change, entries[draw.case], draw, PATCH, WINDOW)


def test_tissues_may_each_be_in_a_phase_of_its_own(entries, monkeypatch):
    """Two made-up phases, 0 and 1000 HU for every tissue: in one phase all means are alike, in their own not."""
    known = anatomy()
    hu = {"plain": (0.0, 0.0), "portal": (1000.0, 0.0)}
    tissues = {key: replace(tissue, hu=hu) for key, tissue in known.tissues.items()}
    monkeypatch.setattr(transforms, "anatomy", lambda: replace(known, phases=("plain", "portal"), tissues=tissues))
    _, shared = drawn(entries, always(contrast=1.0))
    _, apart = drawn(entries, always(contrast=1.0, own_phases=1.0))
    assert len(set(shared.means_hu.values())) == 1
    assert len(set(apart.means_hu.values())) > 2


def test_only_organs_with_a_rim_get_one_and_both_kidneys_the_same(entries):
    plans = [drawn(entries, always(contrast=1.0, rim=1.0), number)[1] for number in range(20)]
    plan = next(plan for plan in plans if plan.rims)
    assert len(set(plan.rims.values())) == 1
    (low_mm, high_mm), (low_hu, high_hu) = anatomy().tissues["left_kidney"].rim
    for rim_mm, brighter_hu in plan.rims.values():
        assert low_mm <= rim_mm <= high_mm and low_hu <= brighter_hu <= high_hu
    kidneys = {key for key, tissue in anatomy().tissues.items() if tissue.rim}
    assert kidneys == {"left_kidney", "right_kidney"}


def test_a_slab_ends_above_and_below(entries):
    change = always(slab=1.0, slab_mm=(18.0, 18.0))
    case, plan = drawn(entries, change)
    (axis, first, low), (other, stop, keep_low) = plan.ends
    assert axis == other == 2 and not low and keep_low
    assert stop - first == round(18 / case.spacing_mm[2]) and first >= 0 and stop <= PATCH[2]
    patch = source(entries, change)[0]
    assert not patch.codes[:, :, :first].any() and not patch.codes[:, :, stop:].any()


def test_zoom_is_for_the_named_sets_alone(entries):
    zoomed = source(entries, always(zoom=1.0, zoom_sets=("kits",)))
    for number in range(10):
        draw = zoomed.sampler.draw(number)
        case = entries[draw.case]
        plan = draw_augmentation(zoomed.augment, case, draw, PATCH, WINDOW)
        scale = float(np.linalg.det(plan.spatial.matrix) ** (1 / 3))
        assert (1 / 1.5 <= scale <= 1 / 1.3) if case.dataset == "kits" else scale == 1


def test_the_papers_recipe_is_the_papers():
    assert PAPER.quarter_turn == 0.1 and PAPER.shift_window == (0.2, 0.1) and PAPER.zoom == 0.3
    assert PAPER.zoom_span == (1.3, 1.5) and all(key.startswith("msd_") for key in PAPER.zoom_sets)
    assert PAPER.spatial == 0 and STRONG.spatial > 0


def test_recipes_out_of_range_are_refused():
    with pytest.raises(SettingError, match=r"noise is 1\.5; it is a probability"):
        AugmentSettings(noise=1.5)
    with pytest.raises(SettingError, match=r"scale is .* smaller number first"):
        AugmentSettings(scale=(1.2, 0.8))


def test_every_class_and_every_named_tissue_is_known():
    known = anatomy()
    for key in taxonomy().keys:
        low, high = known.tissues[key].volume_ml or (0, 1)
        assert low < high
    for name, tissue in {
        "bones": "bone",
        "left psoas muscle": "muscle",
        "vertebrae L1": "bone",
        "heart": "heart",
    }.items():
        (source_,) = parse_labels({"1": {"name": name}}, "test")
        assert known.of_source(source_).key == tissue, name
    (tumor,) = parse_labels({"1": ["liver", "liver_tumor"]}, "test")
    assert known.of_source(tumor).key == "liver_tumor", "the lesion lies on top"
    (unknown,) = parse_labels({"1": {"name": "pacemaker"}}, "test")
    assert known.of_source(unknown) is None
