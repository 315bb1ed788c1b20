"""Findings against what is known of the patients: pathology or radiology reports, without any mask.

The truths are a CSV with one line per patient and question:

    case,class,present,size_mm
    patient_07,liver tumor,yes,23
    patient_07,kidney,no,

`case` is the name of the result's folder; `class` a tumour or cyst, an organ (any tumour in it), or `any`; `size_mm`
the largest diameter, if it was measured. A patient is called positive if any lesion of the class is left.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any, Literal

from viscera.errors import ClassNameError, InputError, SettingError
from viscera.metrics.agreement import BlandAltman, bland_altman
from viscera.metrics.detection import PatientDetection, detect_patients
from viscera.names import resolve
from viscera.report import page
from viscera.report.evaluation.store import json_of, write_files
from viscera.report.evaluation.summary import shown, shown_proportion
from viscera.report.evaluation.tables import csv_text, markdown_table
from viscera.report.page import Cell
from viscera.taxonomy import taxonomy

ANY = "any"
_YES, _NO = {"yes", "y", "1", "true", "positive"}, {"no", "n", "0", "false", "negative"}
Verdict = Literal["true positive", "true negative", "false positive", "false negative", "no answer"]


@dataclass(frozen=True)
class Truth:
    """What is known about one patient."""

    case: str
    asked: str  # the class as the table writes it
    keys: tuple[str, ...]  # lesion classes, any of which answers it
    present: bool
    size_mm: float  # NaN if unknown


@dataclass(frozen=True)
class Checked:
    """One truth with what the findings say."""

    truth: Truth
    verdict: Verdict
    volume_ml: float  # of all lesions of the class; NaN without an answer
    size_mm: float  # largest diameter of a lesion; NaN if none
    lesions: int
    places: str  # where the lesions are: organ and centre
    findings: str  # the file
    why: str = ""  # why there is no answer


@dataclass(frozen=True)
class SizeAgreement:
    """Predicted against known diameters of the true positives."""

    n: int
    pearson: float
    spearman: float
    difference_mm: BlandAltman  # predicted - known


@dataclass(frozen=True)
class ReportCheck:
    """All truths with their answers."""

    rows: tuple[Checked, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """The questions, in the order they were asked."""
        return tuple(dict.fromkeys(row.truth.asked for row in self.rows))

    def answered(self, asked: str | None = None) -> list[Checked]:
        """The rows with an answer; of one question, or of all."""
        return [r for r in self.rows if r.verdict != "no answer" and asked in (None, r.truth.asked)]

    def detection(self, asked: str | None = None) -> PatientDetection:
        """Sensitivity and specificity of one question, or of all together."""
        return detect_patients((r.truth.present, r.lesions > 0) for r in self.answered(asked))

    def sizes(self, asked: str | None = None) -> SizeAgreement:
        """How well the diameters agree, over the true positives whose size is known."""
        from scipy.stats import pearsonr, spearmanr

        rows = [r for r in self.answered(asked) if r.verdict == "true positive" and not isnan(r.truth.size_mm)]
        known, found = [r.truth.size_mm for r in rows], [r.size_mm for r in rows]
        varied = len(set(known)) > 1 and len(set(found)) > 1
        return SizeAgreement(
            n=len(rows),
            pearson=float(pearsonr(known, found).statistic) if varied else nan,
            spearman=float(spearmanr(known, found).statistic) if varied else nan,
            difference_mm=bland_altman(known, found),
        )

    @property
    def disagreements(self) -> list[Checked]:
        """What a person should look at: missed ones first, then the largest false alarms."""
        wrong = [r for r in self.rows if r.verdict.startswith("false")]
        return sorted(wrong, key=lambda r: (r.verdict == "false positive", -r.volume_ml))


def read_truths(path: Path) -> list[Truth]:
    """Read the table of truths. Raises SettingError, which names the line, and ClassNameError for unknown classes."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SettingError(f"The table {path} cannot be read: {error.strerror}.") from error
    if not rows or not {"case", "class", "present"} <= set(rows[0]):
        raise SettingError(f"The table {path} needs the columns case, class and present, and one line per patient.")
    truths = []
    for line, row in enumerate(rows, start=2):
        present = (row["present"] or "").strip().lower()
        if present not in _YES | _NO:
            raise SettingError(f"{path}, line {line}: present is {row['present']!r}; write yes or no.")
        size = (row.get("size_mm") or "").strip()
        try:
            size_mm = float(size) if size else nan
        except ValueError:
            raise SettingError(f"{path}, line {line}: size_mm is {size!r}; write a number or nothing.") from None
        truths.append(Truth(row["case"], row["class"], _lesions(row["class"]), present in _YES, size_mm))
    return truths


def _lesions(name: str) -> tuple[str, ...]:
    """The lesion classes that answer a question: themselves, or for an organ the tumours that lie in it."""
    if name.strip().lower() == ANY:
        return taxonomy().groups["tumors"]
    try:
        structures = resolve(name)
    except ClassNameError:
        structures = resolve(f"{name}s")  # a report's "kidney" is either of them
    keys: dict[str, None] = {}
    for structure in structures:
        if structure.is_lesion:
            keys[structure.key] = None
        else:
            keys.update((s.key, None) for s in taxonomy() if s.kind == "tumor" and structure.key in s.inside)
    if not keys:
        raise SettingError(f"There is no tumour class for {name!r}, so it cannot be checked.")
    return tuple(keys)


