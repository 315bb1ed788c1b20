"""A training recipe: one TOML file that says what is learned, from which sets, by which network, and how.

viscera train recipe.toml        a file
viscera train phantom            one that ships with viscera (`knowledge/train/<name>.toml`)
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from viscera.data.sampling import SamplingSettings
from viscera.data.transforms import RECIPES, AugmentSettings
from viscera.errors import InputError, SettingError
from viscera.model.precision import Precision
from viscera.settings import settings_from
from viscera.taxonomy import read_table, table_names
from viscera.text.bank import Finish
from viscera.train.loss import LossSettings
from viscera.train.schedule import ScheduleSettings


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which vectors tell the network its classes. Centred MiniLM by default: it needs no hub (see docs/how-to/text).

    encoder  whatever `viscera text encode --encoder` takes
    prompt   a name of `viscera text prompts`, or a template
    """

    encoder: str = "minilm"
    prompt: str = "v3"
    finish: Finish = field(default_factory=lambda: Finish(centre=True))


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """Which scans are kept apart, and how often they are segmented.

    every  steps between two looks; 0: never
    share  of the scans of every set, chosen by a hash of their names, the same in every run; at least one scan of
           each set is left to learn from
    cases  ids of scans ("lits/17") that are kept apart besides
    sets   keys of sets of which every scan is kept apart
    """

    every: int = 1000
    share: float = 0.1
    cases: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 <= self.share < 1:
            raise SettingError(f"every is {self.every} and share {self.share}; they must be >= 0, and from 0 to < 1.")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The loop itself.

    steps        updates of the weights
    batch_size   patches of one update, over all processes together
    micro_batch  patches that go through the network at once in one process; 0: all of its share. Gradients are
                 added up over micro-batches, and the result does not depend on their size (except through batch norm)
    voxel_stride head and loss look at every n-th voxel on each axis, at others in each step; 2 makes a step with many
                 classes several times faster, since the head works on every voxel for every class
    clip_norm    largest length of the gradient; longer ones are shortened
    ema          weights are averaged with this decay per step (Tarvainen & Valpola 2017); 0: not at all
    precision    "bf16" where the hardware has it ("auto"), or "fp32"
    workers      processes that prepare patches, for each training process
    seed         of weights, patches and everything drawn
    log_every, save_every   steps between two log rows, and between two states from which a run can go on
    """

    steps: int = 10_000
    batch_size: int = 2
    micro_batch: int = 0
    voxel_stride: int = 1
    clip_norm: float = 10.0
    ema: float = 0.999
    precision: Precision = "auto"
    workers: int = 1
    seed: int = 0
    log_every: int = 20
    save_every: int = 250

    def __post_init__(self) -> None:
        if (
            min(self.steps, self.batch_size, self.voxel_stride, self.log_every, self.save_every) < 1
            or min(self.micro_batch, self.seed) < 0
        ):
            raise SettingError(
                f"steps ({self.steps}), batch_size ({self.batch_size}), voxel_stride ({self.voxel_stride}), log_every "
                f"({self.log_every}) and save_every ({self.save_every}) must be at least 1; micro_batch "
                f"({self.micro_batch}) and seed ({self.seed}) 0."
            )
        if self.clip_norm <= 0 or not 0 <= self.ema < 1 or self.workers < 0:
            raise SettingError(
                f"clip_norm is {self.clip_norm}, ema {self.ema} and workers {self.workers}; they must be above 0, "
                "from 0 to below 1, and at least 0."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the scans themselves.

    name             of the model that comes out
    model            a packaged architecture (`knowledge/models/<model>.toml`)
    model_settings   what shall differ from it: { preprocessing = { spacing_mm = [2, 2, 2] } }
    init             a model to start from (a name of `viscera models` or a file), whose architecture,
                     preprocessing and text encoder are taken over; "": random weights
    freeze_backbone  learn only what joins text and image: for a new class on an old network
    classes          keys in channel order; (): every class that some set annotates, in the taxonomy's order
    sets             data set (a key of `viscera data list`, or the path of a table) -> its folder
    licence          of the weights that come out, as far as the sets' licences allow
    """

    name: str
    model: str = "lite"
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""
    freeze_backbone: bool = False
    classes: tuple[str, ...] = ()
    sets: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    text: TextSettings = field(default_factory=TextSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augment: AugmentSettings = field(default_factory=lambda: RECIPES["strong"])
    loss: LossSettings = field(default_factory=LossSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise SettingError(f"The recipe's name is {self.name!r}; use letters, digits, '-', '_' and '.'.")

    def as_json(self) -> dict[str, Any]:
        """Plain values; `recipe_from` reads them back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def digest(self) -> str:
        """Differs as soon as anything that decides the weights differs."""
        values = self.as_json()
        for name in _NO_MATTER:
            values["loop"].pop(name)
        values.pop("sets")  # where a set lies does not matter; what lies there does, and the run's state knows it
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_NO_MATTER = ("workers", "log_every", "save_every")  # settings of the loop that leave the weights as they are


def recipe_names() -> list[str]:
    """The recipes that ship with viscera."""
    return table_names("train")


def load_recipe(name_or_path: str) -> Recipe:
    """A packaged recipe by name, or the one in a TOML file. Folders and tables in a file are relative to it.

    Raises InputError if there is none, SettingError for what is wrong in it.
    """
    if name_or_path in recipe_names():
        return recipe_from(read_table(f"train/{name_or_path}.toml"), name_or_path, f"the recipe {name_or_path!r}")
    path = Path(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"There is no recipe {name_or_path!r}: it is neither a file that can be read nor one of "
            f"{', '.join(recipe_names())}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not TOML: {error}.") from error
    recipe = recipe_from(values, path.stem, path.name)
    return replace(
        recipe,
        sets={
            str(path.parent / key) if key.endswith(".toml") else key: str(path.parent / folder)
            for key, folder in recipe.sets.items()
        },
    )


def recipe_from(values: Mapping[str, Any], name: str, where: str) -> Recipe:
    """A recipe from plain values. `augment` is a recipe's name ("none", "paper", "strong"), or a table whose `recipe`
    names the one it changes."""
    values = {"name": name, **values}
    augment = values.get("augment", {})
    changes = {"recipe": augment} if isinstance(augment, str) else dict(augment)
    start = changes.pop("recipe", "strong")
    if start not in RECIPES:
        raise SettingError(f"{where}, augment: there is no recipe {start!r}; there are {', '.join(RECIPES)}.")
    known = {**asdict(RECIPES[start]), **changes}
    return settings_from(Recipe, {**values, "augment": known}, where)
