"""Connected components of noise; those of masks drawn by hand are with the rules that use them."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest

from viscera.components import components, count_components, largest_component, without_small
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


@pytest.mark.parametrize("share", [0.02, 0.08, 0.2, 0.9])
@pytest.mark.parametrize("shape", [(9, 8, 23), (1, 6, 11), (5, 1, 1), (4, 4, 3)])
@pytest.mark.parametrize("slab", [1, 3])
def test_counting_slab_by_slab_gives_the_number_of_components(monkeypatch, shape, share, slab):
    monkeypatch.setattr("viscera.components._SLAB", slab)
    mask = np.random.default_rng(0).random(shape) < share
    assert count_components(mask) == len(components(mask))


def test_a_ring_through_two_slabs_is_one_component(monkeypatch):
    monkeypatch.setattr("viscera.components._SLAB", 2)
    ring = np.zeros((5, 3, 4), bool)
    ring[0, 1], ring[4, 1], ring[:, 1, 3] = True, True, True  # two pillars and what joins them on top
    assert count_components(ring) == 1
    ring[2, 1, 3] = False
    assert count_components(ring) == 2
