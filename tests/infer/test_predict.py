"""Work, counted: what is air costs nothing, and a fixed scan costs what it cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from viscera.infer.predict import InferenceSettings, predict
from viscera.infer.prepare import prepare
from viscera.model.build import build
from viscera.model.config import Preprocessing, packaged_config

PLAIN = InferenceSettings(precision="fp32", device="cpu", runtime="torch")
AS_IT_IS = Preprocessing(spacing_mm=(3.0, 3.0, 3.0), window_hu=(-1000.0, 1000.0))


def trunk_and_neck():
    """HU on a grid of 3 mm: a wide trunk with lungs, and above it a neck at one side of the box, with air beside."""
    hu = np.full((96, 64, 96), -1000, np.int16)
    hu[4:92, 4:60, :48] = 30
    hu[10:86, 10:54, 8:40] = -850
    hu[4:28, 20:44, 48:] = 30
    return hu


class Counted(TorchDispatchMode):
    """Convolutions called and bytes of the largest array made, while it is entered."""

    def __init__(self):
        super().__init__()
        self.convolutions = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.convolutions += str(func).startswith("aten.conv")
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


@pytest.fixture(scope="module")
def small():
    """A light network that goes over windows of 32 voxels."""
    config = packaged_config("lite")
    inference = replace(config.inference, mode="window", patch_voxels=(32, 32, 32), overlap=0.0)
    config = replace(config, inference=inference, backbone_settings={"channels": [16, 16, 32, 32]})
    torch.manual_seed(0)
    return build(config, torch.randn(len(config.classes), config.text_dim)).eval()


@pytest.fixture(scope="module")
def scan():
    return prepare(
        trunk_and_neck(), (3.0, 3.0, 3.0), Preprocessing(spacing_mm=(3.0, 3.0, 3.0), window_hu=(-1000, 1000))
    )


def windows(model, prepared):
    calls = []
    predict(model, prepared, ["liver"], PLAIN, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)
    return len(calls)


def test_windows_of_air_are_not_run(small, scan):
    everywhere = prepare(trunk_and_neck(), (3.0, 3.0, 3.0), AS_IT_IS, crop_to_body=False)
    assert everywhere.image.shape == scan.image.shape == (96, 64, 96)
    assert windows(small, everywhere) == 3 * 2 * 3
    # Two rows through the trunk: 3 x 2 windows in the lower, and the upper holds the shoulders' margin.
    assert windows(small, scan) == 3 * 2 + 3 * 2 + 1 * 2


def test_a_class_is_nothing_where_no_window_was_run(small, scan):
    masks = predict(small, scan, ["liver"], PLAIN, keep_from={"liver": 0.0})
    level = masks["liver"].embedded_in(masks["liver"].box).level
    assert masks["liver"].box.stop[2] == 96
    assert level[60:, :, 70:].max(initial=0) == 0


def test_the_work_for_a_fixed_scan_does_not_grow(small, scan):
    """Counts, not seconds: a regression shows here without a clock. Change a number only when you know why."""
    classes = list(small.config.classes)
    with Counted() as counted:
        predict(small, scan, classes, PLAIN)
    assert counted.convolutions == 14 * 19, "fourteen windows, nineteen convolutions (transposed ones too) in each"
    assert counted.largest == len(classes) * 96 * 64 * 24 * 4, (
        "the logits of all classes in the slices finished at once"
    )
