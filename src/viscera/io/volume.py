"""A scan in memory: its numbers, where they lie in space, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from viscera.shapes import SpacingMm, Triple

AIR_HU = -1024.0  # what stands in for a number that is not there (NaN, padding)


@dataclass(frozen=True)
class Provenance:
    """Where a volume came from and what had to be done to read it."""

    path: str  # the file, folder or archive the user named
    format: str  # "NIfTI" | "NRRD" | "MetaImage" | "DICOM" | "array"
    modality: str = "unknown"  # "CT" where the file says so (DICOM); "unknown" elsewhere
    sha256: str | None = None  # of the file; of the sorted slices' digests for a DICOM series
    notes: tuple[str, ...] = ()  # what was noticed or corrected, in sentences for people


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image.

    array       [x, y, z] in the file's own axis order; Hounsfield units for a CT; finite real numbers
    affine      4x4 float64, voxel index -> RAS+ mm
    provenance  where it came from
    """

    array: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    provenance: Provenance = field(default_factory=lambda: Provenance(path="<array>", format="array"))

    @property
    def shape(self) -> Triple:
        x, y, z = self.array.shape
        return (x, y, z)

    @property
    def spacing_mm(self) -> SpacingMm:
        """Distance between neighbouring voxel centres along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))
