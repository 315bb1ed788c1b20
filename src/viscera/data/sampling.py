"""Which patch comes next: uniform over data sets, within a set by class, with lesions and rare classes lifted.

The n-th draw depends on the seed and on n alone. So a run resumes exactly where it stopped, several processes share
one sequence without talking to each other, and a draw can be repeated to look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from viscera.data.assemble import LabelTable
from viscera.data.cache import CachedCase
from viscera.errors import InputError, SettingError
from viscera.shapes import Triple
from viscera.taxonomy import taxonomy


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How patches are chosen.

    patch_voxels   size of a patch, X Y Z
    background     weight of patches centred anywhere in a scan ...
    organs         ... on a voxel of an organ class ...
    lesions        ... on a voxel of a lesion class. What a set does not annotate drops out. The default gives the
                   paper's 1 : 2 in sets of organs and 1 : 2 : 5 where there are tumours (arXiv 2301.00785: 1 : 1 : 5)
    rarity_power   a class annotated in few of the sets is drawn more often in those: by (sets / sets with it)^power
    set_weights    how often each data set is drawn from, against 1 for those not named; all alike by default
    jitter         the drawn voxel lies anywhere within this share of the patch around the patch's centre
    """

    patch_voxels: Triple = (96, 96, 96)
    background: float = 1.0
    organs: float = 2.0
    lesions: float = 5.0
    rarity_power: float = 0.5
    set_weights: Mapping[str, float] = field(default_factory=dict)
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if min(self.patch_voxels) < 8:
            raise SettingError(f"The patch is {self.patch_voxels} voxels; each side needs at least 8.")
        if min(self.background, self.organs, self.lesions) < 0 or self.background + self.organs + self.lesions <= 0:
            raise SettingError("background, organs and lesions are weights: none below 0, and not all 0.")
        if wrong := [key for key, weight in self.set_weights.items() if weight <= 0]:
            raise SettingError(f"set_weights gives {wrong[0]!r} {self.set_weights[wrong[0]]}; a weight is above 0.")
        if not 0 <= self.jitter <= 1:
            raise SettingError(f"The jitter is {self.jitter}; it must lie between 0 and 1.")


@dataclass(frozen=True)
class Draw:
    """One drawn patch.

    number  which draw of the sequence
    case    index of the scan
    centre  voxel (fractional) at the middle of the patch
    target  what it was centred on: a class key, a union ("stomach|duodenum"), or None for anywhere
    seed    of everything random that will happen to this patch
    """

    number: int
    case: int
    centre: tuple[float, float, float]
    target: str | None
    seed: int


@dataclass(frozen=True)
class _Choice:
    """A row of the label table as something to centre patches on, in one data set."""

    row: str
    weight: float
    cases: tuple[int, ...]  # scans of the set that hold it


