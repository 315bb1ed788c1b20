"""What tissues look like in CT and how large organs are: `knowledge/anatomy.toml`, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

from viscera.data.catalogue import Source
from viscera.errors import KnowledgeError
from viscera.taxonomy import read_table, taxonomy

Phase = Literal["plain", "early", "arterial", "portal", "delayed"]


@dataclass(frozen=True)
class Tissue:
    """One tissue.

    hu          per phase of contrast medium: mean and spread over patients, HU
    texture_hu  spread inside one organ beyond image noise
    volume_ml   plausible volume of a whole organ in an adult; None where nothing is known
    words       names under which data sets draw it where it is no class
    rim         thickness, mm, of an outer layer that takes up contrast medium before the rest, and by how many HU it is
                brighter then: least and most of each; None where there is none
    """

    key: str
    hu: Mapping[Phase, tuple[float, float]]
    texture_hu: float
    volume_ml: tuple[float, float] | None = None
    words: tuple[str, ...] = ()
    rim: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def kind(self) -> str:
        """The key without its side: left and right are one tissue."""
        return self.key.removeprefix("left_").removeprefix("right_")


@dataclass(frozen=True)
class Anatomy:
    """All tissues by key; the keys of the classes are among them."""

    phases: tuple[Phase, ...]
    tissues: Mapping[str, Tissue]

    def of_source(self, source: Source) -> Tissue | None:
        """The tissue of something a data set draws: of its lesion, its organ, one of its union, or by its name."""
        known = taxonomy()
        lesions = [key for key in source.classes if known[key].is_lesion]
        for key in (*lesions, *source.classes, *source.union):
            return self.tissues[key]
        words = set(re.findall(r"[a-z]+", source.name.lower()))
        words |= {word.removesuffix("s") for word in words}
        return next((tissue for tissue in self.tissues.values() if words & set(tissue.words)), None)


@cache
def anatomy() -> Anatomy:
    """The table that ships with viscera. Raises KnowledgeError if it breaks a rule."""
    table = read_table("anatomy.toml")
    phases: tuple[Phase, ...] = tuple(table["phases"])
    tissues: dict[str, Tissue] = {}
    for key, row in table["tissue"].items():
        hu = {phase: row["hu"].get(phase, row["hu"]["plain"]) for phase in phases}
        volume = row.get("volume_ml")
        rim = row.get("rim")
        tissues[key] = Tissue(
            key,
            MappingProxyType({phase: (float(mean), float(spread)) for phase, (mean, spread) in hu.items()}),
            float(row["texture"]),
            (float(volume[0]), float(volume[1])) if volume else None,
            tuple(row.get("words", ())),
            ((float(rim["mm"][0]), float(rim["mm"][1])), (float(rim["hu"][0]), float(rim["hu"][1]))) if rim else None,
        )
    for key in taxonomy().keys:
        if key not in tissues:
            raise KnowledgeError(f"anatomy.toml: the class {key!r} has no [tissue.{key}].")
    return Anatomy(phases, MappingProxyType(tissues))
