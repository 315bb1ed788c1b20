"""A scan in memory: its numbers, where they lie in space, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.shapes import SpacingMm, Triple, triple

AIR_HU = -1024.0  # what stands in for a number that is not there (NaN, padding)


@dataclass(frozen=True)
class Provenance:
    """Where a volume came from and what had to be done to read it."""

    path: str  # the file, folder or archive the user named
    format: str  # "NIfTI" | "Analyze" | "NRRD" | "MetaImage" | "DICOM" | "array"
    modality: str = "unknown"  # "CT" where the file says so (DICOM); "unknown" elsewhere
    # Of the file's bytes; of the parts' digests in order where there are several (header + data, DICOM slices).
    sha256: str | None = None
    notes: tuple[str, ...] = ()  # what was noticed or corrected, in sentences for people

    def noting(self, *notes: str) -> Provenance:
        """The same provenance with `notes` added at the end."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image.

    array         [x, y, z] in the file's own axis order; Hounsfield units for a CT; finite real numbers
    affine        4x4 float64, voxel index -> RAS+ mm
    provenance    where it came from
    nifti_header  a NIfTI source's binary header, so that results are written with the very same geometry
                  (sform, qform, codes, units); None for every other source
    """

    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    provenance: Provenance = field(default_factory=lambda: Provenance(path="<array>", format="array"))
    nifti_header: bytes | None = field(default=None, repr=False)

    @property
    def shape(self) -> Triple:
        return triple(self.array.shape)

    @property
    def spacing_mm(self) -> SpacingMm:
        """Distance between neighbouring voxel centres along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))
