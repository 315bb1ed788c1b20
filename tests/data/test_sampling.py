from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from viscera.data.loader import PatchSource, patch_loader
from viscera.data.sampling import PatchSampler, SamplingSettings
from viscera.data.transforms import NONE, STRONG
from viscera.errors import InputError, SettingError
from viscera.taxonomy import taxonomy

PATCH = (16, 20, 24)
WINDOW = (-175.0, 250.0)
CLASSES = taxonomy().keys


def sampler(entries, seed=0, **fields):
    return PatchSampler(entries, CLASSES, SamplingSettings(patch_voxels=PATCH, **fields), seed)


def test_the_nth_draw_depends_on_the_seed_and_n_alone(entries):
    one, two = sampler(entries), sampler(entries)
    forward = [one.draw(n) for n in range(20)]
    assert [two.draw(n) for n in reversed(range(20))] == forward[::-1]
    assert sampler(entries, seed=1).draw(0) != forward[0]


def test_sets_are_drawn_alike_however_many_scans_they_have(entries):
    made = sampler(entries)
    share = Counter(entries[made.draw(n).case].dataset for n in range(600))
    assert len(entries) == 8 and abs(share["kits"] - 300) < 75, "kits has six of the eight scans"


def test_a_set_may_be_drawn_from_more_often_than_others(entries):
    made = sampler(entries, set_weights={"amos": 3.0})
    share = Counter(entries[made.draw(n).case].dataset for n in range(600))
    assert abs(share["amos"] - 450) < 60
    with pytest.raises(SettingError, match="names 'lits'"):
        sampler(entries, set_weights={"lits": 1.0})


def test_lesions_are_lifted_and_shares_are_as_told(entries):
    made = sampler(entries)
    draws = [made.draw(n) for n in range(1500)]
    told = made.probabilities()["kits"]
    seen = Counter(d.target or "background" for d in draws if entries[d.case].dataset == "kits")
    for row, share in told.items():
        assert abs(seen[row] / seen.total() - share) < 0.06, row
    assert told["kidney_tumor"] + told.get("kidney_cyst", 0) == pytest.approx(5 / 8)
    assert told["background"] == pytest.approx(1 / 8)
    assert made.probabilities()["amos"]["background"] == pytest.approx(1 / 3), "without lesions 1 : 2"


def test_a_class_that_few_sets_draw_is_lifted_there(entries):
    told = sampler(entries, rarity_power=1.0).probabilities()["amos"]
    assert told["liver"] == pytest.approx(2 * told["left_kidney"]), "kits draws kidneys too, but no liver"


def test_the_target_lies_in_the_patch_and_the_patch_in_the_scan(entries):
    made = sampler(entries, background=0.0, jitter=0.9)
    for number in range(60):
        draw = made.draw(number)
        entry, table = entries[draw.case], made.tables[draw.case]
        start = [round(c - (p - 1) / 2) for c, p in zip(draw.centre, PATCH, strict=True)]
        assert all(a >= 0 and a + p <= n for a, p, n in zip(start, PATCH, entry.shape, strict=True))
        source = PatchSource(made, NONE, WINDOW)
        patch = source[number]
        assert table.rows[CLASSES.index(draw.target)][patch.codes].any(), draw


def test_only_what_is_annotated_and_there_is_a_target(entries):
    told = sampler(entries).probabilities()
    assert set(told["kits"]) <= {"background", "left_kidney", "right_kidney", "kidney_tumor", "kidney_cyst"}
    assert "colon" not in told["amos"]


def test_a_scan_smaller_than_the_patch_is_centred(entries):
    made = PatchSampler(entries, CLASSES, SamplingSettings(patch_voxels=(128, 128, 128)), 0)
    patch = PatchSource(made, NONE, WINDOW)[0]
    draw = made.draw(0)
    assert patch.image.shape == (128, 128, 128)
    codes = entries[draw.case].codes()
    assert (patch.codes > 0).sum() == (codes > 0).sum()


def test_settings_out_of_range_are_refused(entries):
    for fields in ({"patch_voxels": (4, 8, 8)}, {"lesions": -1.0}, {"jitter": 2.0}):
        with pytest.raises(SettingError):
            SamplingSettings(**fields)
    with pytest.raises(InputError, match="viscera data cache"):
        PatchSampler([], CLASSES, SamplingSettings(), 0)


def batches(entries, **fields):
    source = PatchSource(sampler(entries), STRONG, WINDOW)
    fields = {"batch_size": 2, "start_step": 0, "stop_step": 3, "workers": 0, **fields}
    return list(patch_loader(source, **fields))


def test_batches_are_as_promised(entries):
    batch = batches(entries, stop_step=1)[0]
    assert batch.image.shape == (2, 1, *PATCH) and batch.image.dtype == torch.float32
    assert batch.image.min() >= 0 and batch.image.max() <= 1
    assert batch.target.shape == (2, len(CLASSES), *PATCH) and batch.target.dtype == torch.uint8
    assert batch.annotated.shape == (2, len(CLASSES)) and len(batch.cases) == 2


def test_a_resumed_run_sees_the_batches_it_would_have_seen(entries):
    whole = batches(entries)
    later = batches(entries, start_step=2)
    assert torch.equal(whole[2].image, later[0].image) and torch.equal(whole[2].target, later[0].target)


def test_processes_share_the_sequence_of_one(entries):
    whole = batches(entries)
    parts = [batches(entries, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        together = torch.cat([part[step].image for part in parts])
        assert torch.equal(together, batch.image)
    with pytest.raises(SettingError, match="multiple"):
        batches(entries, batch_size=3, world_size=2)


def test_workers_change_nothing(entries):
    alone, helped = batches(entries), batches(entries, workers=1)
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.image, two.image) and torch.equal(one.target, two.target) and one.cases == two.cases


def test_draws_are_spread_over_the_scan(entries):
    made = sampler(entries, organs=0.0, lesions=0.0)
    heights = np.array([made.draw(n).centre[2] / entries[made.draw(n).case].shape[2] for n in range(200)])
    assert heights.min() < 0.3 and heights.max() > 0.7
