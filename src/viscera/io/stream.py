"""Files as streams of bytes: gunzipped where needed, hashed while they are read, never longer than announced."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from isal import igzip
from isal.igzip_lib import IsalError

from viscera.errors import ImageError

_CHUNK = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1032  # deflate cannot shrink more than this, https://zlib.net/zlib_tech.html


class ByteStream:
    """A file read from front to back, gunzipped if its first bytes say so, whatever its name; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sha = hashlib.sha256()
        try:
            self._file = path.open("rb")
            self._size = path.stat().st_size
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        is_gzip = self._file.peek(2)[:2] == _GZIP_MAGIC
        self._max_size = self._size * _GZIP_MAX_RATIO if is_gzip else self._size
        self._content = self._gunzipped() if is_gzip else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def _gunzipped(self) -> gzip.GzipFile:
        return igzip.IGzipFile(fileobj=_HashingReader(self))  # type: ignore[no-untyped-call]

    def upto(self, count: int) -> bytes:
        """The next `count` bytes; fewer only where the file ends."""
        return self._filled(bytearray(min(count, self._max_size))).tobytes()

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes; ImageError if the file ends before them."""
        if len(found := self.upto(count)) < count:
            raise self._truncated()
        return found

    def array(self, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The next `count` numbers of type `dtype`, 1-D; ImageError if the file ends before them."""
        if count * dtype.itemsize > self._max_size:
            raise self._truncated()
        out = np.empty(count, dtype)
        if len(self._filled(out.view(np.uint8))) < out.nbytes:
            raise self._truncated()
        return out

    def digest(self) -> str:
        """SHA-256 of the file as stored, in hex; reads on to its end, where gzip keeps its own check sum."""
        while self.upto(_CHUNK):
            pass
        return self._sha.hexdigest()

    def stored_into(self, buffer: Any) -> int:
        """Fills `buffer` with the next bytes as stored, and hashes them; how many there were."""
        count = self._file.readinto(buffer)
        self._sha.update(memoryview(buffer)[:count])
        return count

    def _filled(self, buffer: Any) -> memoryview:
        """As much of `buffer` as the file can fill."""
        view = memoryview(buffer)
        filled = 0
        fill = self.stored_into if self._content is None else self._content.readinto
        try:
            while filled < len(view):
                part = view[filled : filled + _CHUNK]
                if not (got := fill(part)):
                    break
                filled += got
        except EOFError as error:
            raise self._truncated() from error
        except (OSError, IsalError) as error:  # type: ignore[misc]  # gzip.BadGzipFile is an OSError
            raise ImageError(f"{self.path} is damaged ({error}). Copy or download it again.") from error
        return view[:filled]

    def _truncated(self) -> ImageError:
        return ImageError(
            f"{self.path} is truncated: its {self._size:,} bytes hold less than its header announces. "
            "Copy or download it again."
        )


class _HashingReader:
    """What gzip reads from: the stored bytes of a `ByteStream`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def readinto(self, buffer: Any) -> int:
        return self._stream.stored_into(buffer)

    def read(self, count: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_parts(digests: Iterable[str]) -> str:
    """One digest for an image that lies in several files: SHA-256 over their hex digests, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
