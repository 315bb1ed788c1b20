"""A result folder that is either whole or not there: written beside, moved in, the run record last."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from viscera.errors import OutputError
from viscera.report.manifest import SCHEMA

RECORD = "run.json"  # moved in last: a folder that holds it is whole


@contextmanager
def staged(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A fresh folder to write a result into; on leaving, its contents move to `folder`, `run.json` last.

    An error or Ctrl-C inside leaves `folder` as it was. Raises OutputError if `folder` already holds a result and
    `overwrite` is False, or if it cannot be written.
    """
    refuse_existing(folder, overwrite)
    missing = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    work: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        yield work
        _move_in(work, folder)
    except OutputError as error:  # it names a file of the hidden folder, which nobody knows
        raise _unwritable(folder, error.__cause__ or error) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # a folder that holds something stays, and so do those around it
            for place in missing:
                place.rmdir()


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises OutputError if `folder` holds an earlier result that must not be replaced, or cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output {folder} is a file; give a folder with --output.")
    present = [name for name in (RECORD, "segmentation.nii.gz") if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(
            f"{folder} already holds a result ({', '.join(present)}). Use --overwrite to replace it, or choose another "
            "place with --output."
        )
    # Asked before minutes of computing, not only when the first file is written.
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not nearest.is_dir():
        raise _unwritable(folder, f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"nothing may be written in {nearest}")


def _unwritable(folder: Path, reason: BaseException | str) -> OutputError:
    told = reason.strerror or reason if isinstance(reason, OSError) else reason
    return OutputError(f"Cannot write the result to {folder}: {told}. Choose another --output.")


def _move_in(work: Path, folder: Path) -> None:
    old = read_record(folder)
    (folder / RECORD).unlink(missing_ok=True)  # from here on the folder does not look whole
    fresh = {item.name for item in work.iterdir()}
    for name in {str(name).split("/")[0] for name in (old or {}).get("outputs", {})}:
        if name not in {*fresh, "", ".", ".."}:  # an earlier run's masks must not stand beside this run's map
            _remove(folder / name)
    for item in sorted(work.iterdir(), key=lambda path: (path.name == RECORD, path.name)):
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sizes(folder: Path) -> dict[str, int]:
    """Every file below `folder` with its size in bytes, by relative path with forward slashes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The run record in `folder`, or None if there is none that can be read (another program's run.json is none)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a finished result with every file it was written with, at its full size."""
    record = read_record(folder)
    if record is None:
        return False
    sizes = file_sizes(folder)
    return all(sizes.get(name) == size for name, size in record.get("outputs", {}).items())
