"""Likeness as numbers and pictures."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.image import imread

from viscera.errors import SettingError
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank, Finish, make
from viscera.text.encoders import FakeEncoder, load
from viscera.text.prompts import prompt
from viscera.text.similarity import closest, cosines, mean_cosine, save_picture, save_table, title


def bank(*vectors, name="hand-made") -> Bank:
    keys = taxonomy().keys[: len(vectors)]
    return Bank(keys, np.array(vectors, np.float32), "x", name, "v3", tuple((key,) for key in keys))


def test_cosines_by_hand():
    # 0 and 90 degrees, and the half of it: cos 45 degrees = 0.7071.
    found = cosines(bank([2, 0], [0, 3], [1, 1]))
    np.testing.assert_allclose(found, [[1, 0, 0.70711], [0, 1, 0.70711], [0.70711, 0.70711, 1]], atol=1e-5)
    assert mean_cosine(bank([2, 0], [0, 3], [1, 1])) == pytest.approx(2 * 0.70711 / 3, abs=1e-5)


def test_the_closest_two_may_be_far_apart():
    assert closest(bank([1, 0], [-1, 0.1])) == ("spleen", "right_kidney", pytest.approx(-0.995, abs=1e-3))
    assert closest(bank([1, 0], [0, 1], [0.1, 1]))[:2] == ("right_kidney", "left_kidney")


def test_a_zero_vector_has_no_direction():
    with pytest.raises(SettingError, match="right_kidney"):
        cosines(bank([1, 0], [0, 0]))


def test_the_table_has_every_pair_of_both_banks_most_alike_first(tmp_path):
    banks = [bank([2, 0], [0, 3], [1, 2], name="one"), bank([1, 0], [1, 0], [0, 1], name="two")]
    save_table(banks, tmp_path / "new" / "table.csv")
    rows = list(csv.reader((tmp_path / "new" / "table.csv").read_text().splitlines()))
    assert rows[0] == ["class", "other", "one, v3, raw", "two, v3, raw"]
    assert rows[1:] == [
        ["right_kidney", "left_kidney", "0.8944", "0.0000"],
        ["spleen", "left_kidney", "0.4472", "0.0000"],
        ["spleen", "right_kidney", "0.0000", "1.0000"],
    ]


def test_a_picture_of_one_or_two_banks_is_drawn(tmp_path):
    one = make(taxonomy(), FakeEncoder(), prompt("v3"), Finish(centre=True))
    save_picture([one], tmp_path / "one.png")
    save_picture([one, make(taxonomy(), load("few-hot"), prompt("v3"))], tmp_path / "two.png")
    single, double = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert double.shape[1] == pytest.approx(2 * single.shape[1], abs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_map_shows_the_cosines_in_the_order_of_the_tree(tmp_path):
    from matplotlib.figure import Figure

    from viscera.text.similarity import _draw

    part = Figure()
    # Classes 1 and 3 are alike, 2 stands apart.
    _draw(bank([1, 0], [0, 1], [1, 0.1]), part)
    _, heat_map, _ = part.axes
    names = [label.get_text() for label in heat_map.get_yticklabels()]
    assert abs(names.index("spleen") - names.index("left kidney")) == 1
    assert names == [label.get_text() for label in heat_map.get_xticklabels()]
    shown = heat_map.images[0].get_array()
    place = {name: names.index(name) for name in names}
    assert shown[place["spleen"], place["left kidney"]] == pytest.approx(0.995, abs=1e-3)
    assert shown[place["spleen"], place["right kidney"]] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.diag(shown), 1)


def test_banks_of_other_classes_are_not_compared(tmp_path):
    with pytest.raises(SettingError, match="other classes"):
        save_table([bank([1, 0], [0, 1]), bank([1, 0], [0, 1], [1, 1])], tmp_path / "x.csv")
    with pytest.raises(SettingError, match="at least two"):
        save_picture([bank([1, 0])], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_title_tells_encoder_prompt_and_finish():
    assert title(make(taxonomy(), load("few-hot"), prompt("v3"), Finish(centre=True))) == "few-hot, centred"
    assert title(make(taxonomy(), FakeEncoder(), prompt("names"))) == "fake, names, raw"
