"""The distance tolerance of the surface Dice, class by class: `knowledge/tolerances.toml`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from viscera.errors import KnowledgeError
from viscera.taxonomy import read_table


@dataclass(frozen=True)
class Tolerance:
    """How far two surfaces of a class may lie apart and still agree."""

    mm: float
    source: str  # the citation in full


@cache
def tolerances() -> dict[str, Tolerance]:
    """The tolerance of every class of the taxonomy; the key "" holds the fallback for all other classes."""
    table = read_table("tolerances.toml")
    found = {"": Tolerance(table["fallback_mm"], table["source"]["totalsegmentator"])}
    for key, row in table["structure"].items():
        if row["source"] not in table["source"]:
            raise KnowledgeError(f"tolerances.toml: {key!r} cites {row['source']!r}, which is no source there.")
        found[key] = Tolerance(row["mm"], table["source"][row["source"]])
    return found


def tolerances_mm(keys: Iterable[str]) -> dict[str, float]:
    """The tolerance in mm of each of these classes, known to the taxonomy or not."""
    known = tolerances()
    return {key: known.get(key, known[""]).mm for key in keys}
