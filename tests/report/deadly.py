"""A scoring function that takes its whole process down in one case, as a lack of memory does."""

from __future__ import annotations

import os

from viscera.report.evaluation import CaseResult, EvaluationSettings, Failure, score_case
from viscera.report.evaluation_cases import Case


def attempt(case: Case, settings: EvaluationSettings) -> CaseResult | Failure:
    if case.name == "b":
        os._exit(9)
    return score_case(case, settings)
