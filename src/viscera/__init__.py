"""viscera: one text-driven model for every organ and tumour in CT.

    >>> import viscera
    >>> result = viscera.segment("scan.nii.gz", classes=["liver", "kidneys"])  # doctest: +SKIP
    >>> result.mask("liver").sum() * result.volume.voxel_volume_mm3 / 1000     # doctest: +SKIP
    >>> result.save("out/")                                                    # doctest: +SKIP

Everything named in `__all__` is public; it is loaded when first used, so that importing viscera costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from viscera.errors import VisceraError
    from viscera.io.read import read_volume
    from viscera.io.volume import Volume
    from viscera.model.store import load_model
    from viscera.names import resolve
    from viscera.taxonomy import Structure, taxonomy
    from viscera.workflow.scan import Result, segment

_HOME = {
    "Result": "viscera.workflow.scan",
    "Structure": "viscera.taxonomy",
    "VisceraError": "viscera.errors",
    "Volume": "viscera.io.volume",
    "load_model": "viscera.model.store",
    "read_volume": "viscera.io.read",
    "resolve": "viscera.names",
    "segment": "viscera.workflow.scan",
    "taxonomy": "viscera.taxonomy",
}

__all__ = [
    "Result",
    "Structure",
    "VisceraError",
    "Volume",
    "__version__",
    "load_model",
    "read_volume",
    "resolve",
    "segment",
    "taxonomy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'viscera' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
