"""Applies the rules of `knowledge/post.toml` in their order, and notes what each one changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from viscera.errors import KnowledgeError
from viscera.masks import Densities, MaskSet
from viscera.post.rules import LOOKS_AT, RULES
from viscera.taxonomy import read_table, taxonomy


@dataclass(frozen=True)
class RuleEntry:
    """One entry of post.toml."""

    name: str  # a function of viscera.post.rules
    classes: tuple[str, ...]  # the classes it is for
    reason: str  # why it is enabled
    arguments: Mapping[str, Any]  # the function's other arguments, units in their names


@dataclass(frozen=True)
class RuleNote:
    """What one rule did to one class."""

    rule: str
    key: str
    removed_ml: float
    added_ml: float


@cache
def rule_entries() -> tuple[RuleEntry, ...]:
    """The rules of post.toml in their order, checked. Raises KnowledgeError where one does not fit its function."""
    entries = []
    for row in read_table("post.toml")["rule"]:
        name, classes, reason = row.pop("name"), tuple(row.pop("classes")), row.pop("reason", "")
        if name not in RULES:
            raise KnowledgeError(f"post.toml: there is no rule {name!r}; there are {', '.join(RULES)}.")
        if not reason.strip():
            raise KnowledgeError(f"post.toml: the rule {name!r} has no reason.")
        wanted = set(inspect.signature(RULES[name]).parameters) - {"masks", "classes", "densities"}
        if wanted != set(row):
            raise KnowledgeError(f"post.toml: the rule {name!r} takes {sorted(wanted)}, the table has {sorted(row)}.")
        if unknown := [key for key in classes if key not in taxonomy()]:
            raise KnowledgeError(f"post.toml: the rule {name!r} names {', '.join(unknown)}, which is no class.")
        entries.append(RuleEntry(name, classes, reason, row))
    return tuple(entries)


def needed_classes(keys: Iterable[str]) -> list[str]:
    """`keys` and the classes whose masks their rules look at, and those these classes' own rules look at before that (a
    tumour's organs, the liver), in id order."""
    needed = set(keys)
    for entry in reversed(rule_entries()):
        if entry.name in LOOKS_AT:
            for key in needed & set(entry.classes):
                needed |= set(LOOKS_AT[entry.name](key, entry.classes, entry.arguments))
    return [key for key in taxonomy().keys if key in needed]


def apply_rules(
    masks: MaskSet, densities: Densities | None = None, entries: Sequence[RuleEntry] | None = None
) -> tuple[MaskSet, tuple[RuleNote, ...]]:
    """The masks after all rules (those of post.toml by default), and a note for every class a rule changed.

    densities  the scan on the masks' grid; None: rules that look at it are left out
    """
    notes = []
    for entry in rule_entries() if entries is None else entries:
        rule, arguments = RULES[entry.name], dict(entry.arguments)
        if "densities" in inspect.signature(rule).parameters:
            if densities is None:
                continue
            arguments["densities"] = densities
        changes = rule(masks, entry.classes, **arguments)
        for key, after in changes.items():
            before, now = masks.crop(key, after.box), after.mask
            removed, added = int((before & ~now).sum()), int((now & ~before).sum())
            if removed or added:
                ml = masks.voxel_volume_mm3 / 1000
                notes.append(RuleNote(entry.name, key, removed * ml, added * ml))
        masks = masks.changed(changes)
    return masks, tuple(notes)
