"""The bank of label vectors: one vector per class, with everything that says where it came from.

A bank keeps the vectors as the encoder made them (`raw`) and how they are finished (`Finish`); `vectors`
are the finished ones that a model takes. Centring and whitening depend on the classes they are fitted to,
so a bank remembers those too: a class that is added later is finished like the others, and no vector
that a model was trained with ever moves.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from viscera.errors import SettingError, TextBankError
from viscera.io.atomic import write_pieces
from viscera.taxonomy import Structure
from viscera.text.encoders import TextEncoder, Vectors
from viscera.text.prompts import Prompt

_METADATA = "viscera_bank"  # the entry of the file's metadata
_TOLERANCE = 1e-5  # between stored and recomputed vectors: rounding differs from machine to machine


@dataclass(frozen=True)
class Finish:
    """What is done to the raw vectors of a bank, in this order. The default leaves them as they are.

    Raw CLIP vectors of organs are nearly parallel (mean cosine 0.87): centring takes away what they share.
    """

    centre: bool = False  # bring to length 1, then subtract the mean over the classes
    whiten: float = 0.0  # 0-1: how far the spread of all directions is made equal; needs `centre`
    unit: bool = False  # bring to length 1 at the end

    def __post_init__(self) -> None:
        if not 0 <= self.whiten <= 1:
            raise SettingError(f"whiten is {self.whiten}; it goes from 0 (off) to 1 (all directions equal).")
        if self.whiten and not self.centre:
            raise SettingError("whiten is a step after centring: ask for centre too.")

    def __str__(self) -> str:
        steps = ["centred"] * self.centre + [f"whitened {self.whiten:g}"] * bool(self.whiten) + ["unit"] * self.unit
        return ", ".join(steps) or "raw"

    def apply(self, raw: Vectors, fitted: Vectors) -> Vectors:
        """`raw` [n, D] finished with mean and directions of `fitted` [m, D]."""
        out = raw.astype(np.float64)
        if self.centre:
            if len(fitted) < 2:
                raise SettingError("Centring takes away what the classes share: it needs at least two classes.")
            basis = _unit(fitted.astype(np.float64))
            mean = basis.mean(axis=0)
            out = _unit(out) - mean
            if self.whiten:
                out = _whitened(out, basis - mean, self.whiten)
        return (_unit(out) if self.unit else out).astype(np.float32)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise SettingError(
            "A label vector is zero, so it cannot be brought to length 1; an encoder or a file is wrong."
        )
    return np.asarray(vectors / lengths)


def _whitened(
    vectors: npt.NDArray[np.float64], centred: npt.NDArray[np.float64], power: float
) -> npt.NDArray[np.float64]:
    """`vectors` [n, D] with each direction divided by the spread of `centred` [m, D] in it to the `power`.

    At power 1 the fitted vectors end up equally far from each other, as one-hot vectors are, whatever the
    encoder knew (m <= D): values in between keep some of it. Directions in which `centred` does not spread at
    all are divided by the smallest spread there is.
    """
    _, spread, directions = np.linalg.svd(centred / np.sqrt(len(centred)), full_matrices=False)
    real = spread > spread.max() * 1e-6
    spread, directions = spread[real], directions[real]
    along = vectors @ directions.T
    rest = vectors - along @ directions
    return np.asarray((along / spread**power) @ directions + rest / spread.min() ** power)


@dataclass(frozen=True, eq=False)
class Bank:
    """Label vectors of the classes `keys`, in that order."""

    keys: tuple[str, ...]
    raw: Vectors = field(repr=False)  # [N, D] as the encoder made them (an ensemble: the mean of unit vectors)
    encoder: str  # identity of what made them
    encoder_name: str
    prompt: str  # name of the prompt, or the user's template
    texts: tuple[tuple[str, ...], ...] = field(repr=False)  # what the encoder read for each class
    finish: Finish = Finish()
    basis: Vectors | None = field(default=None, repr=False)  # raw [M, D] that `finish` is fitted to; None: `raw`

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys) or self.raw.ndim != 2:
            raise TextBankError(f"A bank holds one vector per class, each class once; got {self.keys}.")
        if not len(self.keys) == len(self.raw) == len(self.texts):
            raise TextBankError(f"{len(self.keys)} classes, but {len(self.raw)} vectors and {len(self.texts)} texts.")
        if not np.isfinite(self.raw).all():
            raise TextBankError(f"The label vectors of {self.encoder_name} hold NaN or infinite values.")

    @property
    def length(self) -> int:
        """D, the number of values of a vector."""
        return int(self.raw.shape[1])

    @cached_property
    def vectors(self) -> Vectors:
        """float32 [N, D]: what a model takes."""
        return self.finished(self.raw)

    def finished(self, raw: Vectors) -> Vectors:
        """Other raw vectors [n, D] of the same encoder, finished as this bank's are."""
        return self.finish.apply(raw, self.raw if self.basis is None else self.basis)

    def changed(self, structures: Iterable[Structure], encoder: TextEncoder, prompt: Prompt) -> Bank:
        """The bank of another class list. Only what this bank has not read yet is encoded, and the finish stays fitted
        to the same classes, so that vectors already in use keep their values.

        Raises TextBankError if `encoder` or `prompt` is not the one that made this bank.
        """
        check_fits(self, {"encoder": encoder.identity, "prompt": prompt.name if encoder.reads_text else NO_PROMPT})
        structures = tuple(structures)
        texts = _texts(structures, encoder, prompt)
        known = dict(zip(self.texts, self.raw, strict=True))
        new = [read for read in texts if read not in known]
        if new:
            known.update(zip(new, _encoded(new, encoder), strict=True))
        return Bank(
            keys=tuple(s.key for s in structures),
            raw=np.stack([known[read] for read in texts]),
            encoder=self.encoder,
            encoder_name=self.encoder_name,
            prompt=self.prompt,
            texts=texts,
            finish=self.finish,
            basis=self.raw if self.basis is None else self.basis,
        )

    def provenance(self) -> dict[str, Any]:
        """Everything but the finished vectors as plain values for JSON: what a checkpoint keeps beside them."""
        arrays = {"raw": self.raw} | ({} if self.basis is None else {"basis": self.basis})
        return {
            "classes": list(self.keys),
            "length": self.length,
            "encoder": self.encoder,
            "encoder_name": self.encoder_name,
            "prompt": self.prompt,
            "texts": [list(texts) for texts in self.texts],
            "finish": asdict(self.finish),
            "sha256": self.sha256,
            **{name: base64.b64encode(np.ascontiguousarray(a, "<f4").tobytes()).decode() for name, a in arrays.items()},
        }

    @staticmethod
    def from_checkpoint_metadata(provenance: Mapping[str, Any], vectors: npt.ArrayLike) -> Bank:
        """The bank that `provenance()` describes, checked against the finished `vectors` [N, D] beside it.

        Raises TextBankError if something is missing, was changed, or does not give `vectors`.
        """
        try:
            length = provenance["length"]
            arrays = {
                name: np.frombuffer(base64.b64decode(provenance[name]), "<f4").reshape(-1, length)
                for name in ("raw", "basis")
                if name in provenance
            }
            bank = Bank(
                keys=tuple(provenance["classes"]),
                raw=arrays["raw"],
                encoder=provenance["encoder"],
                encoder_name=provenance["encoder_name"],
                prompt=provenance["prompt"],
                texts=tuple(tuple(texts) for texts in provenance["texts"]),
                finish=Finish(**provenance["finish"]),
                basis=arrays.get("basis"),
            )
            told = provenance["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise TextBankError(f"The record of a text bank is not whole: {error!r}.") from error
        if bank.sha256 != told:
            raise TextBankError(f"The text bank was changed after it was made: its hash is {bank.sha256}, not {told}.")
        held = np.asarray(vectors, dtype=np.float32)
        if held.shape != bank.vectors.shape or np.abs(held - bank.vectors).max() > _TOLERANCE * np.abs(held).max():
            raise TextBankError(
                f"The label vectors {held.shape} are not those their record gives, {bank.vectors.shape}: "
                "the bank was damaged, or belongs to other weights."
            )
        return bank

    @cached_property
    def sha256(self) -> str:
        """Of everything the bank holds and says."""
        said = [self.keys, self.encoder, self.encoder_name, self.prompt, self.texts, asdict(self.finish)]
        content = hashlib.sha256(json.dumps(said).encode())
        for array in (self.raw, self.basis):
            content.update(b"" if array is None else np.ascontiguousarray(array, "<f4").tobytes())
        return content.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the finished `vectors`, and in its metadata the record of them.

        Raises OutputError if it cannot be written.
        """
        write_pieces(path, [save({"vectors": self.vectors}, metadata={_METADATA: json.dumps(self.provenance())})])

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Bank:
        """The bank in a file. Raises TextBankError if it is no bank, damaged, or changed."""
        try:
            with safe_open(path, framework="np") as file:
                record = (file.metadata() or {}).get(_METADATA)
                if record is None:
                    raise TextBankError("this is no text bank; `viscera text encode` makes one.")
                vectors = file.get_tensor("vectors")
            return Bank.from_checkpoint_metadata(json.loads(record), vectors)
        except (OSError, ValueError, SafetensorError) as error:
            raise TextBankError(f"{path} cannot be read as a text bank: {error}.") from error
        except TextBankError as error:
            raise TextBankError(f"{path}: {error}") from error


def is_bank(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file that says it holds a bank."""
    try:
        with safe_open(path, framework="np") as file:
            return _METADATA in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


NO_PROMPT = "none"  # of an encoder that does not read


def make(structures: Iterable[Structure], encoder: TextEncoder, prompt: Prompt, finish: Finish | None = None) -> Bank:
    """The bank of `structures` in their order.

    Each class is read in every template of `prompt`; the vectors of several are brought to length 1 and averaged.
    An encoder that does not read gets the class's key instead.
    """
    structures = tuple(structures)
    texts = _texts(structures, encoder, prompt)
    return Bank(
        keys=tuple(s.key for s in structures),
        raw=_encoded(texts, encoder),
        encoder=encoder.identity,
        encoder_name=encoder.name,
        prompt=prompt.name if encoder.reads_text else NO_PROMPT,
        texts=texts,
        finish=finish or Finish(),
    )


def _texts(structures: Sequence[Structure], encoder: TextEncoder, prompt: Prompt) -> tuple[tuple[str, ...], ...]:
    return tuple(prompt.texts(s) if encoder.reads_text else (s.key,) for s in structures)


def _encoded(texts: Sequence[tuple[str, ...]], encoder: TextEncoder) -> Vectors:
    """float32 [n, D]: one vector for each tuple of texts, all of the same length."""
    if not texts:
        raise SettingError("No class was given to encode.")
    flat = encoder.encode([text for read in texts for text in read])
    if len(flat) == len(texts):
        return flat
    several = _unit(flat.astype(np.float64)).reshape(len(texts), -1, flat.shape[1])
    return np.asarray(several.mean(axis=1), dtype=np.float32)


def check_fits(bank: Bank, model: Mapping[str, Any]) -> None:
    """Refuse `bank` for a model that was made with another one.

    model   what the model says of its bank: `provenance()` of it (the `text_bank` of a model's configuration), or any
            part of that: "classes" (keys in order), "encoder" (identity), "prompt", "texts", "finish", "length".
            What it does not say is not compared.

    Raises TextBankError that names every difference.
    """
    ours = bank.provenance()
    faults = []
    if "classes" in model and list(model["classes"]) != ours["classes"]:
        faults.append(_class_difference(ours["classes"], list(model["classes"])))
    for name, what in _COMPARED.items():
        if name in model and model[name] != ours[name]:
            faults.append(f"{what}: the bank has {ours[name]!r}, the model {model[name]!r}")
    if not faults and "texts" in model:
        for key, read, expected in zip(bank.keys, ours["texts"], model["texts"], strict=True):
            if read != expected:
                faults.append(f"text of {key}: the bank read {read!r}, the model {expected!r}")
    if faults:
        raise TextBankError(
            "This text bank does not fit the model:\n  " + "\n  ".join(faults) + "\n"
            "Make one that fits with `viscera text encode`, or use the bank inside the checkpoint."
        )


_COMPARED = {"encoder": "encoder", "prompt": "prompt", "finish": "finish", "length": "vector length"}


def _class_difference(ours: list[str], theirs: list[str]) -> str:
    missing, extra = [key for key in theirs if key not in ours], [key for key in ours if key not in theirs]
    if missing or extra:
        lacks = f"the bank lacks {', '.join(missing)}" if missing else ""
        more = f"the model does not know {', '.join(extra)}" if extra else ""
        return "classes: " + "; ".join(filter(None, (lacks, more)))
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"class order: at place {place + 1} the bank has {ours[place]}, the model {theirs[place]}"
