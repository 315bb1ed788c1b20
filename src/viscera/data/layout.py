"""Finds the cases of a data set in a folder, by the patterns of its table.

A pattern is a path below the set's folder with "/" between its parts:

    {case}        the case's name, which pairs its image and its labels; {case:REGEX} where it has a fixed form
    {structure}   the name of a mask file, where every structure has its own
    {ext}         .nii.gz, .nii, .nrrd, .mha or .mhd
    *             anything inside one part
    **/           any folders, or none; at the start it may also match the set's folder itself
    /             at the end: a folder (a DICOM series, a stack of pictures), not a file

    "**/{case}/segmentations/{structure}{ext}"   finds   s0011/segmentations/liver.nii.gz   as case s0011
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from viscera.data.catalogue import LABELS_FROM_FILE, DatasetTable, Group, parse_labels
from viscera.errors import ClassNameError, InputError, KnowledgeError
from viscera.names import resolve
from viscera.taxonomy import taxonomy

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One scan of a data set with its labels, not yet read.

    image   the CT: a file or a DICOM folder; None where only labels were published
    labels  the label map under the name "", or every mask by its structure's name
    """

    dataset: DatasetTable
    group: Group
    name: str
    image: Path | None
    labels: Mapping[str, Path]

    @property
    def id(self) -> str:
        """Unique among all sets: "lits/17"."""
        return f"{self.dataset.key}/{self.name}"

    @property
    def annotated(self) -> tuple[str, ...]:
        """Keys of the classes that are annotated in this very scan, in id order."""
        if not self.group.per_case:
            return self.group.annotated
        drawn = {*self.group.always, *self.group.free_of}
        for source in self.group.sources:
            if any(matches(source.value, name) for name in self.labels):
                # A lesion's mask is a part of its organ, not all of it.
                drawn |= {key for key in source.classes if taxonomy()[key].is_lesion or not source.is_lesion}
        return tuple(key for key in self.group.annotated if key in drawn)


@dataclass(frozen=True)
class Misplaced:
    """A file that cannot be paired, and why."""

    case: str
    file: Path
    verdict: str


@dataclass(frozen=True)
class Found:
    """What lies in a data set's folder."""

    dataset: DatasetTable
    folder: Path
    cases: tuple[Case, ...]
    misplaced: tuple[Misplaced, ...]


def find_cases(dataset: DatasetTable, folder: Path) -> Found:
    """The cases of `dataset` below `folder`, by name, and the files that lack their partner.

    Images without labels count as misplaced only where the group has labels at all. Hidden files are passed over.
    Raises InputError if the folder does not exist or holds no case of the set.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder into which {dataset.title} was unpacked.")
    dataset = with_labels_of(dataset, folder)
    paths = list(_walk(folder))
    cases: dict[str, Case] = {}
    misplaced: list[Misplaced] = []
    for group in dataset.groups:
        images = _matches(group.image, folder, paths) if group.image else {}
        labels = _matches(group.label, folder, paths)
        if not labels:
            continue
        for name in sorted({*images, *labels}):
            mine = [path for _, path in images.get(name, [])]
            masks = labels.get(name, [])
            if not masks:
                misplaced.append(Misplaced(name, mine[0], f"the image has no label ({group.label})"))
            elif group.image and not mine:
                misplaced.append(Misplaced(name, masks[0][1], f"the label has no image ({group.image})"))
            elif name in cases or len(mine) > 1 or len(dict(masks)) < len(masks):
                again = mine[-1] if mine else masks[-1][1]
                misplaced.append(Misplaced(name, again, "the same case lies here a second time; the first was taken"))
            if masks and (mine or not group.image) and name not in cases:
                image = mine[0] if mine else None
                cases[name] = Case(dataset, group, name, image, dict(reversed(masks)))
    if not cases and not misplaced:
        tried = "\n".join(f"  {group.image or '(no image)'}  with  {group.label}" for group in dataset.groups)
        raise InputError(f"No case of {dataset.title} was found in {folder}. Looked for:\n{tried}")
    # Groups may share images (three editions of KiTS): what one of them uses is not misplaced in another.
    in_use = {case.image for case in cases.values()}
    misplaced = [fault for fault in misplaced if fault.file not in in_use]
    return Found(dataset, folder, tuple(cases[name] for name in sorted(cases)), tuple(misplaced))


def matches(value: str, structure: str) -> bool:
    """Whether a source's `value` (which may hold `*`) means the mask file called `structure`."""
    return _wildcard(value).fullmatch(structure) is not None


@cache
def _wildcard(value: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, value.split("*"))))


def case_path(pattern: str, case: str, structure: str = "", ending: str = ".nii.gz") -> str:
    """A path that `pattern` matches, for a case of this name: what a phantom in this layout is called."""
    path = re.sub(r"\{case(:[^}]*)?\}", lambda _: case, pattern)
    return path.replace("{structure}", structure).replace("{ext}", ending).replace("**/", "").replace("*", "1")