class PatchSampler:
    """Draws patches from cached scans for a model with `classes`. Raises InputError without scans."""

    def __init__(
        self, cases: Sequence[CachedCase], classes: Sequence[str], settings: SamplingSettings, seed: int
    ) -> None:
        if not cases:
            raise InputError("There is no cached scan to draw patches from. Run `viscera data cache` first.")
        self.cases = tuple(cases)
        self.settings = settings
        self.seed = seed
        self.classes = tuple(classes)
        self.tables: tuple[LabelTable, ...] = tuple(case.table(classes) for case in cases)
        self._codes = tuple(
            _codes_by_row(case, table, self.classes) for case, table in zip(cases, self.tables, strict=True)
        )
        self._sets: dict[str, list[int]] = {}
        for index, case in enumerate(cases):
            self._sets.setdefault(case.dataset, []).append(index)
        if unknown := sorted(set(settings.set_weights) - set(self._sets)):
            raise SettingError(f"set_weights names {unknown[0]!r}; the sets are {', '.join(self._sets)}.")
        weights = np.array([settings.set_weights.get(name, 1.0) for name in self._sets])
        self._set_shares = weights / weights.sum()
        self._choices = {name: self._weighted(members) for name, members in self._sets.items()}

    def draw(self, number: int) -> Draw:
        """The `number`-th patch of the sequence, counted from 0."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        dataset = list(self._sets)[int(rng.choice(len(self._sets), p=self._set_shares))]
        choices = self._choices[dataset]
        weights = np.array([self.settings.background, *(choice.weight for choice in choices)])
        if not weights.any():
            weights[0] = 1.0  # a set without anything to centre on
        picked = int(rng.choice(len(weights), p=weights / weights.sum()))
        if picked == 0:
            members = self._sets[dataset]
            index = members[rng.integers(len(members))]
            return self._anywhere(number, index, rng)
        choice = choices[picked - 1]
        index = choice.cases[rng.integers(len(choice.cases))]
        return self._on(choice.row, number, index, rng)

    def probabilities(self) -> dict[str, dict[str, float]]:
        """For each data set, how often a patch is centred on each class (and "background"); for people to look at."""
        out = {}
        for name, choices in self._choices.items():
            weights = {"background": self.settings.background, **{c.row: c.weight for c in choices}}
            total = sum(weights.values()) or 1.0
            out[name] = {row: weight / total for row, weight in weights.items()}
        return out

    def _weighted(self, members: list[int]) -> list[_Choice]:
        rows = sorted({row for index in members for row in self._codes[index]})
        lifts = {row: (len(self._sets) / self._sets_with(row)) ** self.settings.rarity_power for row in rows}
        out = []
        for kind, share in ((False, self.settings.organs), (True, self.settings.lesions)):
            of_kind = [row for row in rows if _is_lesion(row) is kind]
            total = sum(lifts[row] for row in of_kind)
            for row in of_kind:
                holders = tuple(index for index in members if row in self._codes[index])
                out.append(_Choice(row, share * lifts[row] / total, holders))
        return [choice for choice in out if choice.weight > 0]

    def _sets_with(self, row: str) -> int:
        return sum(any(row in self._codes[index] for index in members) for members in self._sets.values())

    def _anywhere(self, number: int, index: int, rng: np.random.Generator) -> Draw:
        shape = self.cases[index].shape
        centre = tuple(float(rng.uniform(0, n - 1)) for n in shape)
        return self._placed(number, index, centre, None, rng)

    def _on(self, row: str, number: int, index: int, rng: np.random.Generator) -> Draw:
        case = self.cases[index]
        codes = self._codes[index][row]
        share = np.array([case.voxels[code] for code in codes], float)
        points = case.coordinates(codes[int(rng.choice(len(codes), p=share / share.sum()))])
        voxel = points[rng.integers(len(points))]
        shift = rng.uniform(-0.5, 0.5, 3) * self.settings.jitter * np.array(self.settings.patch_voxels)
        return self._placed(number, index, tuple(float(v + s) for v, s in zip(voxel, shift, strict=True)), row, rng)

    def _placed(
        self, number: int, index: int, centre: tuple[float, ...], target: str | None, rng: np.random.Generator
    ) -> Draw:
        """The draw moved so that no more of the patch than necessary lies outside the scan."""
        x, y, z = (
            float(np.clip(c, (p - 1) / 2, n - 1 - (p - 1) / 2)) if n >= p else (n - 1) / 2
            for c, p, n in zip(centre, self.settings.patch_voxels, self.cases[index].shape, strict=True)
        )
        return Draw(number, index, (x, y, z), target, int(rng.integers(2**63)))


def _codes_by_row(case: CachedCase, table: LabelTable, classes: tuple[str, ...]) -> dict[str, list[int]]:
    """Annotated classes and unions that occur in the scan -> the codes that hold them."""
    unions = ["|".join(k for k, member in zip(classes, row, strict=True) if member) for row in table.union_members]
    annotated = [*table.annotated.tolist(), *([True] * len(unions))]
    out = {}
    for row, (name, teaches) in enumerate(zip([*classes, *unions], annotated, strict=True)):
        codes = [code for code, voxels in enumerate(case.voxels) if voxels and bool(table.rows[row, code])]
        if teaches and codes:
            out[name] = codes
    return out


def _is_lesion(row: str) -> bool:
    return row in taxonomy() and taxonomy()[row].is_lesion
