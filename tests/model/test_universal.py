"""The model around backbone and head: how a new one starts, and where its logits are computed."""

from __future__ import annotations

import pytest
import torch

from viscera.model.build import untrained
from viscera.model.head import WIDTH


@pytest.fixture(scope="module")
def model():
    return untrained("lite")


def test_a_new_models_heads_begin_as_layers_should_and_differ_between_classes(model):
    heads = model.text_part().detach()
    square = WIDTH * WIDTH
    first, second, third = heads[:, :square], heads[:, square : 2 * square], heads[:, 2 * square : 2 * square + WIDTH]
    for weights, variance in ((first, 2 / WIDTH), (second, 2 / WIDTH), (third, 1 / WIDTH)):
        assert float(weights.var()) == pytest.approx(variance, rel=0.35)
    alike = torch.corrcoef(heads[:, : 2 * square])
    assert float((alike - torch.eye(len(heads))).max()) < 0.9
    inner_biases = heads[:, 2 * square + WIDTH : -1]
    assert not inner_biases.any()
    assert torch.allclose(heads[:, -1].sigmoid(), torch.tensor(0.01), atol=1e-6), "not here, as nearly all voxels are"


def test_the_length_of_the_text_vectors_does_not_decide_how_a_model_starts():
    from viscera.model.build import build
    from viscera.model.config import packaged_config

    config = packaged_config("lite")
    vectors = torch.randn(len(config.classes), config.text_dim, generator=torch.Generator().manual_seed(0))
    heads = []
    for length in (1.0, 30.0):
        torch.manual_seed(0)
        heads.append(build(config, vectors * length).text_part().detach())
    assert torch.allclose(*heads, atol=1e-4)


def test_logits_at_some_voxels_are_the_whole_ones_there(model):
    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    voxels = slice(1, None, 2), slice(0, None, 2), slice(5, 20)
    with torch.inference_mode():
        whole, part = model(image, [5, 1]), model(image, [5, 1], voxels)
    assert torch.allclose(whole[:, :, *voxels], part, atol=1e-5)
