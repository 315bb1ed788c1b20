"""The data-set tables: what lies where in a set as it was downloaded, and what each of its labels means.

One TOML file a set, `knowledge/datasets/<key>.toml`, or a user's own file of ten lines:

    title = "Our liver study"
    image = "images/{case}{ext}"        # {case} pairs image and label; {ext} is .nii.gz, .nii, .nrrd, .mha or .mhd
    label = "labels/{case}{ext}"

    [labels]                            # value in the label map = class
    1 = "liver"
    2 = "liver_tumor"                   # counts as liver too, because this table annotates the liver
    3 = "kidneys"                       # a pair under one value: every voxel belongs to the kidney of its side
    4 = { union = ["stomach", "duodenum"] }   # one or the other, nobody drew which
    5 = { name = "bones" }              # legal, but no class

What stands in [labels] is annotated: absent in a scan, it is a true negative there. Every other class is unknown
in this set, neither present nor absent. See docs/how-to/data.md for every field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from viscera.errors import InputError, KnowledgeError
from viscera.taxonomy import Side, Taxonomy, read_table, table_names, taxonomy

LABELS_FROM_FILE = "dataset.json"  # the value of `labels` that means: each folder says it itself (nnU-Net)


@dataclass(frozen=True)
class Source:
    """One thing a set draws: a value of its label maps, or its mask files of one name.

    value   the value as a number in text ("3"), or the mask's file stem, which may hold `*`
    name    what people read
    right   keys of the classes that a voxel of it belongs to on the patient's right ...
    left    ... and on the left: the same unless one label stands for both organs of a pair
    union   it is one of these classes, and nobody drew which; empty for most
    """

    value: str
    name: str
    right: tuple[str, ...]
    left: tuple[str, ...]
    union: tuple[str, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether left and right have to be told apart."""
        return self.right != self.left

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class a voxel of it may belong to for sure, whatever its side."""
        return tuple(dict.fromkeys((*self.right, *self.left)))

    @property
    def is_lesion(self) -> bool:
        """Whether it is a tumour or cyst (which may count as its organ) and not the organ itself."""
        return any(taxonomy()[key].is_lesion for key in self.classes)

    def on(self, side: Side | None) -> tuple[str, ...]:
        """The classes on one side; `None` for a source that is not split."""
        return self.left if side == "left" else self.right


@dataclass(frozen=True)
class Group:
    """The cases of a set that are annotated alike.

    image      pattern of the CT, a file or (ending in "/") a DICOM folder; None where only labels were published
    label      pattern of the label map, or with {structure} of one mask per structure
    sources    what the labels mean
    per_case   a class is annotated in a scan only if one of its mask files is there, except those in `always`
    example    a case's name as it occurs, "0001"
    """

    name: str
    image: str | None
    label: str
    sources: tuple[Source, ...]
    not_annotated: tuple[str, ...] = ()  # drawn in part, or not as this project means the class
    free_of: tuple[str, ...] = ()  # lesions that these patients do not have, by selection: true negatives
    per_case: bool = False
    always: tuple[str, ...] = ()
    example: str = "0001"

    @property
    def has_masks(self) -> bool:
        """Whether every structure has a file of its own."""
        return "{structure}" in self.label

    @property
    def unions(self) -> tuple[tuple[str, ...], ...]:
        """The sets of classes that were drawn as one, each once."""
        return tuple(dict.fromkeys(source.union for source in self.sources if source.union))

    @property
    def annotated(self) -> tuple[str, ...]:
        """Keys of the classes whose every voxel is drawn here, in id order; lesions that nobody here has among them."""
        drawn = {key for source in self.sources for key in source.classes}
        undecided = {key for union in self.unions for key in union}
        return _ordered((drawn | set(self.free_of)) - undecided - set(self.not_annotated))

    @property
    def value_of(self) -> Mapping[str, Source]:
        """The sources by their value."""
        return {source.value: source for source in self.sources}


@dataclass(frozen=True)
class DatasetTable:
    """One data set: where it comes from, what may be done with it, and what its groups annotate."""

    key: str
    title: str
    groups: tuple[Group, ...]
    cases: int | None = None  # labelled CT scans as published
    home: str = ""
    licence: str = ""
    citation: str = ""
    protocol: tuple[str, ...] = ()  # how its readers drew, where that differs from others; traps
    labels_from_file: bool = False  # True: `groups` hold no sources until the folder's dataset.json is read
    label_format: str = "image"  # "image": a file io can read; "png": a folder of one PNG per slice; "dicom"

    @property
    def annotated(self) -> tuple[str, ...]:
        """Every class that at least one group annotates, in id order."""
        return _ordered({key for group in self.groups for key in group.annotated})


def dataset_keys() -> tuple[str, ...]:
    """The keys of all tables that ship with viscera, sorted."""
    return tuple(table_names("datasets"))


@cache
def dataset_table(key: str) -> DatasetTable:
    """The table of a data set by its key. Raises InputError for a key that no table has."""
    if key not in dataset_keys():
        raise InputError(
            f"There is no data-set table {key!r}. Known: {', '.join(dataset_keys())}. For a set of your own write a "
            "table (ten lines, see docs/how-to/data.md) and give its path."
        )
    return parse_table(key, read_table(f"datasets/{key}.toml"))


def read_dataset_table(path: Path) -> DatasetTable:
    """A user's own table; its key is the file's stem. Raises InputError, which names the file and the rule."""
    try:
        return parse_table(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"The data-set table {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The data-set table {path} is not valid TOML: {error}") from error
    except KnowledgeError as error:
        raise InputError(f"{error} (in {path})") from error


def table_for(key_or_path: str) -> DatasetTable:
    """`dataset_table` for a key, `read_dataset_table` for what ends in .toml."""
    if key_or_path.endswith(".toml"):
        return read_dataset_table(Path(key_or_path))
    return dataset_table(key_or_path)


# --- parsing ---------------------------------------------------------------------------------------------------------

_TABLE_FIELDS = {"title", "cases", "home", "licence", "citation", "protocol", "label_format", "group"}
_GROUP_FIELDS = {
    "name",
    "image",
    "label",
    "labels",
    "not_annotated",
    "free_of",
    "per_case",
    "always",
    "example",
}
_SOURCE_FIELDS = {"name", "classes", "union"}
_LABEL_FORMATS = ("image", "png", "dicom")


def parse_table(key: str, table: Mapping[str, Any]) -> DatasetTable:
    """A table's plain values as a checked `DatasetTable`. Raises KnowledgeError, which names the table and the rule."""
    where = f"data-set table {key!r}"
    _require_known(table, _TABLE_FIELDS | (_GROUP_FIELDS - {"name"}), where)
    if not isinstance(table.get("title"), str):
        raise KnowledgeError(f"{where}: `title` is missing.")
    shared = {field: table[field] for field in _GROUP_FIELDS if field in table}
    rows = table.get("group", [{"name": "all"}])
    groups = tuple(_group({**shared, **row}, where) for row in rows)
    label_format = table.get("label_format", "image")
    if label_format not in _LABEL_FORMATS:
        raise KnowledgeError(f"{where}: label_format is {label_format!r}; it must be one of {_LABEL_FORMATS}.")
    return DatasetTable(
        key=key,
        title=table["title"],
        groups=groups,
        cases=table.get("cases"),
        home=table.get("home", ""),
        licence=table.get("licence", ""),
        citation=table.get("citation", ""),
        protocol=tuple(table.get("protocol", ())),
        labels_from_file=shared.get("labels") == LABELS_FROM_FILE,
        label_format=label_format,
    )