def check_reports(truths: Sequence[Truth], results: Path) -> ReportCheck:
    """Answer every truth from ``results/CASE/findings.json``, as `viscera segment` wrote it."""
    if not results.is_dir():
        raise InputError(f"There is no folder {results}.")
    return ReportCheck(tuple(_check(truth, results / truth.case / "findings.json") for truth in truths))


def _check(truth: Truth, file: Path) -> Checked:
    try:
        findings = {row["key"]: row for row in json.loads(file.read_text(encoding="utf-8"))["findings"]}
    except OSError:
        return _unanswered(truth, file, "there is no findings.json of this case")
    except (ValueError, KeyError, TypeError):
        return _unanswered(truth, file, "its findings.json is damaged")
    found = [findings[key] for key in truth.keys if key in findings]
    if not found:
        return _unanswered(truth, file, f"it was not segmented for {' or '.join(truth.keys)}")
    lesions: list[dict[str, Any]] = [lesion for row in found for lesion in row["lesions"]]
    called = bool(lesions)
    right: Verdict = "true positive" if called else "true negative"
    wrong: Verdict = "false positive" if called else "false negative"
    return Checked(
        truth=truth,
        verdict=right if called == truth.present else wrong,
        volume_ml=float(sum(lesion["volume_ml"] for lesion in lesions)),
        size_mm=max((float(lesion["longest_diameter_mm"]) for lesion in lesions), default=nan),
        lesions=len(lesions),
        places="; ".join(_place(lesion) for lesion in lesions[:5]) + ("; ..." if len(lesions) > 5 else ""),
        findings=str(file),
    )


def _unanswered(truth: Truth, file: Path, why: str) -> Checked:
    return Checked(truth, "no answer", nan, nan, 0, "", str(file), why)


def _place(lesion: dict[str, Any]) -> str:
    centre = ", ".join(f"{value:.0f}" for value in lesion["centre_mm"])
    return f"{lesion['host'] or 'no organ'} at ({centre}) mm, {lesion['volume_ml']:.2f} ml"


# --- files ------------------------------------------------------------------------------------------------------------


def write_check(check: ReportCheck, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write check.html, .md, .csv and .json into `folder`. Raises OutputError."""
    questions = [
        {"asked": asked or "all", "detection": check.detection(asked), "sizes": check.sizes(asked)}
        for asked in (None, *check.asked)
    ]
    texts = {
        "check.csv": csv_text([_flat(row) for row in check.rows]),
        "check.md": check_markdown(check),
        "check.html": check_page(check),
        "check.json": json_of({"questions": questions, "rows": check.rows}),
    }
    return write_files(texts, folder, overwrite=overwrite)


def _flat(row: Checked) -> dict[str, object]:
    return {
        "case": row.truth.case,
        "class": row.truth.asked,
        "present": "yes" if row.truth.present else "no",
        "verdict": row.verdict,
        "known_size_mm": row.truth.size_mm,
        "found_size_mm": row.size_mm,
        "found_volume_ml": row.volume_ml,
        "lesions": row.lesions,
        "places": row.places,
        "why": row.why,
        "findings": row.findings,
    }


_HEADER = (
    "class",
    "patients",
    "sensitivity",
    "specificity",
    "precision",
    "sizes compared",
    "Spearman",
    "size bias (mm)",
)
_WRONG = ("case", "class", "verdict", "known size (mm)", "found (mm)", "found (ml)", "where", "file")


def _question_cells(check: ReportCheck) -> Iterator[list[str]]:
    for asked in (*check.asked, None):
        found, sizes = check.detection(asked), check.sizes(asked)
        yield [
            asked or "all together",
            str(len(check.answered(asked))),
            *(shown_proportion(p) for p in (found.sensitivity, found.specificity, found.precision)),
            str(sizes.n),
            shown(sizes.spearman),
            "-" if isnan(sizes.difference_mm.bias) else f"{sizes.difference_mm.bias:.1f}",
        ]


def _wrong_cells(row: Checked) -> list[str]:
    return [
        row.truth.case,
        row.truth.asked,
        row.verdict,
        *("-" if isnan(v) else f"{v:.1f}" for v in (row.truth.size_mm, row.size_mm, row.volume_ml)),
        row.places,
        row.findings,
    ]


def _unanswered_lines(check: ReportCheck) -> list[str]:
    return [f"{r.truth.case}, {r.truth.asked}: {r.why}" for r in check.rows if r.verdict == "no answer"]


def check_markdown(check: ReportCheck) -> str:
    """The check as Markdown."""
    parts = ["# Findings against reports", markdown_table(_HEADER, _question_cells(check))]
    parts += ["## To review", markdown_table(_WRONG, [_wrong_cells(row) for row in check.disagreements])]
    if lines := _unanswered_lines(check):
        parts += ["## Without an answer", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def check_page(check: ReportCheck) -> str:
    """The check as one HTML page."""
    wrong: list[list[Cell | str | int]] = []
    for row in check.disagreements:
        *cells, places, file = _wrong_cells(row)
        wrong.append([*cells, Cell(places, is_text=True), Cell(file, is_text=True)])
    parts = [
        page.heading("Findings against reports", 1),
        page.paragraph(
            "A patient is called positive if any lesion of the class is left after the rules. In brackets: counts and "
            "95 % Wilson interval. Sizes: largest diameters of the true positives, found less known."
        ),
        page.table(_HEADER, list(_question_cells(check))),
        page.heading("To review"),
        page.table(_WRONG, wrong) if wrong else page.paragraph("Nothing: every answer agrees with its report."),
    ]
    if lines := _unanswered_lines(check):
        parts += [page.heading("Without an answer"), page.items(lines)]
    return page.page("Findings against reports", parts)
