"""Values as JSON: the one place that decides what a NaN becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np

from viscera.io.atomic import whole_file


def plain(value: Any) -> Any:
    """A value for JSON: dataclasses as objects, tuples as lists, NaN as null, infinity as "inf", paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return None if isnan(value) else value if abs(value) < inf else "inf" if value > 0 else "-inf"
    return str(value) if isinstance(value, Path) else value


def write_json(value: Any, path: Path) -> None:
    """Writes `plain(value)` as the whole of `path`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
