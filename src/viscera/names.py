"""What people type -> classes: "liver, kidney tumor, lungs, IVC", "tumour in the liver", "kidney, left", 27.

A name is read as a bag of words with three things set apart: the sides it names, the kinds of lesion it
names, and whether it asks for several. Names that agree in these four mean the same, so word order does
not matter. No word is dropped because nobody knows it: a name means a class, or it is refused.
The words stand in `knowledge/names.toml`, the classes' own names in `knowledge/taxonomy.toml`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from itertools import groupby
from typing import get_args

from viscera.errors import ClassNameError
from viscera.taxonomy import Kind, Side, Structure, Taxonomy, read_table
from viscera.taxonomy import taxonomy as own_taxonomy

# A phrase in, keys of the classes nearest in meaning out, best first.
Suggest = Callable[[str], Iterable[str]]

_HELP = "`viscera classes` lists every class and group."
_SHOWN = 3  # suggestions for one refused name
_LEAST_LIKENESS = 0.45  # of a suggestion, as `_Lexicon._likeness` counts it; chosen on the refused names of the tests


def resolve(
    names: str | int | Iterable[str | int], taxonomy: Taxonomy | None = None, *, suggest: Suggest | None = None
) -> tuple[Structure, ...]:
    """The classes that `names` means, in id order, each once.

    `names` are keys, ids, names, synonyms, abbreviations or groups. In one text they are separated by
    commas, semicolons or line ends; a part that means nothing alone belongs to the name before it, so
    "liver, kidney, left" means the liver and the left kidney. `taxonomy` are the classes to choose
    from (viscera's own if not given). `suggest` is asked about a phrase whose words and spelling do not
    tell what it may mean, for more suggestions and never for an answer.

    Raises ClassNameError, which lists every unknown or ambiguous name together with what comes near.
    """
    lexicon = _lexicon(own_taxonomy() if taxonomy is None else taxonomy)
    chosen: set[Structure] = set()
    faults: list[str] = []
    for name in lexicon.separated(names):
        try:
            chosen.update(lexicon.meaning(name))
        except ClassNameError as error:
            meant = tuple(suggest(name)) if suggest and lexicon.puzzles(name) else ()
            faults.append(f"{error} Nearest in meaning: {_either(meant)}." if meant else str(error))
    if faults:
        raise ClassNameError("\n".join([*faults, _HELP]))
    if not chosen:
        raise ClassNameError(f"No class was named. {_HELP}")
    return tuple(sorted(chosen, key=lambda structure: structure.id))


def suggestions(name: str, taxonomy: Taxonomy | None = None) -> tuple[str, ...]:
    """Keys and groups that come nearest to `name` in words and spelling, best first; empty if none is like it."""
    return _lexicon(own_taxonomy() if taxonomy is None else taxonomy).near(name)


def as_written(text: str) -> str:
    """`text` in the words of the taxonomy, order kept: "Left renal masses" -> "left kidney tumor"."""
    return " ".join(_words().canonical_word(word) for word in _words().split(text))


@dataclass(frozen=True)
class _Phrase:
    """A name as it was read."""

    words: tuple[str, ...]  # sorted, in canonical form; twice the same word stays twice
    sides: frozenset[Side]
    kinds: frozenset[Kind]  # empty if there is no lesion word
    plural: bool


class _Words:
    """The words of names.toml, turned so that each is looked up as it is typed."""

    def __init__(self) -> None:
        table = read_table("names.toml")
        both: tuple[Side, ...] = get_args(Side)
        lesion_kinds: tuple[Kind, ...] = ("tumor", "cyst")

        def turned(section: str) -> Iterator[tuple[str, str]]:
            return ((word, name) for name, words in table[section].items() for word in words)

        self.spelling: dict[str, str] = table["spelling"]
        self.plurals: dict[str, str] = table["plurals"]
        self.filler = frozenset(table["filler"])
        self.every = frozenset(table["every"])
        self.joining = frozenset(table["joining"])
        self.sides = {word: frozenset(s for s in both if name in (s, "both")) for word, name in turned("sides")}
        self.lesions = {
            word: frozenset(k for k in lesion_kinds if name in (k, "any")) for word, name in turned("lesions")
        }
        self.canonical = dict(turned("words")) | {name: name for name in table["words"]}
        self.known = self.filler | self.every | self.joining | {*self.sides, *self.lesions, *self.canonical}

    def split(self, text: str) -> list[str]:
        """The words of `text` in lower case and American spelling; signs, spaces and camelCase separate them."""
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text))
        text = re.sub(r"(?<=\b[A-Za-z])\.(?=[A-Za-z]\b)", "", text)  # I.V.C.
        text = " ".join(re.findall(r"[^\W_]+", re.sub(r"[&+]", " and ", text.casefold())))
        for british, american in self.spelling.items():
            text = text.replace(british, american)
        return text.split()

    def plain(self, words: list[str]) -> str:
        """`words` sorted, without those that say nothing: "all of the organs" -> "organs", but "all" -> "all"."""
        kept = [w for w in words if w not in self.filler and w not in self.every]
        return " ".join(sorted(kept or words))

    def read(self, words: list[str], vocabulary: frozenset[str]) -> _Phrase:
        """The meaning of `words`; a word outside `vocabulary` is taken as a plural where that leads into it."""
        parts: list[tuple[str, str]] = []  # role and word
        plural = False
        for word in words:
            if word not in vocabulary and (singular := self.singular(word, vocabulary)):
                word, plural = singular, True
            if word in self.every:
                plural = True
            elif word in self.sides:
                parts.append(("side", word))
            elif word in self.lesions:
                parts.append(("lesion", word))
            elif word in self.joining:
                parts.append(("joining", word))
            elif word not in self.filler:
                parts.append(("word", self.canonical.get(word, word)))
        # "left and right", "tumor and cyst": the joining word adds nothing but that both are meant.
        kept = []
        for i, (role, word) in enumerate(parts):
            beside = {parts[i - 1][0], parts[i + 1][0]} if 0 < i < len(parts) - 1 else set()
            if role == "joining" and beside in ({"side"}, {"lesion"}):
                plural = True
            else:
                kept.append((role, word))
        return _Phrase(
            words=tuple(sorted(word for role, word in kept if role in ("word", "joining"))),
            sides=frozenset(s for role, word in parts if role == "side" for s in self.sides[word]),
            kinds=frozenset(k for role, word in parts if role == "lesion" for k in self.lesions[word]),
            plural=plural,
        )

    def canonical_word(self, word: str) -> str:
        """`word` as the taxonomy writes it: "renal" and "kidneys" -> "kidney", "mass" -> "tumor"."""
        word = (word not in self.known and self.singular(word, self.known)) or word
        kinds = self.lesions.get(word, frozenset())
        return next(iter(kinds)) if len(kinds) == 1 else self.canonical.get(word, word)

    def singular(self, word: str, vocabulary: frozenset[str]) -> str | None:
        forms = [self.plurals.get(word, "")]
        if word.endswith("s"):
            forms += [word[:-1], word.removesuffix("es"), word.removesuffix("ies") + "y"]
        return next((form for form in forms if form in vocabulary), None)

    def only_sides(self, words: list[str]) -> bool:
        """Whether `words` name a side and nothing else: "left", "left and right", "both"."""
        return any(w in self.sides for w in words) and all(w in self.sides or w in self.joining for w in words)


@cache
def _words() -> _Words:
    return _Words()


@dataclass(frozen=True)
class _Way:
    """One way to write a class or a group."""

    target: str  # a key or a group's name
    phrase: _Phrase
    plain: str


class _Lexicon:
    """Every way to write the classes and groups of one taxonomy."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._words = _words()
        table = read_table("names.toml")
        ways = [(s.key, way) for s in taxonomy for way in (s.key, s.name, *s.synonyms)]
        groups = [(group, way) for group in taxonomy.groups for way in (group, *table["groups"].get(group, ()))]
        self._vocabulary = self._words.known | {word for _, way in ways for word in self._words.split(way)}
        self._ways = [self._way(target, text) for target, text in ways + groups]
        self._by_words: dict[tuple[str, ...], list[_Way]] = defaultdict(list)
        for way in self._ways[: len(ways)]:
            self._by_words[way.phrase.words].append(way)
        self._groups = {way.plain: way.target for way in self._ways[len(ways) :]}
        self._absent = {
            (way.phrase.words, way.phrase.kinds): row
            for row in table["not_a_class"]
            for way in (self._way("", name) for name in row["names"])
        }

    def separated(self, names: str | int | Iterable[str | int]) -> Iterator[str]:
        """One name at a time. "kidney, left", as an index writes it, is one: "left" alone is nothing, both are."""
        for item in [names] if isinstance(names, str | int) else names:
            found: list[str] = []
            for part in (part.strip() for part in re.split(r"[,;\n]", str(item))):
                if found and not self._stands(part) and self._stands(f"{found[-1]}, {part}"):
                    found[-1] += f", {part}"
                elif self._words.split(part):
                    found.append(part)
            yield from found

    def meaning(self, name: str) -> list[Structure]:
        """The classes that one name means. Raises ClassNameError if it means none, or may mean several."""
        if name.isdecimal():
            if not 1 <= int(name) <= len(self._taxonomy):
                raise ClassNameError(f"There is no class {name}: ids run from 1 to {len(self._taxonomy)}.")
            return [self._taxonomy[int(name)]]
        words = self._words.split(name)
        group = self._groups.get(self._words.plain(words))
        if group:
            return [self._taxonomy[key] for key in self._taxonomy.groups[group]]
        phrase = self._words.read(words, self._vocabulary)
        meant = self._of_both_sides(phrase)
        if not meant:
            return self._joined(name, words)
        sided = self._of_the_sides(phrase, meant)
        if not sided:
            keys = _either(s.key for s in meant)
            raise ClassNameError(f"{name!r} names a side, but {keys} is not divided into sides. Did you mean {keys}?")
        if len(sided) > 1 and not phrase.plural and len(phrase.sides) < 2:
            raise ClassNameError(self._ambiguity(name, [s.key for s in sided]))
        return sided

    def near(self, name: str) -> tuple[str, ...]:
        """Keys and groups like `name`, best first."""
        words = self._words.split(name)
        phrase = self._words.read(words, self._vocabulary)
        absent = self._absent.get((phrase.words, phrase.kinds))
        if absent:
            return tuple(key for key in absent["near"] if key in self._taxonomy or key in self._taxonomy.groups)
        mended = self._words.read([self._mended(word) for word in words], self._vocabulary)
        typed = self._words.plain(words)
        best: dict[str, float] = defaultdict(float)
        for way in self._ways:
            best[way.target] = max(best[way.target], _likeness(mended, typed, way))
        ranked = sorted(best, key=lambda target: -best[target])[:_SHOWN]
        return tuple(target for target in ranked if best[target] >= _LEAST_LIKENESS)

    def _way(self, target: str, text: str) -> _Way:
        words = self._words.split(text)
        return _Way(target, self._words.read(words, self._vocabulary), self._words.plain(words))

    def puzzles(self, name: str) -> bool:
        """Whether neither words nor spelling tell what `name` may mean."""
        words = self._words.split(name)
        phrase = self._words.read(words, self._vocabulary)
        told = self._stands(name) or self._words.only_sides(words) or (phrase.words, phrase.kinds) in self._absent
        return not told and (len(words) > 1 or not self.near(name))

    def _stands(self, name: str) -> bool:
        """Whether `name` means a class or may mean several."""
        words = self._words.split(name)
        return (
            name.isdecimal()
            or self._words.plain(words) in self._groups
            or bool(self._of_both_sides(self._words.read(words, self._vocabulary)))
        )

    def _of_both_sides(self, phrase: _Phrase) -> list[Structure]:
        """What `phrase` means if its sides are left out; the kind decides between an organ and its lesions."""
        if not phrase.words:
            return [s for s in self._taxonomy if s.kind in phrase.kinds]
        keys = {
            way.target for way in self._by_words.get(phrase.words, ()) if bool(way.phrase.kinds) == bool(phrase.kinds)
        }
        return [s for s in self._taxonomy if s.key in keys and (not phrase.kinds or s.kind in phrase.kinds)]

    def _of_the_sides(self, phrase: _Phrase, meant: list[Structure]) -> list[Structure]:
        """Those of `meant` on the sides named. Both sides of a class without sides are all of it."""
        if not phrase.sides:
            return meant
        return [s for s in meant if s.side in phrase.sides or (s.side is None and len(phrase.sides) == 2)]

    def _joined(self, name: str, words: list[str]) -> list[Structure]:
        """The meaning of "liver and spleen". Raises ClassNameError if `name` is no such list of known names."""
        parts = [list(part) for joins, part in groupby(words, self._words.joining.__contains__) if not joins]
        lesions = {bool(self._words.read(part, self._vocabulary).kinds) for part in parts}
        # "liver and kidney tumor" may mean the liver or its tumour, so such a list is refused.
        if len(lesions) == 1 and not self._words.joining.isdisjoint(words):
            with suppress(ClassNameError):
                return [structure for part in parts for structure in self.meaning(" ".join(part))]
        raise ClassNameError(self._refusal(name, words))

    def _ambiguity(self, name: str, keys: list[str]) -> str:
        groups = [group for group, members in self._taxonomy.groups.items() if set(members) == set(keys)]
        together = f", or {groups[0]} for all of them" if groups else ""
        return f"{name!r} may mean {_either(keys)}: write the one you mean{together}."

    def _refusal(self, name: str, words: list[str]) -> str:
        if self._words.only_sides(words):
            return f"{name!r} is a side without an organ: write it with its organ, as in 'left kidney'."
        phrase = self._words.read(words, self._vocabulary)
        absent = self._absent.get((phrase.words, phrase.kinds))
        why = f": {absent['why']}" if absent else ""
        near = self.near(name)
        return f"No class is called {name!r}{why}." + (f" Did you mean {_either(near)}?" if near else "")

    def _mended(self, word: str) -> str:
        """The known word that is spelled most like `word`; `word` itself if none is like it."""
        # Words of one or two letters are like anything, and filler is nobody's misspelling.
        if len(word) < 3 or word in self._vocabulary or self._words.singular(word, self._vocabulary):
            return word
        empty = self._words.filler | self._words.every | self._words.joining
        candidates = sorted(known for known in self._vocabulary - empty if len(known) > 2)
        return next(iter(get_close_matches(word, candidates, n=1, cutoff=0.65)), word)


def _likeness(typed: _Phrase, plain: str, way: _Way) -> float:
    """How like one way to write a class is to what was typed: 1 for the same letters and words, 0 for nothing."""
    shared = len(set(typed.words) & set(way.phrase.words))
    words = 2 * shared / max(1, len(typed.words) + len(way.phrase.words))
    letters = SequenceMatcher(None, plain, way.plain).ratio()
    score = (words + letters) / 2
    if bool(typed.kinds) != bool(way.phrase.kinds):
        score -= 0.2
    if typed.sides and way.phrase.sides and typed.sides.isdisjoint(way.phrase.sides):
        score -= 0.2
    return score


def _either(keys: Iterable[str]) -> str:
    """A choice in words: "a", "a or b", "a, b or c"."""
    *first, last = keys
    return f"{', '.join(first)} or {last}" if first else last


@cache
def _lexicon(taxonomy: Taxonomy) -> _Lexicon:
    return _Lexicon(taxonomy)
