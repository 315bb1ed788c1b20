"""Label tables read back as 3D Slicer and ITK-SNAP read them, and the table of findings in the terminal."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from viscera.errors import OutputError
from viscera.report.findings import Finding, Lesion
from viscera.report.flags import organ_flags
from viscera.report.tables import findings_table, itksnap_table, slicer_table, write_label_tables
from viscera.taxonomy import taxonomy

Row = tuple[str, tuple[int, int, int]]
ALL = list(taxonomy())
EXPECTED = {s.id: (s.name, s.colour) for s in ALL}


def read_slicer(text: str) -> dict[int, Row]:
    """3D Slicer takes exactly six words a line: id, name, red, green, blue, opacity; # begins a remark."""
    rows = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            number, name, red, green, blue, alpha = line.split()
            assert int(alpha) == (0 if name == "background" else 255)
            rows[int(number)] = (name, (int(red), int(green), int(blue)))
    return rows


def read_itksnap(text: str) -> dict[int, Row]:
    """ITK-SNAP takes id, red, green, blue, opacity (0-1), visible, mesh and a name in quotes."""
    rows = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            found = re.fullmatch(r'(\d+) (\d+) (\d+) (\d+) ([\d.]+) ([01]) ([01]) "([^"]*)"', line)
            assert found, line
            number, red, green, blue = (int(found[i]) for i in range(1, 5))
            shown = 0 if number == 0 else 1
            assert (float(found[5]), int(found[6]), int(found[7])) == (shown, shown, shown)
            rows[number] = (found[8], (red, green, blue))
    return rows


def test_slicer_reads_every_id_name_and_colour():
    rows = read_slicer(slicer_table(ALL))
    assert rows.pop(0) == ("background", (0, 0, 0))
    assert {i: (name.replace("_", " "), colour) for i, (name, colour) in rows.items()} == EXPECTED


def test_itksnap_reads_every_id_name_and_colour():
    rows = read_itksnap(itksnap_table(ALL))
    assert rows.pop(0) == ("Clear Label", (0, 0, 0))
    assert rows == EXPECTED


def test_a_known_class_by_hand():
    assert "6 liver 221 130 101 255" in slicer_table([taxonomy()["liver"]]).splitlines()
    assert '2 0 150 110 1 1 1 "right kidney"' in itksnap_table([taxonomy()["right_kidney"]]).splitlines()


def test_only_the_classes_given_are_in_the_files(tmp_path: Path):
    write_label_tables([taxonomy()["liver"], taxonomy()["kidney_tumor"]], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["itksnap.txt", "slicer.ctbl"]
    ids = [0, taxonomy()["liver"].id, taxonomy()["kidney_tumor"].id]
    assert list(read_slicer((tmp_path / "slicer.ctbl").read_text(encoding="utf-8"))) == ids
    assert list(read_itksnap((tmp_path / "itksnap.txt").read_text(encoding="utf-8"))) == ids


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_label_tables(ALL, tmp_path / "file")


# --- the terminal ----------------------------------------------------------------------------------------------------

LIVER = Finding(6, "liver", "liver", "organ", 1512.34, 61.6, 12.0, 1, 0.987, False, (0.0, 0.0, 0.0))
NOTHING = Finding(1, "spleen", "spleen", "organ", 0.0, math.nan, math.nan, 0, math.nan, False, None)
LESION = Lesion(1, 2.0, 21.0, 17.6, 12.0, (0.0, 0.0, 0.0), "right_kidney", 30.0)
TUMOUR = replace(LIVER, id=26, name="kidney tumor", key="kidney_tumor", kind="tumor", lesions=(LESION, LESION))


def printed(*findings: Finding) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(findings_table(findings))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(text.split())


def test_the_terminal_shows_volume_density_and_probability():
    assert "liver 1512.3 62 0.99" in printed(LIVER)


def test_the_terminal_names_what_was_not_found_in_one_line():
    assert printed(LIVER, NOTHING, replace(NOTHING, name="stomach")).endswith("Not found: spleen, stomach.")
    assert "Not found" not in printed(LIVER)


def test_the_terminal_tells_parts_and_flags():
    flags = organ_flags(taxonomy()["liver"], 5000.0, touches_border=True)
    told = printed(replace(LIVER, components=3, flags=flags))
    assert told.endswith("cut by the scan's border; adults have 500-4500 ml; 3 parts")
    assert "part" not in printed(LIVER)


def test_the_terminal_tells_the_largest_lesion_and_its_organ():
    assert "2 found, the largest 18 mm in the right kidney" in printed(TUMOUR)
    homeless = replace(TUMOUR, lesions=(replace(LESION, host=None),))
    assert printed(homeless).endswith("1 found, the largest 18 mm")


def test_an_unknown_probability_is_left_blank():
    assert "nan" not in printed(replace(LIVER, mean_probability=math.nan))
