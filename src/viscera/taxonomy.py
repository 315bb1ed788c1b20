"""The classes: read once from `knowledge/taxonomy.toml` and checked. The only place where class ids exist."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

from viscera.errors import KnowledgeError

Kind = Literal["organ", "tumor", "cyst"]
Side = Literal["left", "right"]


def read_table(name: str) -> dict[str, Any]:
    """The table `viscera/knowledge/<name>` (a TOML file) as plain Python values.

    Raises KnowledgeError if there is no such table or it is not TOML.
    """
    try:
        return tomllib.loads(files("viscera.knowledge").joinpath(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KnowledgeError(f"There is no table {name!r} in viscera/knowledge.") from None
    except tomllib.TOMLDecodeError as error:
        raise KnowledgeError(f"The table {name!r} is not valid TOML: {error}") from error


def table_names(folder: str) -> list[str]:
    """The stems of all tables in `viscera/knowledge/<folder>`, sorted: ``['dints', 'lite', ...]``."""
    place = files("viscera.knowledge").joinpath(folder)
    return sorted(item.name.removesuffix(".toml") for item in place.iterdir() if item.name.endswith(".toml"))


@dataclass(frozen=True)
class Snomed:
    """A SNOMED CT code with its meaning, as DICOM Part 16 lists it."""

    code: str
    meaning: str
    exact: bool = True  # False: the class holds more than the code says


@dataclass(frozen=True)
class Structure:
    """One class: an organ, a vessel, a tumour or a cyst."""

    id: int  # 1..N, the value in a label map and the channel (id - 1) of a released checkpoint
    key: str  # what programs type
    name: str  # what people read
    kind: Kind
    colour: tuple[int, int, int]  # RGB, 0-255
    snomed: Snomed | None = None  # the kind of thing; side and region are coded apart (see taxonomy.toml)
    side: Side | None = None  # the patient's side
    pair: str | None = None  # key of the same organ on the other side
    inside: tuple[str, ...] = ()  # keys of the organs it lies in
    synonyms: tuple[str, ...] = ()

    @property
    def is_lesion(self) -> bool:
        """Whether this is a tumour or a cyst: painted over its organ, listed one by one."""
        return self.kind != "organ"


class Taxonomy:
    """The ordered classes and the named groups of them. Iterating gives `Structure`s in id order."""

    def __init__(self, structures: Iterable[Structure], groups: Mapping[str, tuple[str, ...]]) -> None:
        self.structures = tuple(structures)
        self._by_key = {s.key: s for s in self.structures}
        self._check()
        by_kind = {
            "all": tuple(s.key for s in self.structures),
            "organs": tuple(s.key for s in self.structures if s.kind == "organ"),
            "tumors": tuple(s.key for s in self.structures if s.kind == "tumor"),
            "cysts": tuple(s.key for s in self.structures if s.kind == "cyst"),
            "lesions": tuple(s.key for s in self.structures if s.is_lesion),
        }
        self.groups: Mapping[str, tuple[str, ...]] = MappingProxyType({**by_kind, **groups})
        for group, keys in self.groups.items():
            for key in keys:
                self._known(key, f"group {group!r}")

    def __iter__(self) -> Iterator[Structure]:
        return iter(self.structures)

    def __len__(self) -> int:
        return len(self.structures)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str | int) -> Structure:
        """The class with this key or this id (ids count from 1)."""
        if isinstance(key, int):
            if not 1 <= key <= len(self.structures):
                raise KeyError(key)
            return self.structures[key - 1]
        return self._by_key[key]

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys in id order."""
        return tuple(s.key for s in self.structures)

    def _known(self, key: str, where: str) -> None:
        if key not in self._by_key:
            raise KnowledgeError(f"taxonomy.toml: {where} names {key!r}, which is no class.")

    def _check(self) -> None:
        if len(self._by_key) != len(self.structures):
            raise KnowledgeError("taxonomy.toml: two classes share a key.")
        for position, s in enumerate(self.structures, start=1):
            if s.id != position:
                raise KnowledgeError(f"taxonomy.toml: {s.key!r} has id {s.id} but stands at place {position}.")
            if (s.side is None) != (s.pair is None):
                raise KnowledgeError(f"taxonomy.toml: {s.key!r} must have both `side` and `pair`, or neither.")
            for other in (*s.inside, *([s.pair] if s.pair else [])):
                self._known(other, repr(s.key))
            if s.pair and self._by_key[s.pair].pair != s.key:
                raise KnowledgeError(f"taxonomy.toml: {s.key!r} and {s.pair!r} must name each other as pair.")


def _structure(row: Mapping[str, Any]) -> Structure:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    try:
        if "snomed" in fields:
            fields["snomed"] = Snomed(**fields["snomed"])
        return Structure(**fields)
    except TypeError as error:
        raise KnowledgeError(f"taxonomy.toml: class {row.get('key', row)!r}: {error}") from error


@cache
def taxonomy() -> Taxonomy:
    """The taxonomy that ships with viscera, read and checked once."""
    table = read_table("taxonomy.toml")
    groups = {name: tuple(keys) for name, keys in table["groups"].items()}
    return Taxonomy([_structure(row) for row in table["structure"]], groups)