def _group(row: Mapping[str, Any], where: str) -> Group:
    where = f"{where}, group {row.get('name')!r}"
    _require_known(row, _GROUP_FIELDS, where)
    for field in ("name", "label", "labels"):
        if field not in row:
            raise KnowledgeError(f"{where}: `{field}` is missing.")
    for field in ("image", "label"):
        if field in row and "{case}" not in row[field] and "{case:" not in row[field]:
            raise KnowledgeError(f"{where}: {field} = {row[field]!r} must hold {{case}}, which pairs image and label.")
    labels = {} if row["labels"] == LABELS_FROM_FILE else row["labels"]
    if not isinstance(labels, Mapping):
        raise KnowledgeError(f"{where}: `labels` must be a table of value = class, or {LABELS_FROM_FILE!r}.")
    group = Group(
        name=row["name"],
        image=row.get("image"),
        label=row["label"],
        sources=parse_labels(labels, where),
        not_annotated=_class_keys(row.get("not_annotated", ()), where),
        free_of=_class_keys(row.get("free_of", ()), where),
        per_case=row.get("per_case", False),
        always=_class_keys(row.get("always", ()), where),
        example=row.get("example", "0001"),
    )
    if not group.has_masks:
        for source in group.sources:
            if not source.value.isdecimal() or source.value == "0":
                raise KnowledgeError(f"{where}: the label value {source.value!r} must be a whole number above 0.")
    if group.per_case and not group.has_masks:
        raise KnowledgeError(f"{where}: per_case needs one mask per structure ({{structure}} in `label`).")
    return group