def case_names(example: str) -> Iterator[str]:
    """`example` and its successors: "amos_0001", "amos_0002", ..."""
    digits = re.search(r"\d+$", example)
    if digits is None:
        raise KnowledgeError(f"The example case {example!r} must end in a number.")
    start, width = int(digits.group()), len(digits.group())
    return (f"{example[: digits.start()]}{number:0{width}d}" for number in count(start))


def with_labels_of(dataset: DatasetTable, folder: Path) -> DatasetTable:
    """For a set whose folder says itself what its labels mean (nnU-Net's dataset.json): the table filled in.

    Names are read as `viscera.names` reads them; one that means no class of ours stays a name ("context").
    Raises InputError where the file is missing, is not JSON, or names no CT channel.
    """
    if not dataset.labels_from_file:
        return dataset
    path = folder / LABELS_FROM_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        channel = _ct_channel(about)
        labels = _nnunet_labels(about["labels"])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. An nnU-Net raw folder holds one.") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not an nnU-Net dataset.json: {error!r}.") from error
    if channel is None:
        raise InputError(f"{path} names no CT among its channels; viscera learns from CT.")
    sources = parse_labels(labels, str(path))
    groups = tuple(
        replace(group, image=group.image and group.image.replace("{channel}", f"{channel:04d}"), sources=sources)
        for group in dataset.groups
    )
    return replace(
        dataset, title=about.get("name", dataset.title), licence=about.get("licence", dataset.licence), groups=groups
    )


def _ct_channel(about: Mapping[str, Any]) -> int | None:
    channels: Mapping[str, str] = about.get("channel_names") or about["modality"]
    return next((int(number) for number, name in channels.items() if "CT" in name.upper().split()), None)


def _nnunet_labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """{"liver": 1} of nnU-Net v2, with regions {"liver": [1, 2]}, or {"1": "liver"} of v1, as our [labels]."""
    names: dict[str, list[str]] = {}
    for left, right in labels.items():
        name, values = (right, [left]) if left.isdecimal() else (left, right if isinstance(right, list) else [right])
        for value in values:
            if int(value) != 0 and name != "ignore":
                names.setdefault(str(value), []).append(name)
    return {value: _meaning(meant) for value, meant in names.items()}


def _meaning(names: list[str]) -> dict[str, Any]:
    classes: list[str] = []
    for name in names:
        try:
            keys = [structure.key for structure in resolve(name)]
        except ClassNameError:
            # "kidney" alone is refused as ambiguous where a person types it; as a label it is both kidneys.
            try:
                keys = [structure.key for structure in resolve(f"{name}s")]
            except ClassNameError:
                continue
        classes.append(keys[0] if len(keys) == 1 else _pair_group(keys))
    return {"name": " and ".join(names), "classes": [key for key in classes if key]}


def _pair_group(keys: list[str]) -> str:
    return next((group for group, members in taxonomy().groups.items() if set(members) == set(keys)), "")


def _walk(folder: Path) -> Iterator[str]:
    """Every file below `folder` and every folder (with "/" at its end), as paths below it; hidden ones left out."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(place).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        yield from (f"{prefix}{name}/" for name in folders)
        yield from (f"{prefix}{name}" for name in sorted(files) if not name.startswith("."))


def _matches(pattern: str, folder: Path, paths: list[str]) -> dict[str, list[tuple[str, Path]]]:
    """Case -> (structure or "", path) of everything that `pattern` matches."""
    regex = _regex(pattern)
    # "**/dataset/..." shall also match when the user points at the folder "dataset" itself.
    root = f"{folder.resolve().name}/" if pattern.startswith("**/") else ""
    out: dict[str, list[tuple[str, Path]]] = {}
    for path in paths:
        if found := regex.fullmatch(root + path):
            groups = found.groupdict()
            out.setdefault(groups["case"], []).append((groups.get("structure", ""), folder / path))
    return out


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    endings = "|".join(map(re.escape, IMAGE_ENDINGS))
    parts: list[str] = []
    seen: set[str] = set()
    position = 0
    for token in re.finditer(r"\*\*/|\*|\{ext\}|\{structure\}|\{case(?::(?P<form>[^}]*))?\}", pattern):
        parts.append(re.escape(pattern[position : token.start()]))
        position = token.end()
        text = token.group()
        if text == "**/":
            parts.append("(?:.*/)?")
        elif text == "*":
            parts.append("[^/]*")
        elif text == "{ext}":
            parts.append(f"(?:{endings})")
        else:
            name = "structure" if text == "{structure}" else "case"
            form = token.group("form") or "[^/]+?"
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{form})")
            seen.add(name)
    parts.append(re.escape(pattern[position:]))
    return re.compile("".join(parts))
