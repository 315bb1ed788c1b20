"""The table of tolerances: one cited row per class."""

from __future__ import annotations

from viscera.metrics.tolerances import tolerances, tolerances_mm
from viscera.taxonomy import taxonomy


def test_every_class_has_one_and_nothing_else_has() -> None:
    assert set(tolerances()) == {"", *taxonomy().keys}
    assert all(0 < t.mm <= 7 for t in tolerances().values())
    named = ("doi:", "github.com/", "Our choice")
    assert all(any(how in t.source for how in named) for t in tolerances().values())


def test_pairs_agree() -> None:
    table = tolerances()
    assert all(table[s.key] == table[s.pair] for s in taxonomy() if s.pair)


def test_an_unknown_class_gets_the_fallback() -> None:
    assert tolerances_mm(["liver", "left_toe"]) == {"liver": 5.0, "left_toe": 3.0}
