"""Every data-set table passes this by existing: it is complete, and a phantom in its layout comes back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from viscera.data.assemble import lookup
from viscera.data.cache import CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import dataset_keys, dataset_table
from viscera.data.layout import find_cases, with_labels_of
from viscera.data.phantom import PhantomSettings, phantom_cases, write_dataset
from viscera.data.verify import verify_sets
from viscera.taxonomy import taxonomy

SPACING_MM = (6.0, 6.0, 7.0)
SETTINGS = PhantomSettings(spacing_mm=SPACING_MM)


@pytest.mark.parametrize("key", dataset_keys())
def test_a_table_says_where_the_set_comes_from(key):
    table = dataset_table(key)
    assert table.title and table.protocol and table.home.startswith("http")
    if not table.labels_from_file:
        assert table.licence and table.citation and table.cases
        assert all(group.annotated for group in table.groups)
    for group in table.groups:
        assert len({source.value for source in group.sources}) == len(group.sources)
        drawn = {key for source in group.sources for key in source.classes}
        assert not set(group.free_of) & drawn, "drawn lesions need no free_of"
        assert set(group.free_of) <= set(group.annotated), "absent lesions are true negatives"
        assert all(taxonomy()[lesion].is_lesion for lesion in group.free_of)


@pytest.mark.parametrize("key", dataset_keys())
def test_a_phantom_in_this_layout_is_found_whole_and_comes_back_voxel_for_voxel(key, tmp_path):
    table = dataset_table(key)
    folder = tmp_path / key
    images = write_dataset(table, folder, 1, 3, SETTINGS)
    found = find_cases(table, folder)
    assert len(found.cases) == len(images) == len(table.groups)
    assert not found.misplaced

    result = verify_sets([found])
    assert result.errors == 0, result.faults

    # At the phantom's own spacing and without cropping, nothing is interpolated: targets must equal the patient.
    settings = CacheSettings(spacing_mm=SPACING_MM, crop_to_body=False)
    assert {outcome.status for outcome in cache_cases(found.cases, tmp_path / "cache", settings)} == {"made"}
    entries, missing = open_cached(found.cases, tmp_path / "cache", settings)
    assert not missing
    patients = {case.name: case.phantom for case in phantom_cases(with_labels_of(table, folder), 1, 3, SETTINGS)}
    classes = taxonomy().keys
    for case, entry in zip(found.cases, entries, strict=True):
        patient = patients[case.name]
        np.testing.assert_array_equal(entry.image(), np.rint(patient.hu).astype(np.int16))
        targets = entry.table(classes)
        assert tuple(np.array(classes)[targets.annotated.numpy()]) == case.annotated
        rows = lookup(targets.rows, torch.from_numpy(entry.codes().astype(np.int32)))
        for key_, row in zip(classes, rows.numpy(), strict=False):
            if key_ in case.annotated:
                np.testing.assert_array_equal(row.astype(bool), patient.masks[key_], err_msg=f"{case.id} {key_}")
        for union, row in zip(case.group.unions, rows.numpy()[len(classes) :], strict=True):
            together = np.any([patient.masks[member] for member in union], axis=0)
            np.testing.assert_array_equal(row.astype(bool), together)


def test_the_classes_of_the_published_assembly():
    """The table of the paper's assembly, row by row (arXiv 2301.00785)."""
    known = taxonomy()
    expected = {
        "btcv": range(1, 15),
        "pancreas_ct": [1, 3, 4, 5, 6, 7, 11, 14],
        "chaos": [6],
        "lits": [6, 27],
        "kits": [2, 3, 26, 32],
        "word": [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 18, 19, 20, 21, 23, 24],
        "abdomenct1k": [1, 2, 3, 6, 11],
        "amos": [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22],
        "msd_liver": [6, 27],
        "msd_lung": [30],
        "msd_pancreas": [11, 28],
        "msd_hepatic_vessel": [15, 29],
        "msd_spleen": [1],
        "msd_colon": [31],
        "ctorg": [2, 3, 6, 16, 17, 21],
        "abdomenct12": [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 25],
        "flare22": [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14],
        "abdomenatlas": [1, 2, 3, 4, 6, 7, 8, 9, 11],
    }
    for key, ids in expected.items():
        table = dataset_table(key)
        free_of = {lesion for group in table.groups for lesion in group.free_of}
        assert [known[name].id for name in table.annotated if name not in free_of] == sorted(ids), key
