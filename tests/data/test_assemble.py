from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from viscera.data.assemble import collate, label_table, lookup
from viscera.data.catalogue import parse_labels
from viscera.data.drawing import Drawn

CLASSES = ("right_kidney", "left_kidney", "liver", "stomach", "duodenum", "kidney_tumor", "liver_tumor")


@given(st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**31))
def test_the_lookup_is_indexing(rows, codes, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(rows, codes, generator=generator) > 0.5
    patch = torch.randint(0, codes, (3, 4, 5), generator=generator, dtype=torch.int32)
    assert torch.equal(lookup(table, patch).bool(), table[:, patch.long()])


def test_a_scan_teaches_what_its_set_draws():
    sources = parse_labels({"1": "kidneys", "2": "kidney_tumor", "3": {"name": "bones"}}, "test")
    meanings = ((), (Drawn("1", "left"),), (Drawn("1", "right"),), (Drawn("2", "right"),), (Drawn("3"),))
    annotated = ("right_kidney", "left_kidney", "kidney_tumor")
    table = label_table(meanings, sources, annotated, (), CLASSES)
    assert table.annotated.tolist() == [True, True, False, False, False, True, False]
    by_class = dict(zip(CLASSES, table.rows.int().tolist(), strict=True))
    assert by_class["left_kidney"] == [0, 1, 0, 0, 0]
    assert by_class["right_kidney"] == [0, 0, 1, 1, 0], "a tumour voxel is kidney, on its side"
    assert by_class["kidney_tumor"] == [0, 0, 0, 1, 0]
    assert by_class["liver"] == [0] * 5


def test_a_class_that_is_annotated_and_absent_is_a_true_negative():
    sources = parse_labels({"1": "liver", "2": "liver_tumor"}, "test")
    table = label_table(((), (Drawn("1"),)), sources, ("liver", "liver_tumor"), (), CLASSES)
    row = CLASSES.index("liver_tumor")
    assert table.annotated[row] and not table.rows[row].any()


def test_what_was_drawn_as_one_is_a_union():
    sources = parse_labels({"1": "liver", "2": {"union": ["stomach", "duodenum"]}, "3": "duodenum"}, "test")
    meanings = ((), (Drawn("1"),), (Drawn("2"),), (Drawn("3"),))
    table = label_table(meanings, sources, ("liver",), (("stomach", "duodenum"),), CLASSES)
    assert table.annotated.tolist() == [key == "liver" for key in CLASSES], "its members are unknown, not absent"
    assert table.rows[-1].tolist() == [False, False, True, True], "what is surely duodenum is in the union too"
    assert table.union_members[0].nonzero().flatten().tolist() == [3, 4]
    fewer = label_table(meanings, sources, ("liver",), (("stomach", "duodenum"),), ("liver", "stomach"))
    assert len(fewer.rows) == 2 and fewer.union_members.shape == (0, 2), "without a duodenum it says nothing"


def test_batches_mix_sets_with_and_without_unions():
    sources = parse_labels({"1": "liver", "2": {"union": ["stomach", "duodenum"]}}, "test")
    meanings = ((), (Drawn("1"),), (Drawn("2"),))
    plain = label_table(meanings[:2], sources[:1], ("liver",), (), CLASSES)
    union = label_table(meanings, sources, ("liver",), (("stomach", "duodenum"),), CLASSES)
    codes = [torch.tensor([[[0, 1]]], dtype=torch.int32), torch.tensor([[[1, 2]]], dtype=torch.int32)]
    batch = collate([torch.zeros(1, 1, 2)] * 2, codes, [plain, union], ["a/1", "b/1"])
    assert batch.image.shape == (2, 1, 1, 1, 2) and batch.target.shape == (2, 7, 1, 1, 2)
    assert batch.annotated.shape == (2, 7) and batch.annotated.dtype == torch.bool
    assert batch.target[:, 2].flatten().tolist() == [0, 1, 1, 0]
    assert batch.union_target.flatten().tolist() == [0, 0, 0, 1]
    assert batch.union_members.sum((1, 2)).tolist() == [0, 2], "padding joins nothing"
    assert batch.to("cpu").cases == ("a/1", "b/1")
