"""Where viscera keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$VISCERA_CACHE`, else the platform's cache folder for viscera."""
    if place := os.environ.get("VISCERA_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "viscera"
