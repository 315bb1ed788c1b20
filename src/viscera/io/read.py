"""The one door through which scans come in."""

from __future__ import annotations

import os
from pathlib import Path

from viscera.errors import ImageError
from viscera.io.geometry import require_geometry
from viscera.io.nifti import looks_like_nifti, read_nifti
from viscera.io.stream import ByteStream
from viscera.io.volume import Volume


def read_volume(path: str | os.PathLike[str], *, series: str | None = None, force: bool = False) -> Volume:
    """Read one CT volume."""
    path = Path(path)
    with ByteStream(path) as stream:
        head = stream.upto(348)
    if not looks_like_nifti(head):
        raise ImageError(f"{path} is not an image.")
    volume = read_nifti(path)
    require_geometry(volume.affine, str(path))
    return volume