def parse_labels(labels: Mapping[str, Any], where: str) -> tuple[Source, ...]:
    """The [labels] of a table as sources; lesions count as the organs they lie in where those are annotated too."""
    sources = tuple(_source(value, meaning, f"{where}, label {value}") for value, meaning in labels.items())
    drawn = {key for source in sources for key in source.classes}
    return tuple(_with_hosts(source, drawn) for source in sources)


def _source(value: str, meaning: Any, where: str) -> Source:
    row = dict(meaning) if isinstance(meaning, Mapping) else {"classes": meaning}
    _require_known(row, _SOURCE_FIELDS, where)
    names = _listed(row.get("classes", ()))
    union = _class_keys(row.get("union", ()), where)
    if union and (names or len(union) < 2):
        raise KnowledgeError(f"{where}: a `union` names two or more classes and excludes `classes`.")
    right: list[str] = []
    left: list[str] = []
    for name in names:
        sides = _sides(name)
        if sides is None:
            raise KnowledgeError(f"{where}: {name!r} is neither a class nor a group of a right and a left class.")
        right.append(sides[0])
        left.append(sides[1])
    known = taxonomy()
    shown = row.get("name") or " and ".join(known[n].name if n in known else n for n in names)
    shown = shown or " or ".join(known[key].name for key in union)
    if not shown:
        raise KnowledgeError(f"{where}: give a class, a union, or at least a name.")
    return Source(value, shown, _ordered(right), _ordered(left), union)


def _sides(name: str) -> tuple[str, str] | None:
    """The classes that `name` means on the right and on the left; None if it is no class and no pair."""
    known = taxonomy()
    if name in known:
        return (name, name)
    members = [known[key] for key in known.groups.get(name, ())]
    if len(members) == 2 and members[0].pair == members[1].key:
        right, left = sorted(members, key=lambda structure: structure.side != "right")
        return (right.key, left.key)
    return None


def host_organs(lesion: str, known: Taxonomy | None = None) -> tuple[str, ...]:
    """The organs whose tissue a lesion replaces: of those it lies in, the ones that do not lie in another themselves.

    A tumour of the hepatic vessels lies in the liver and along its vessels; it is liver, but it is no vessel.
    """
    known = known or taxonomy()
    return tuple(key for key in known[lesion].inside if not known[key].inside)


def _with_hosts(source: Source, drawn: set[str]) -> Source:
    """The source with its lesions' organs added, on each side the organ of that side, where the set draws them."""
    known = taxonomy()

    def with_hosts(keys: tuple[str, ...], side: Side) -> tuple[str, ...]:
        added = set(keys)
        for lesion in (key for key in keys if known[key].is_lesion):
            hosts = host_organs(lesion)
            if added.isdisjoint(hosts):  # a table that names the organ itself ("cyst of the right kidney") knows better
                added |= {host for host in hosts if host in drawn and known[host].side in (None, side)}
        return _ordered(added)

    return replace(source, right=with_hosts(source.right, "right"), left=with_hosts(source.left, "left"))


def _class_keys(names: Any, where: str) -> tuple[str, ...]:
    for name in _listed(names):
        if name not in taxonomy():
            raise KnowledgeError(f"{where}: {name!r} is no class.")
    return _ordered(_listed(names))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _ordered(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(keys), key=lambda key: taxonomy()[key].id))


def _require_known(row: Mapping[str, Any], fields: set[str], where: str) -> None:
    unknown = sorted(set(row) - fields)
    if unknown:
        raise KnowledgeError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(fields))}.")
