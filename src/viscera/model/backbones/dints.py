"""DiNTS (He et al. 2021) with a searched architecture: MONAI's, instantiated from an architecture code."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.nets import DiNTS, TopologyInstance
from torch import nn

from viscera.model.backbones.base import Backbone


class ChosenOperation(nn.Module):
    """The one operation that the search chose for a cell, under its number among the cell's choices.

    MONAI numbers only what it keeps; the published state dict numbers all (0 skip, 1 3x3x3, 2 3x3x1, 3 3x1x3, 4 1x3x3).
    """

    def __init__(self, number: int, operation: nn.Module) -> None:
        super().__init__()
        self.ops = nn.ModuleDict({str(number): operation})

    def forward(self, x: torch.Tensor, weight: None = None) -> torch.Tensor:
        (operation,) = self.ops.values()
        out: torch.Tensor = operation(x)
        return out


class DiNTSBackbone(Backbone):
    """MONAI's stem and searched space under their own names; its final layers are left out."""

    multiple = 32
    minimum_voxels = 32  # 16 would leave one voxel at the deepest level

    def __init__(
        self,
        node_active: Sequence[Sequence[int]],
        path_active: Sequence[Sequence[float]],
        cell_operation: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        blocks, depths = len(path_active), len(node_active[0])
        with contextlib.redirect_stdout(io.StringIO()):  # MONAI prints advice here
            space = TopologyInstance(
                channel_mul=1.0,
                num_blocks=blocks,
                num_depths=depths,
                use_downsample=True,
                arch_code=[np.array(path_active), np.array(cell_operation)],
            )
        for block, path in np.argwhere(np.array(path_active) == 1):
            cell = space.cell_tree[str((int(block), int(path)))]
            cell.op = ChosenOperation(cell_operation[block][path], *cell.op.ops)
        net = DiNTS(dints_space=space, in_channels=1, num_classes=1, use_downsample=True, node_a=np.array(node_active))
        self.bottleneck_channels, self.feature_channels = net.filter_nums[depths], net.filter_nums[0]
        self.dints_space, self.stem_down, self.stem_up = net.dints_space, net.stem_down, net.stem_up
        self._paths = path_active
        self._first_active = [bool(active) for active in node_active[0]]
        self._last_active = [bool(active) for active in node_active[-1]]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        inputs = []
        for depth, active in enumerate(self._first_active):
            x = self.stem_down[str(depth)](image)
            inputs.append(x if active else torch.zeros_like(x))
        outputs = self._searched(inputs)
        # From the deepest level that the searched network ends with, up.
        deepest = max(depth for depth, active in enumerate(self._last_active) if active)
        x = self.stem_up[str(deepest)](outputs[deepest])
        for depth in range(deepest - 1, -1, -1):
            x = self.stem_up[str(depth)](outputs[depth] + x)
        return outputs[-1], x

    def _searched(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """What MONAI's space computes. There the paths are asked of a tensor, which no exporter can follow."""
        space = self.dints_space
        for block, paths in enumerate(self._paths):
            sums = [maps[0].new_zeros(())] * len(maps)
            for path, active in enumerate(paths):
                if active:
                    found = space.cell_tree[str((block, path))](maps[space.arch_code2in[path]], None)
                    sums[space.arch_code2out[path]] = sums[space.arch_code2out[path]] + found
            maps = sums
        return maps


def build(
    node_active: Sequence[Sequence[int]],
    path_active: Sequence[Sequence[float]],
    cell_operation: Sequence[Sequence[int]],
) -> Backbone:
    """The searched architecture, as in `knowledge/models/dints.toml`.

    node_active     [blocks + 1][depths]: which nodes exist, the inputs first
    path_active     [blocks][paths]: which edges between neighbouring depths exist
    cell_operation  [blocks][paths]: which operation each edge has
    """
    return DiNTSBackbone(node_active, path_active, cell_operation)
