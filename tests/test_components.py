"""Connected components of noise; those of masks drawn by hand are with the rules that use them."""

from __future__ import annotations

import cc3d
import numpy as np

from viscera.components import components, largest_component, without_small
from viscera.shapes import Box


def test_noise_costs_one_labelling_however_many_its_components(monkeypatch):
    """What a network with random weights gives: thousands of specks. Counted are labellings and objects made."""
    noise = np.random.default_rng(0).random((40, 40, 40)) < 0.03
    count = len(components(noise))
    sizes = components(noise).voxels
    calls, made = [], []
    real, checked = cc3d.connected_components, Box.__post_init__
    monkeypatch.setattr(
        "viscera.components.cc3d.connected_components", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    monkeypatch.setattr(Box, "__post_init__", lambda box: made.append(1) or checked(box))
    assert largest_component(noise).sum() == sizes.max()
    assert without_small(noise, 3).sum() == sizes[sizes >= 3].sum()
    assert count > 1000 and len(calls) == 2 and len(made) < 10
