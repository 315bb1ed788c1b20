"""How large the steps are: a warm-up, then half a cosine, by step number alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from viscera.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """AdamW (Loshchilov & Hutter 2019) and its learning rate. The defaults are the paper's 1e-4 and 1e-5.

    learning_rate  at the end of the warm-up
    warmup_steps   the rate grows linearly over these
    final_share    of the learning rate at the last step
    weight_decay   of matrices and kernels; norms and biases are left alone
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 100
    final_share: float = 0.01
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or not 0 <= self.final_share <= 1 or self.weight_decay < 0:
            raise SettingError(
                f"learning_rate is {self.learning_rate}, warmup_steps {self.warmup_steps}, final_share "
                f"{self.final_share}, weight_decay {self.weight_decay}; they must be > 0, >= 0, from 0 to 1, >= 0."
            )


def learning_rate(step: int, steps: int, settings: ScheduleSettings) -> float:
    """The rate of update number `step`, counted from 0, of `steps`.

    >>> half = ScheduleSettings(learning_rate=1.0, warmup_steps=2, final_share=0.0)
    >>> [round(learning_rate(step, 7, half), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warm = settings.warmup_steps
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    share = settings.final_share + (1 - settings.final_share) * (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * share
