"""What every metric answers when a mask is empty: one table, and nothing else decides it.

======================  ====================  ===================  ====================
metric                  both masks empty      reference empty      prediction empty
======================  ====================  ===================  ====================
dice                    not scored (NaN)      0                    0
nsd                     not scored (NaN)      0                    0
hd95_mm                 not scored (NaN)      infinite             infinite
asd_mm                  not scored (NaN)      infinite             infinite
volume_error_ml         not scored (NaN)      + the prediction     - the reference
volume_error_percent    not scored (NaN)      not scored (NaN)     -100
sensitivity             not scored (NaN)      not scored (NaN)     0
precision               not scored (NaN)      0                    not scored (NaN)
specificity             1                     by its formula       1
======================  ====================  ===================  ====================

"Not scored" values are left out of means and never count as 0 or 1: a scan without a gallbladder in which none was
predicted says nothing about how well gallbladders are drawn. An infinite distance is kept: it counts as the worst in
medians and ranks; means are taken over the finite values, and the number of infinite ones stands beside them.
"Not scored" is what MONAI's `ignore_empty=True` and nnU-Net do. FLARE's scripts give 1 where both are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from types import MappingProxyType

from viscera.errors import SettingError

FORMULA = None  # the formula itself has the right answer in this case


@dataclass(frozen=True)
class Metric:
    """One number per class and case, and its answers to empty masks (the columns of the table above)."""

    key: str
    name: str  # what people read
    unit: str  # "" for a ratio
    best: float  # the value of a perfect prediction
    higher_is_better: bool
    both_empty: float | None
    reference_empty: float | None
    prediction_empty: float | None
    decimals: int = 3

    @property
    def label(self) -> str:
        """The name with its unit: "HD95 (mm)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def at_empty(self, reference_is_empty: bool, prediction_is_empty: bool) -> float | None:
        """The answer laid down for these masks; None where the formula decides."""
        if reference_is_empty and prediction_is_empty:
            return self.both_empty
        if reference_is_empty:
            return self.reference_empty
        return self.prediction_empty if prediction_is_empty else FORMULA

    def cost(self, value: float) -> float:
        """How far `value` is from perfect: 0 at best, larger is worse (signed errors by their size)."""
        return abs(value - self.best)


_ROWS = (
    #      key, name, unit, best, higher_is_better, both_empty, reference_empty, prediction_empty, decimals
    Metric("dice", "Dice", "", 1.0, True, nan, 0.0, 0.0),
    Metric("nsd", "NSD", "", 1.0, True, nan, 0.0, 0.0),
    Metric("hd95_mm", "HD95", "mm", 0.0, False, nan, inf, inf, 2),
    Metric("asd_mm", "ASD", "mm", 0.0, False, nan, inf, inf, 2),
    Metric("volume_error_ml", "Volume error", "ml", 0.0, False, nan, FORMULA, FORMULA, 1),
    Metric("volume_error_percent", "Volume error", "%", 0.0, False, nan, nan, -100.0, 1),
    Metric("sensitivity", "Voxel sensitivity", "", 1.0, True, nan, nan, 0.0),
    Metric("precision", "Voxel precision", "", 1.0, True, nan, 0.0, nan),
    Metric("specificity", "Voxel specificity", "", 1.0, True, 1.0, FORMULA, 1.0, 5),
)
METRICS = MappingProxyType({metric.key: metric for metric in _ROWS})


def metric(key: str) -> Metric:
    """The metric with this key. Raises SettingError naming the known ones."""
    if key not in METRICS:
        raise SettingError(f"There is no metric {key!r}; choose from {', '.join(METRICS)}.")
    return METRICS[key]
