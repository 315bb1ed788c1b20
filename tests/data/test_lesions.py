from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from viscera.data.assemble import LabelTable
from viscera.data.lesions import LesionSettings, draw_lesion, drawn_lesion, grow_lesion, lesion_kinds
from viscera.errors import SettingError
from viscera.taxonomy import taxonomy

CLASSES = taxonomy().keys
MM = (2.0, 2.0, 2.0)
SHAPE = (48, 48, 48)


def organ_patch(organ):
    """A block of 110 HU tissue in fat, and its table: code 1 is the organ."""
    codes = torch.zeros(SHAPE, dtype=torch.int32)
    codes[8:40, 8:40, 8:40] = 1
    hu = torch.where(codes == 1, 110.0, -100.0)
    rows = torch.zeros(len(CLASSES), 2, dtype=torch.bool)
    rows[CLASSES.index(organ), 1] = True
    annotated = torch.zeros(len(CLASSES), dtype=torch.bool)
    annotated[CLASSES.index(organ)] = True
    return hu, codes, LabelTable(rows, annotated, torch.zeros(0, len(CLASSES), dtype=torch.bool))


def plain(key, seed=0, radius_mm=12.0, **fields):
    """A smooth ball without texture, unless told otherwise."""
    lesion = drawn_lesion(lesion_kinds()[key], np.random.default_rng(seed))
    quiet = {"radii_mm": (radius_mm,) * 3, "texture_hu": 0.0, "roughness": 0.0, "spiked": False, "rim_hu": 0.0}
    return replace(lesion, **{**quiet, "core_hu": 0.0, "mass_effect": 0.0, "edge_mm": 0.5, **fields})


HOSTS = {
    "liver_tumor": "liver",
    "kidney_tumor": "left_kidney",
    "pancreas_tumor": "pancreas",
    "kidney_cyst": "left_kidney",
}
HOSTS |= {"lung_tumor": "right_lung", "colon_tumor": "colon"}


@pytest.mark.parametrize("key", lesion_kinds())
def test_a_lesion_is_drawn_counts_as_its_organ_and_keeps_to_its_size(key):
    hu, codes, table = organ_patch(HOSTS[key])
    before = codes.clone()
    out, codes, grown = grow_lesion(plain(key), hu.clone(), codes, table, MM, CLASSES)
    row, host = CLASSES.index(key), CLASSES.index(HOSTS[key])
    lesion = grown.rows[row][codes]
    assert grown.annotated[row] and 20 < lesion.sum() <= 1.2 * 4 / 3 * np.pi * 6**3
    assert grown.rows[host][codes][lesion].all(), "a tumour voxel is organ too"
    assert torch.equal(codes[~lesion], before[~lesion])
    assert torch.equal(grown.rows[:, :2], table.rows)
    far = torch.nn.functional.max_pool3d(lesion[None, None].float(), 7, 1, 3)[0, 0] == 0
    assert torch.equal(out[far], hu[far]), "nothing changes away from it"


def test_its_contrast_is_against_the_organ_or_its_own():
    for key, fields, expected in (
        ("liver_tumor", {"hu": -40.0}, 70.0),
        ("kidney_cyst", {"hu": 5.0}, 5.0),
    ):
        hu, codes, table = organ_patch(HOSTS[key])
        out, codes, grown = grow_lesion(plain(key, radius_mm=14.0, **fields), hu, codes, table, MM, CLASSES)
        inside = grown.rows[CLASSES.index(key)][codes]
        core = torch.nn.functional.max_pool3d(-inside[None, None].float(), 5, 1, 2)[0, 0] == -1
        assert float(out[core].mean()) == pytest.approx(expected, abs=3), key


