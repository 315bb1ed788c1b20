"""A scoring function that takes its whole process down in one case, as a lack of memory does."""

from __future__ import annotations

import os

from viscera.report.evaluation.cases import Case
from viscera.report.evaluation.evaluate import CaseResult, EvaluationSettings, Failure, score_case


def attempt(case: Case, settings: EvaluationSettings) -> CaseResult | Failure:
    if case.name == "b":
        os._exit(9)
    return score_case(case, settings)
