"""Tables of classes and findings: for 3D Slicer, for ITK-SNAP, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viscera.io.atomic import whole_file
from viscera.report.findings import Finding
from viscera.taxonomy import Structure

if TYPE_CHECKING:
    from rich.console import Group

SLICER, ITKSNAP = "slicer.ctbl", "itksnap.txt"


def slicer_table(structures: Sequence[Structure]) -> str:
    """A colour table for 3D Slicer: ``id name red green blue alpha``, names without blanks."""
    lines = ["# viscera label map: id name r g b a", "0 background 0 0 0 0"]
    lines += [f"{s.id} {s.name.replace(' ', '_')} {' '.join(map(str, s.colour))} 255" for s in structures]
    return "\n".join(lines) + "\n"


def itksnap_table(structures: Sequence[Structure]) -> str:
    """A label description file for ITK-SNAP: ``id r g b alpha visible mesh "name"``."""
    lines = ["# ITK-SNAP label description file: IDX -R- -G- -B- -A-- VIS MSH LABEL", '0 0 0 0 0 0 0 "Clear Label"']
    lines += [f'{s.id} {" ".join(map(str, s.colour))} 1 1 1 "{s.name}"' for s in structures]
    return "\n".join(lines) + "\n"


def write_label_tables(structures: Sequence[Structure], folder: Path) -> None:
    """Both tables in `folder`."""
    for name, text in ((SLICER, slicer_table(structures)), (ITKSNAP, itksnap_table(structures))):
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def findings_table(findings: Sequence[Finding]) -> Group:
    """For the terminal: the classes that were found with volume, density and remarks; the others in one line."""
    from rich.console import Group
    from rich.table import Table

    found = [f for f in findings if f.volume_ml > 0]
    missing = [f.name for f in findings if f.volume_ml == 0]
    table = Table("class", box=None, header_style="bold")
    for heading in ("volume ml", "mean HU", "probability"):
        table.add_column(heading, justify="right")
    table.add_column("remarks")
    for f in found:
        probability = "" if math.isnan(f.mean_probability) else f"{f.mean_probability:.2f}"
        table.add_row(f.name, f"{f.volume_ml:.1f}", f"{f.mean_hu:.0f}", probability, "; ".join(_remarks(f)))
    parts = [table] if found else []
    return Group(*parts, *([f"Not found: {', '.join(missing)}."] if missing else []))


def _remarks(finding: Finding) -> list[str]:
    remarks = [flag.remark for flag in finding.flags]
    if finding.lesions:
        largest = finding.lesions[0]
        where = f" in the {largest.host.replace('_', ' ')}" if largest.host else ""
        remarks.append(f"{len(finding.lesions)} found, the largest {largest.axial_diameter_mm:.0f} mm{where}")
    elif finding.components > 1:
        remarks.append(f"{finding.components} parts")
    return remarks
