"""Everything a set of weights needs to be used rightly: read from a table or from the checkpoint itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from viscera.errors import CheckpointError
from viscera.shapes import SpacingMm, Triple
from viscera.taxonomy import read_table, table_names, taxonomy

Mode = Literal["window", "body", "whole"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a scan must be brought before the network."""

    spacing_mm: SpacingMm  # voxel spacing of the network's grid, RAS axes
    window_hu: tuple[float, float]  # these HU become 0 and 1; values beyond are clipped
    smooth: bool = False  # average while shrinking an axis (True) or plain linear interpolation (the paper)
    orientation: Literal["RAS"] = "RAS"  # the only one there is; stated so that a reader of the file knows

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise CheckpointError(f"spacing_mm is {self.spacing_mm}; it must be three numbers above 0.")
        if len(self.window_hu) != 2 or self.window_hu[0] >= self.window_hu[1]:
            raise CheckpointError(f"window_hu is {self.window_hu}; it must be (low, high) with low < high.")
        if self.orientation != "RAS":
            raise CheckpointError(f"orientation is {self.orientation!r}; only RAS is known.")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the network is run over a scan."""

    # "window": sliding windows, where they stand in the whole scan; "body": sliding windows over the box around the
    # body; "whole": that box in one pass (in windows if it is too large)
    mode: Mode
    patch_voxels: Triple  # window size
    overlap: float = 0.5  # part of a window that the next one shares

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise CheckpointError(f"inference mode is {self.mode!r}; it must be one of {', '.join(get_args(Mode))}.")
        if len(self.patch_voxels) != 3 or min(self.patch_voxels) < 1 or not 0 <= self.overlap < 1:
            raise CheckpointError(
                f"patch_voxels is {self.patch_voxels} and overlap {self.overlap}; they must be three positive whole "
                "numbers, and at least 0 and below 1."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's settings; `knowledge/models/<name>.toml` or a checkpoint's metadata as an object."""

    name: str  # what people type after --model
    backbone: str  # a module of viscera.model.backbones
    backbone_settings: Mapping[str, Any] = field(default_factory=dict)  # that backbone's own arguments
    classes: tuple[str, ...]  # class keys in channel order
    text_dim: int = 512  # length of a class's text vector (512: CLIP ViT-B/32)
    preprocessing: Preprocessing
    inference: Inference
    thresholds: Mapping[str, float] = field(default_factory=dict)  # probability a class must reach; 0.5 if not named
    trained: bool = False  # False: the numbers are random, and every result must say so
    licence: str = ""  # of the weights
    source: str = ""  # where weights or architecture come from
    text_bank: Mapping[str, Any] = field(default_factory=dict)  # which encoder, template and names made the vectors
    training: Mapping[str, Any] = field(default_factory=dict)  # summary of how the weights were trained

    def __post_init__(self) -> None:
        unknown = [key for key in (*self.classes, *self.thresholds) if key not in taxonomy()]
        if unknown:
            raise CheckpointError(f"The model {self.name!r} names classes that do not exist: {', '.join(unknown)}.")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise CheckpointError(f"The model {self.name!r} must name its classes, each once.")
        wrong = {key: value for key, value in self.thresholds.items() if not 0 < value < 1}
        if wrong:
            raise CheckpointError(f"Thresholds must lie between 0 and 1; the model {self.name!r} has {wrong}.")

    def to_json(self) -> str:
        """This config as one line of JSON, for a checkpoint's metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """The config that `to_json` wrote. Raises CheckpointError if it is damaged or has unknown fields."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"The model settings are not JSON: {error}") from error
        return _config(values, "the checkpoint's settings")


def model_names() -> list[str]:
    """The models whose architecture ships with viscera (`knowledge/models/*.toml`), sorted."""
    return table_names("models")


def packaged_config(name: str) -> ModelConfig:
    """The settings in `knowledge/models/<name>.toml`; without `classes` a table means all classes of the taxonomy."""
    values = {"name": name, "classes": taxonomy().keys, **read_table(f"models/{name}.toml")}
    return _config(values, f"models/{name}.toml")


def _config(values: object, where: str) -> ModelConfig:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{where} are {values!r}; they must be a table of names and values.")
    parts = {"preprocessing": Preprocessing, "inference": Inference}
    for name in (*parts, "backbone_settings", "thresholds", "text_bank", "training"):
        if name in values and not isinstance(values[name], Mapping):
            raise CheckpointError(f"{where}: {name} is {values[name]!r}; it must be a table of names and values.")
    own = {
        name: _built(parts[name], value, f"{where}, {name}") if name in parts else value
        for name, value in values.items()
    }
    config = _built(ModelConfig, own, where)
    assert isinstance(config, ModelConfig)
    return config


def _built(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    try:
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}") from error
