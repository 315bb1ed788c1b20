"""The record of a run: what was computed with what, on which machine, in how long; and how to get it again."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from viscera.io.volume import Volume
from viscera.post.pipeline import RuleNote

SCHEMA = "viscera run 1"
PACKAGES = ("viscera", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "connected-components-3d")


def run_record(
    *,
    volume: Volume,
    orientation: str,
    model: Mapping[str, Any],
    request: Mapping[str, Any],
    used: Mapping[str, Any],
    rules: Sequence[RuleNote],
    warnings: Sequence[str],
    timings_s: Mapping[str, float],
    started: datetime,
) -> dict[str, Any]:
    """Everything about a run as plain values; the caller adds the files written.

    request  what was asked for; `used` is what "auto" became on this machine
    """
    return {
        "schema": SCHEMA,
        "started": started.isoformat(timespec="seconds"),
        "input": {
            "path": volume.provenance.path,
            "format": volume.provenance.format,
            "modality": volume.provenance.modality,
            "sha256": volume.provenance.sha256,
            "shape": list(volume.shape),
            "spacing_mm": list(volume.spacing_mm),
            "orientation": orientation,
            "affine": np.asarray(volume.affine).tolist(),
        },
        "model": dict(model),
        "request": dict(request),
        "used": dict(used),
        "rules": [asdict(note) for note in rules],
        "warnings": list(warnings),
        "timings_s": dict(timings_s),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Python and the packages whose version can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


@cache
def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float:
    """The most memory this process has had resident so far, MB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells on Linux includes the program that started this one
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # Windows
        return nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)  # bytes on macOS, KiB elsewhere
