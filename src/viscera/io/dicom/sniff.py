"""Which files may be DICOM: told from their first bytes, before pydicom is loaded (a tenth of a second)."""

from __future__ import annotations

from pathlib import Path

from viscera.errors import ImageError

SNIFFED_BYTES = 132  # preamble and magic
# Without the preamble a file starts with its first element: group 0002 or 0008, little or big endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first `SNIFFED_BYTES` may be DICOM, with or without the preamble."""
    return head[128:132] == b"DICM" or (len(head) >= 8 and head[:2] in _FIRST_GROUPS)


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden or a side product: not worth a look."""
    return (name.startswith(".") and name != "..") or name in ("__MACOSX", "DICOMDIR")


def is_dicom_file(path: Path) -> bool:
    """Whether a file's first bytes may be DICOM."""
    try:
        with path.open("rb") as file:
            return looks_like_dicom(file.read(SNIFFED_BYTES))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
