"""A small run on phantoms: two hospitals, a tiny network, text vectors that need no encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from viscera.data.catalogue import dataset_table
from viscera.data.phantom import PhantomSettings, write_dataset
from viscera.train.recipe import Recipe, recipe_from
from viscera.workflow.training import Plan, make_plan

TINY = {
    "model": "lite",
    "model_settings": {
        "backbone_settings": {"channels": [16, 16]},
        "preprocessing": {"spacing_mm": [10.0, 10.0, 10.0]},
        "inference": {"patch_voxels": [32, 32, 32]},
    },
    "text": {"encoder": "random:0", "finish": {}},
    "augment": "none",
    "sampling": {"patch_voxels": [16, 16, 16]},
    "schedule": {"learning_rate": 3e-3, "warmup_steps": 2},
    "validation": {"every": 0, "share": 0.0},
    "loop": {
        "steps": 6,
        "batch_size": 2,
        "precision": "fp32",
        "workers": 0,
        "ema": 0.9,
        "log_every": 2,
        "save_every": 2,
    },
}


def recipe(**changes) -> Recipe:
    """The tiny recipe; `loop=dict(steps=3)` changes a table, anything else a field."""
    values = {
        **TINY,
        **{k: {**TINY.get(k, {}), **v} if isinstance(v, dict) and k != "sets" else v for k, v in changes.items()},
    }
    return recipe_from(values, "tiny", "test")


def as_toml(values, **loop) -> str:
    """The tiny recipe as a file."""
    values = {**values, "loop": {**values["loop"], **loop}}
    lines = []

    def table(name, rows):
        plain = {key: value for key, value in rows.items() if not isinstance(value, dict)}
        if name:
            lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in plain.items())
        for key, value in rows.items():
            if isinstance(value, dict):
                table(f"{name}.{key}" if name else key, value)

    table("", values)
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, str]:
    """amos draws 15 organs, lits the liver and its tumours; two patients each."""
    root = tmp_path_factory.mktemp("sets")
    for key in ("amos", "lits"):
        write_dataset(dataset_table(key), root / key, 2, 0, PhantomSettings(spacing_mm=(9.0, 9.0, 10.0)))
    return {key: str(root / key) for key in ("amos", "lits")}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(sets, cache):
    """A function that makes the plan of a changed tiny recipe."""

    def make(**changes) -> Plan:
        return make_plan(replace(recipe(**changes), sets=sets), cache)

    return make
