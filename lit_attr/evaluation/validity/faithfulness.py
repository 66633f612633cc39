"""Mean faithfulness curves of the contrasts that have them: by the scores, by the exact effects, and at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_attr.records.schema import CurvesRecord, Rankings


def faithfulness_report(curves: Sequence[CurvesRecord]) -> dict[str, Any] | None:
    """Averages curves over contrasts.

    `aopc` is the plain mean over the percentages, as in the code of ERASER (`rationale_benchmark/metrics.py`).

    Args:
        curves: The curves of each contrast.

    Returns:
        The report in JSON types; None where there are no curves.
    """
    if not curves:
        return None
    return {
        "contrasts": len(curves),
        "ablation": "zero",
        "logit_diff": float(np.mean([each.logit_diff for each in curves])),
        "percent": list(curves[0].percent),
        "comprehensiveness": _mean_of([each.comprehensiveness for each in curves]),
        "sufficiency": _mean_of([each.sufficiency for each in curves]),
    }


def _mean_of(rankings: Sequence[Rankings]) -> dict[str, dict[str, Any]]:
    curves = {
        "scores": [each.scores for each in rankings],
        "exact": [each.exact for each in rankings],
        "random": [each.random for each in rankings],
    }
    means = {name: np.mean(values, axis=0) for name, values in curves.items()}
    return {name: {"curve": mean_P.tolist(), "aopc": float(mean_P.mean())} for name, mean_P in means.items()}
