from __future__ import annotations

import numpy as np
import pytest

from viscera.data.anatomy import anatomy
from viscera.data.cache import CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import dataset_table, parse_table
from viscera.data.layout import find_cases
from viscera.data.phantom import PhantomSettings, make_phantom, write_dataset
from viscera.data.synthesis import body_around, paint
from viscera.errors import SettingError
from viscera.io.read import read_volume
from viscera.taxonomy import taxonomy

COARSE = PhantomSettings(spacing_mm=(5.0, 5.0, 6.0), lesions=(2, 2))


def centre(mask):
    return np.argwhere(mask).mean(0)


def test_a_patient_can_be_made_again_and_another_differs():
    one, again, other = make_phantom(3, COARSE), make_phantom(3, COARSE), make_phantom(4, COARSE)
    np.testing.assert_array_equal(one.hu, again.hu)
    assert one.hu.shape != other.hu.shape or not np.array_equal(one.hu, other.hu)


@pytest.fixture(scope="module")
def patient():
    return make_phantom(0, COARSE, ["liver_tumor", "kidney_tumor"])


def test_every_organ_is_there_on_its_side(patient):
    for structure in taxonomy():
        mask = patient.masks[structure.key]
        assert mask.any() or structure.is_lesion, structure.key
        if structure.side == "right":
            assert centre(mask)[0] > centre(patient.masks[structure.pair])[0], structure.key
    assert centre(patient.masks["liver"])[0] > centre(patient.masks["spleen"])[0]
    assert (
        centre(patient.masks["bladder"])[2] < centre(patient.masks["liver"])[2] < centre(patient.masks["left_lung"])[2]
    )


def test_organs_have_plausible_volumes_and_numbers(patient):
    voxel_ml = np.prod(patient.spacing_mm) / 1000
    for key in ("liver", "spleen", "left_kidney", "right_lung", "aorta", "bladder"):
        low, high = anatomy().tissues[key].volume_ml
        assert low <= patient.masks[key].sum() * voxel_ml <= high, key
    assert patient.hu[patient.masks["left_lung"]].mean() < -700 < patient.hu[patient.masks["liver"]].mean()
    assert patient.hu.min() >= -1024 and patient.hu.max() <= 3071


def test_lesions_lie_in_their_organs(patient):
    lesions = patient.masks["liver_tumor"] | patient.masks["kidney_tumor"]
    organs = np.any([patient.masks[key] for key in ("liver", "left_kidney", "right_kidney")], axis=0)
    assert lesions.any() and not (lesions & ~organs).any()


def test_scans_are_stored_in_odd_orders_and_read_as_images(tmp_path):
    images = write_dataset(dataset_table("msd_spleen"), tmp_path, 4, 0, COARSE)
    affines = [read_volume(image).affine for image in images]
    assert len({tuple(np.sign(a[:3, :3].round(0)).ravel()) for a in affines}) > 1
    assert any(np.abs(a[:3, :3]).min() > 1e-6 for a in affines), "some are turned a little"


def test_two_sets_have_different_patients(tmp_path):
    one = write_dataset(dataset_table("msd_spleen"), tmp_path / "a", 1, 0, COARSE)
    two = write_dataset(dataset_table("lits"), tmp_path / "b", 1, 0, COARSE)
    assert sorted(read_volume(one[0]).shape) != sorted(read_volume(two[0]).shape)


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match=r"between 0\.5 and 10"):
        PhantomSettings(spacing_mm=(0.1, 1.0, 1.0))
    with pytest.raises(SettingError, match="smaller to a larger"):
        PhantomSettings(part=(0.7, 0.3))


def test_a_part_of_the_trunk():
    chest = make_phantom(0, PhantomSettings(spacing_mm=(6.0, 6.0, 6.0), part=(0.6, 1.0)))
    assert chest.masks["left_lung"].any() and not chest.masks["bladder"].any()


def test_painting_gives_tissues_their_means_and_edges_their_softness():
    known = anatomy().tissues
    tissues = np.zeros((40, 40, 40), np.uint8)
    tissues[:, 20:] = 1
    hu = paint(tissues, [known["air"], known["liver"]], (2.0, 2.0, 2.0), np.random.default_rng(0), noise_hu=5.0)
    assert hu[:, :15].mean() < -980 and 20 < hu[:, 25:].mean() < 160
    assert -900 < hu[:, 19:21].mean() < 0


def test_left_and_right_look_alike():
    known = anatomy().tissues
    tissues = np.repeat(np.arange(2, dtype=np.uint8), 20)[:, None, None] * np.ones((40, 30, 30), np.uint8)
    pair = [known["left_kidney"], known["right_kidney"]]
    hu = paint(tissues, pair, (3.0, 3.0, 3.0), np.random.default_rng(1), noise_hu=1.0)
    assert abs(hu[:15].mean() - hu[25:].mean()) < 8


def test_label_maps_without_images_get_a_body(tmp_path):
    write_dataset(dataset_table("amos"), tmp_path, 1, 0, COARSE)
    labels = dict.fromkeys("1", "spleen") | {"2": "right_kidney", "3": "left_kidney", "6": "liver", "7": "stomach"}
    for value in range(4, 16):
        labels.setdefault(str(value), {"name": f"organ {value}"})
    found = find_cases(parse_table("maps", {"title": "t", "label": "labels1/{case}{ext}", "labels": labels}), tmp_path)
    assert found.cases[0].image is None
    settings = CacheSettings(spacing_mm=(5.0, 5.0, 5.0))
    outcome = cache_cases(found.cases, tmp_path / "cache", settings)[0]
    assert outcome.status == "made", outcome
    entry = open_cached(found.cases, tmp_path / "cache", settings)[0][0]
    hu, liver = entry.image(), entry.drawing().mask("6")
    assert 20 < hu[liver].mean() < 170
    assert (hu > -200).mean() > 2 * liver.mean(), "a body lies around the organs"


def test_a_body_has_wall_fat_and_spine():
    organ = np.zeros((60, 50, 20), bool)
    organ[15:45, 15:35, 4:16] = True
    tissues, palette = body_around({"liver": organ}, (4.0, 4.0, 4.0), np.random.default_rng(0))
    names = {palette[int(code)].key for code in np.unique(tissues)}
    assert names == {"air", "fat", "muscle", "bone", "liver"}
    assert (tissues[organ] == 4).all() and tissues[0, 0, 10] == 0
