"""The checks that every scan passes, from a file or from memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from viscera.io.geometry import one_volume, require_geometry
from viscera.io.hounsfield import calibrated, compact, require_real
from viscera.io.volume import Volume


def validated(volume: Volume, *, force: bool = False, in_place: bool = False) -> Volume:
    """`volume` as one plausible CT in HU: int16 or float32 [x, y, z], finite, nothing below -1024.

    What was corrected stands in `provenance.notes`. Validating twice changes nothing.

    force     take the numbers as they are (see `hounsfield.calibrated`); the geometry must be sound all the same
    in_place  correct the given array itself where it must be corrected: half the memory; else it is never changed
    Raises ImageError for what is not one CT volume: the message names the rule and the way out.
    """
    name = volume.provenance.path
    array, affine = np.asarray(volume.array), np.asarray(volume.affine, np.float64)
    require_real(array.dtype, name)
    shape, about_shape = one_volume(array.shape, name)
    require_geometry(affine, name)
    array, about_numbers = compact(array.reshape(shape))
    array, about_hu = calibrated(array, name, force=force, in_place=in_place)
    provenance = volume.provenance.noting(*about_shape, *about_numbers, *about_hu)
    return replace(volume, array=array, affine=affine, provenance=provenance)
