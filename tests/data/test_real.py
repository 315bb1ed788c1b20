"""The tables' ideas on real scans, beside the repository: see `shared_dir`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from viscera.data.cache import CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import parse_table
from viscera.data.layout import find_cases
from viscera.data.verify import verify_sets

PAIRS = {"kidney": "kidneys", "adrenal_gland": "adrenal_glands", "lung": "lungs", "femur": "femur_heads"}
ORGANS = {"liver": "liver", "spleen": "spleen", "aorta": "aorta", "urinary_bladder": "bladder"}


@pytest.fixture(scope="module")
def scan(shared_dir):
    """A trunk whose kidneys, adrenal glands, lungs and femurs are put under one label each, sides unsaid."""
    folder = shared_dir / "data" / "abdomen_pelvis_3mm"
    names = json.loads((folder / "classes.json").read_text())
    labels = {}
    for value, name in names.items():
        if name in ORGANS:
            labels[value] = ORGANS[name]
        else:
            pair = next((group for word, group in PAIRS.items() if name.startswith(word) and "cyst" not in name), None)
            labels[value] = pair if pair else {"name": name}
    fields = {
        "title": "t",
        "image": "{case:abdomen_pelvis_3mm}/ct{ext}",
        "label": "{case:abdomen_pelvis_3mm}/labels{ext}",
    }
    table = parse_table("real", {**fields, "labels": labels, "example": "a1"})
    return names, find_cases(table, folder.parent)


def test_a_real_scan_has_no_faults(scan):
    _, found = scan
    result = verify_sets([found])
    assert result.errors == 0, result.faults


def test_sides_of_real_organs_are_what_their_own_labels_say(scan, tmp_path):
    names, found = scan
    settings = CacheSettings(spacing_mm=(3.0, 3.0, 3.0))
    cache_cases(found.cases, tmp_path, settings)
    entry = open_cached(found.cases, tmp_path, settings)[0][0]
    drawing = entry.drawing()
    for value, name in names.items():
        if drawing.mask(value, "left").any() or drawing.mask(value, "right").any():
            side = "left" if "left" in name else "right"
            assert (drawing.mask(value) == drawing.mask(value, side)).all(), name
    assert np.argwhere(drawing.mask("5")).mean(0)[0] > np.argwhere(drawing.mask("1"))[0].mean(0), (
        "liver right of spleen"
    )
    size = sum(path.stat().st_size for path in entry.folder.iterdir())
    assert size <= np.prod(entry.shape) * 32 / 20, "a twentieth of 32 dense channels"
