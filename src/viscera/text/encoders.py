"""Text encoders: texts in, one vector each out. `load` is the one door to all of them.

Two kinds keep the same contract. Those that read (`reads_text`) turn any text into a vector: CLIP towers,
BERT-like and sentence encoders (`towers.py`). Those that do not know language give each class key a vector:
one-hot, few-hot, random, and vectors from a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from viscera.errors import CheckpointError, ClassNameError, SettingError
from viscera.names import resolve
from viscera.taxonomy import Structure, Taxonomy, read_table, taxonomy

Vectors = npt.NDArray[np.float32]


class TextEncoder(Protocol):
    """What every encoder offers."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def identity(self) -> str:
        """The same for the same vectors, wherever the encoder lies; another as soon as weights, vocabulary or
        settings differ."""

    @property
    def reads_text(self) -> bool:
        """Whether `encode` takes any text, or only class keys."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, D], row i for ``texts[i]``; the same text always gets the same row.

        Raises SettingError for a text it cannot encode as a whole.
        """


def load(spec: str) -> TextEncoder:
    """The encoder that `spec` means.

    spec    a name in `knowledge/encoders.toml` ("minilm", "clip", "one-hot", ...), "random:SEED", a directory with
            a CLIP, BERT-like or sentence encoder, a file of vectors (.npz, .safetensors, .pth), or a hub id
            such as "openai/clip-vit-base-patch32".

    Only a hub id, or a name that stands for one, may ask the network, and only if it is not on the machine yet.
    Raises SettingError if nothing is meant by `spec`, MissingDependencyError if a package is not installed, and
    CheckpointError if the encoder's files are not there or not whole.
    """
    known = read_table("encoders.toml")
    name, _, argument = spec.partition(":")
    if spec == "one-hot":
        return one_hot(taxonomy().keys)
    if spec == "few-hot":
        return few_hot(taxonomy())
    if name == "random" and (argument.isdecimal() or not argument):
        return RandomVectors(seed=int(argument or 0))
    path = Path(spec).expanduser()
    if path.is_file():
        return from_file(path)
    if spec in known or (spec and path.is_dir()) or _is_hub_id(spec):
        # The heavy packages are imported in there.
        from viscera.text import towers

        if spec == "minilm":
            return towers.minilm()
        if spec not in known and path.is_dir():
            return towers.from_folder(path)
        return towers.from_hub(known.get(spec, {}).get("hub", spec))
    raise SettingError(
        f"There is no text encoder {spec!r}: it is no file or directory here and no hub id of the form "
        f"owner/name. Known by name: {', '.join(known)}."
    )


def _is_hub_id(spec: str) -> bool:
    owner, _, model = spec.partition("/")
    return bool(owner and model) and "/" not in model and not spec.startswith((".", "~")) and not Path(spec).suffix


class FakeEncoder:
    """Reads by adding up one fixed random vector per word: for tests, and a floor to compare with.

    Texts that share words are alike; meaning plays no part.
    """

    name = "fake"
    reads_text = True

    def __init__(self, length: int = 64, seed: int = 0) -> None:
        self.length = length
        self.seed = seed

    @property
    def identity(self) -> str:
        return f"fake/{self.length}/{self.seed}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = [sum(_seeded(word, self.length, self.seed) for word in text.lower().split()) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.length)


class RandomVectors:
    """A standard normal vector per key, from the key and a seed: the same in every list of classes."""

    name = "random"
    reads_text = False

    def __init__(self, length: int = 512, seed: int = 0) -> None:
        self.length = length
        self.seed = seed

    @property
    def identity(self) -> str:
        return f"random/{self.length}/{self.seed}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([_seeded(text, self.length, self.seed) for text in texts], np.float32).reshape(-1, self.length)