def test_it_stays_in_its_organ_unless_it_is_exophytic():
    for key, may_leave in (("liver_tumor", False), ("lung_tumor", False), ("kidney_tumor", True)):
        left = False
        for seed in range(8):
            hu, codes, table = organ_patch(HOSTS[key])
            outside = codes == 0
            _, codes, grown = grow_lesion(plain(key, seed), hu, codes, table, MM, CLASSES)
            left |= bool(grown.rows[CLASSES.index(key)][codes][outside].any())
        assert left == may_leave, key


def test_a_mass_pushes_its_surroundings_outwards():
    hu, codes, table = organ_patch("liver")
    hu += torch.arange(48.0)[:, None, None]  # a ruler along x
    lesion = next(
        lesion
        for lesion in (plain("liver_tumor", seed, mass_effect=0.5) for seed in range(99))
        if all(20 <= c <= 27 for c in place(lesion, codes))
    )
    x, y, z = place(lesion, codes)
    out, _, _ = grow_lesion(lesion, hu.clone(), codes.clone(), table, MM, CLASSES)
    moved = out[:, y, z] - hu[:, y, z]
    # The ball ends 6 voxels from its centre; at 9 voxels (r = 1.5) lies what lay at 9 * (1 - 0.5 * 0.25^2) = 8.72.
    assert moved[x + 9] == pytest.approx(-0.28, abs=0.02) and moved[x - 9] == pytest.approx(0.28, abs=0.02)
    assert abs(moved[x + 13]) < 1e-3, "beyond two radii nothing moves"


def place(lesion, codes):
    """The voxel at which a lesion will be centred: its first draw."""
    places = (codes == 1).nonzero()
    return places[int(np.random.Generator(np.random.Philox(lesion.seed)).integers(len(places)))].tolist()


def test_texture_core_and_rim_show():
    def spread(**fields):
        hu, codes, table = organ_patch("liver")
        out, codes, grown = grow_lesion(plain("liver_tumor", radius_mm=16.0, **fields), hu, codes, table, MM, CLASSES)
        return float(out[grown.rows[CLASSES.index("liver_tumor")][codes]].std())

    quiet = spread()
    assert spread(texture_hu=15.0) > quiet + 5
    assert spread(core_hu=40.0) > quiet + 2
    assert spread(rim_hu=40.0) > quiet + 2


def test_no_lesion_grows_where_its_organ_is_not_or_over_another():
    hu, codes, table = organ_patch("spleen")
    same = grow_lesion(plain("liver_tumor"), hu, codes, table, MM, CLASSES)
    assert same[1] is codes and same[2] is table
    hu, codes, table = organ_patch("left_kidney")
    for key, seed in (("kidney_tumor", 0), ("kidney_cyst", 0), ("kidney_cyst", 3)):
        hu, codes, table = grow_lesion(plain(key, seed), hu, codes, table, MM, CLASSES)
    both = table.rows[CLASSES.index("kidney_tumor")] & table.rows[CLASSES.index("kidney_cyst")]
    assert not both.any()


def test_lesions_are_drawn_only_where_they_may_be_taught(entries):
    amos, kits = (next(entry for entry in entries if entry.dataset == key) for key in ("amos", "kits"))

    def kinds(entry, **fields):
        rng = np.random.default_rng(0)
        settings = LesionSettings(probability=1.0, **fields)
        return {lesion.kind.key for _ in range(60) for lesion in draw_lesion(settings, entry, rng)}

    assert kinds(kits) == {"kidney_tumor", "kidney_cyst"}
    assert kinds(amos) == set(), "real tumours may be there that nobody drew"
    assert kinds(replace(amos, annotated=(*amos.annotated, "liver_tumor"))) == {"liver_tumor"}
    assert {"liver_tumor", "pancreas_tumor", "kidney_tumor"} <= kinds(amos, anywhere=True)
    assert draw_lesion(LesionSettings(probability=0.0), kits, np.random.default_rng(0)) == ()


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="between 0 and 1"):
        LesionSettings(probability=2.0)
    with pytest.raises(SettingError, match="'spleen' can be grown; known: liver_tumor"):
        LesionSettings(kinds=("spleen",))
