"""One scan of a set as a folder: image.nii.gz and labels.nii.gz on one grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.io.volume import Volume
from viscera.io.write import write_image, write_label_map


def write_case(folder: Path, image: Volume, values: npt.NDArray[np.unsignedinteger[Any]]) -> None:
    """The image, then its label map: a folder with labels is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(image.array, image, folder / "image.nii.gz")
    write_label_map(np.ascontiguousarray(values), image, folder / "labels.nii.gz")