def _seeded(text: str, length: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([seed, crc32(text.encode())]).standard_normal(length, np.float32)


class Table:
    """A vector for each of some class keys, and for no other text."""

    reads_text = False

    def __init__(self, name: str, rows: Mapping[str, npt.ArrayLike]) -> None:
        self.name = name
        self._rows = {key: np.asarray(row, dtype=np.float32) for key, row in rows.items()}

    @property
    def identity(self) -> str:
        content = hashlib.sha256()
        for key, row in sorted(self._rows.items()):
            content.update(key.encode() + b"\0" + row.tobytes())
        return f"table/sha256:{content.hexdigest()[:16]}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        missing = [text for text in texts if text not in self._rows]
        if missing:
            raise SettingError(f"The encoder {self.name!r} holds no vector for {', '.join(map(repr, missing))}.")
        length = len(next(iter(self._rows.values())))
        return np.array([self._rows[text] for text in texts], np.float32).reshape(-1, length)


def one_hot(keys: Sequence[str]) -> Table:
    """Row i of the identity matrix for the i-th key: every class is equally unlike every other."""
    return Table("one-hot", dict(zip(keys, np.eye(len(keys)), strict=True)))


def few_hot(classes: Taxonomy) -> Table:
    """Ones for what a class is made of: its organ (one for both sides), its side, its hosts, tumor or cyst.

    Left and right kidney differ by the side, liver and liver tumor by "tumor". Everything is read from the taxonomy.
    """

    def organ(structure: Structure) -> str:
        return min(structure.key, structure.pair or structure.key)

    def features(structure: Structure) -> set[str]:
        hosts = {organ(classes[host]) for host in structure.inside}
        own = {structure.kind} if structure.is_lesion else {organ(structure)}
        return hosts | own | ({structure.side} if structure.side else set())

    columns = sorted(set().union(*(features(structure) for structure in classes)))
    return Table("few-hot", {s.key: [column in features(s) for column in columns] for s in classes})


def from_file(path: Path) -> Table:
    """The vectors in a file: .npz, .safetensors, or .pth (read without running code in it).

    The file holds one vector per class name, or one array [N, D] with a row per class of viscera in id order; an
    .npz may name the rows of its array in a second array `names`. Names may be written in any way `resolve` reads.

    Raises CheckpointError if the file cannot be read safely, SettingError if it does not hold one finite vector of
    one length for each class it names.
    """
    arrays = _arrays(path)
    names = arrays.pop("names", None)
    first = next(iter(arrays.values()), np.empty(0))
    if len(arrays) == 1 and first.ndim == 2:
        keys = taxonomy().keys if names is None else tuple(_key(str(name), path) for name in names)
        if len(keys) != len(first):
            rows = f"{len(keys)} names" if names is not None else f"the {len(keys)} classes of viscera"
            raise SettingError(
                f"{path}: the array has {len(first)} rows for {rows}; name its rows in an array `names`."
            )
        vectors = dict(zip(keys, first, strict=True))
    else:
        vectors = {_key(name, path): row for name, row in arrays.items()}
    if len({row.shape for row in vectors.values()}) != 1 or first.ndim not in (1, 2):
        raise SettingError(
            f"{path} holds no table of vectors: one array [N, D], or vectors of one length by class name."
        )
    if not all(np.isfinite(row).all() for row in vectors.values()):
        raise SettingError(f"{path} holds NaN or infinite values.")
    return Table(path.name, vectors)


def _key(name: str, path: Path) -> str:
    structures = resolve(name)
    if len(structures) != 1:
        raise ClassNameError(f"{path}: {name!r} means {len(structures)} classes, but a vector belongs to one.")
    return structures[0].key


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of a file by its name."""
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                if "viscera_bank" in (file.metadata() or {}):
                    raise SettingError(f"{path} is a text bank, made by an encoder; it is not an encoder itself.")
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if path.suffix in (".pth", ".pt"):
            import torch

            content = torch.load(path, map_location="cpu", weights_only=True)
            tensors = content if isinstance(content, dict) else {"vectors": content}
            if all(isinstance(value, torch.Tensor) for value in tensors.values()):
                return {str(name): value.float().numpy() for name, value in tensors.items()}
            raise SettingError(f"{path} holds more than tensors; keep one tensor, or one tensor per class name, in it.")
    except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read safely as {path.suffix}: {error}") from error
    raise SettingError(f"{path}: vectors are read from .npz, .safetensors and .pth, not from {path.suffix or 'this'}.")
