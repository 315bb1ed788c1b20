"""Batches for training: draws patches, augments them, stacks them; in other processes if asked.

The n-th patch of a run is the same whatever the number of workers, processes or restarts: step s of a run with global
batch G over R processes consists of the draws s*G ... s*G + G - 1, of which process r takes r, r + R, r + 2R, ...
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from viscera.data.assemble import Batch, LabelTable, collate
from viscera.data.sampling import PatchSampler
from viscera.data.transforms import AugmentSettings, apply_augmentation, draw_augmentation
from viscera.errors import SettingError


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch: image float32 [X, Y, Z] in [0, 1], codes int32 [X, Y, Z], how to read them, and where it is from."""

    image: torch.Tensor
    codes: torch.Tensor
    table: LabelTable
    case: str


class PatchSource(Dataset[Patch]):
    """Patch number n of an endless sequence; see `sampling.PatchSampler` for what is drawn."""

    def __init__(self, sampler: PatchSampler, augment: AugmentSettings, window_hu: tuple[float, float]) -> None:
        self.sampler = sampler
        self.augment = augment
        self.window_hu = window_hu

    def __getitem__(self, number: int) -> Patch:
        sampler, size = self.sampler, self.sampler.settings.patch_voxels
        draw = sampler.draw(number)
        case, table = sampler.cases[draw.case], sampler.tables[draw.case]
        plan = draw_augmentation(self.augment, case, draw, size, self.window_hu)
        image, codes, table = apply_augmentation(plan, case, table, sampler.classes, draw, size, self.window_hu)
        return Patch(image, codes, table, case.id)


def patch_loader(
    source: PatchSource,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Batches of steps `start_step` to `stop_step` (exclusive) for process `rank` of `world_size`.

    batch_size  of all processes together; must be a multiple of `world_size`
    workers     processes that prepare batches ahead; 0: in this one
    Raises SettingError for a batch size that cannot be shared out.
    """
    if batch_size < 1 or batch_size % world_size:
        raise SettingError(
            f"The batch size is {batch_size} for {world_size} processes; it must be a multiple of their number."
        )
    return DataLoader(  # collate_fn turns patches into a batch, which DataLoader's own types cannot say
        cast(Dataset[Any], source),
        batch_sampler=_Steps(batch_size, start_step, stop_step, rank, world_size),
        num_workers=workers,
        collate_fn=_as_batch,
        worker_init_fn=_modest if workers else None,
    )


@dataclass(frozen=True)
class _Steps:
    """The draw numbers of each step for one process."""

    batch_size: int
    start: int
    stop: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = step * self.batch_size
            yield list(range(first + self.rank, first + self.batch_size, self.world_size))


def _as_batch(patches: Sequence[Patch]) -> Batch:
    return collate(
        [patch.image for patch in patches],
        [patch.codes for patch in patches],
        [patch.table for patch in patches],
        [patch.case for patch in patches],
    )


def _modest(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    os.nice(10)  # on a small machine the network's threads come first: they wait for each other
