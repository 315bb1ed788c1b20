"""The streaming window against answers known in closed form."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from viscera.errors import SettingError
from viscera.infer.window import gaussian_weight, stream_windows, window_starts
from viscera.shapes import Box


def joined(image, network, window, overlap, classes=1, **more):
    """The whole answer of a `network` [1, C, *window] -> [1, classes, *window]."""

    def waiting(logits, z):
        return logits[..., z].clone()

    def part(logits, chosen):
        return lambda x, z: logits[0, chosen, x, :, z]

    out = torch.full((classes, *image.shape[1:]), torch.nan)
    next_z = [0] * classes
    for slab in stream_windows(image, network, waiting, part, classes, window, overlap, **more):
        k, slices = slab.logits.shape[0], slab.logits.shape[-1]
        for c in range(slab.first_class, slab.first_class + k):
            assert slab.z == next_z[c]
            next_z[c] += slices
        out[slab.first_class : slab.first_class + k, :, :, slab.z : slab.z + slices] = slab.logits
    assert next_z == [image.shape[-1]] * classes
    return out


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (11, 4, 0.5, [0, 2, 4, 6, 7]),
        (4, 4, 0.5, [0]),
        (3, 4, 0.5, [0]),
        (5, 4, 0.0, [0, 1]),
        (8, 4, 0.0, [0, 4]),
        (10, 4, 0.99, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_window_starts_by_hand(length, window, overlap, starts):
    assert window_starts(length, window, overlap) == starts


def test_the_weight_is_symmetric_one_in_the_middle_and_never_zero():
    weight = gaussian_weight((5, 7, 9))
    assert weight[2, 3, 4] == 1
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert weight.min() == pytest.approx(1e-3)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 13)] * 3),
    window=st.tuples(*[st.integers(2, 6)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_a_pointwise_network_gives_the_pointwise_answer(size, window, overlap):
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    out = joined(image, lambda w: torch.cat([w + 1, 2 * w[:, :1]], 1), window, overlap, classes=3)
    assert torch.allclose(out, torch.cat([image + 1, 2 * image[:1]]), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16, 16), (20, 17, 41), (9, 30, 23), (16, 12, 50)])
def test_equals_monai_for_a_network_that_sees_its_window(size):
    """A network whose answer depends on the place in the window: only the right weights give MONAI's average."""
    place = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(1))
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(2))

    def network(window):
        return window * place + window.mean()

    ours = joined(image, network, (16, 16, 16), 0.5)
    theirs = sliding_window_inference(image[None], 16, 1, network, overlap=0.5, mode="gaussian")[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_memory_and_progress_follow_the_plan():
    seen = []
    image = torch.zeros(1, 8, 8, 32)
    joined(image, lambda w: w, (8, 8, 8), 0.5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2.0])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(SettingError, match="overlap"):
        next(
            stream_windows(torch.zeros(1, 4, 4, 4), lambda w: w, lambda w, z: w, lambda w, k: w, 1, (4, 4, 4), overlap)
        )


def test_every_grouping_of_classes_gives_the_same():
    image = torch.randn(5, 9, 8, 20, generator=torch.Generator().manual_seed(0))
    expected = joined(image, lambda w: w.cumsum(1), (6, 6, 6), 0.5, classes=5)
    one_by_one = joined(image, lambda w: w.cumsum(1), (6, 6, 6), 0.5, classes=5, buffer_values=1)
    assert torch.equal(one_by_one, expected)


def test_only_what_a_slab_needs_is_kept_and_decoded():
    """Work, counted: each window is encoded once, and decoded for the slices that become final while it is alive."""
    image = torch.zeros(1, 8, 8, 40)
    encoded, decoded, alive = [], [], []

    def encode(window):
        encoded.append(window.shape)
        return window

    def keep(answer, z):
        alive.append(weakref.ref(kept := answer[..., z].clone()))
        return kept

    def decode(answer, classes):
        def part(x, z):
            decoded.append((x.stop - x.start) * (z.stop - z.start))
            return answer[0, classes, x, :, z]

        return part

    def slices(reference):
        kept = reference()
        return 0 if kept is None else kept.shape[-1]

    most = 0
    for _ in stream_windows(image, encode, keep, decode, 1, (8, 8, 8), 0.5):
        most = max(most, sum(map(slices, alive)))
    assert len(encoded) == 9  # starts 0, 4, ..., 32
    assert sum(decoded) == 9 * 8 * 8  # every row of every slice of every window once
    assert most == 8 + 4  # a window, and the half of the one before it that is not final


def test_windows_that_are_not_wanted_are_not_computed():
    image = torch.ones(1, 8, 8, 24)
    boxes = []

    def wanted(box):
        boxes.append(box)
        return box.start[2] < 8

    calls = []
    out = joined(image, lambda w: calls.append(1) or w, (8, 8, 8), 0.0, wanted=wanted)
    assert [box.start[2] for box in boxes] == [0, 8, 16] and len(calls) == 1
    assert torch.equal(out[..., :8], torch.ones(1, 8, 8, 8))
    assert torch.isneginf(out[..., 8:]).all()


def test_a_padded_images_window_is_asked_for_by_its_place_in_the_image():
    boxes = []
    joined(torch.ones(1, 3, 8, 8), lambda w: w, (8, 8, 8), 0.5, wanted=lambda box: boxes.append(box) or True)
    assert boxes == [Box((0, 0, 0), (3, 8, 8))]
