"""One contract for every vision backbone, kept by each packaged one at its published size.

Shapes and the way of gradients are traced on torch's "meta" device, which computes no numbers and so takes any size;
numbers are computed once per backbone, on the smallest image it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from viscera.errors import CheckpointError, SettingError
from viscera.infer.exported import exported_program
from viscera.infer.runtime import has_openvino, vision_encoder
from viscera.model.backbones.base import backbone_names, make_backbone
from viscera.model.build import untrained
from viscera.model.checkpoint import load_checkpoint, save_checkpoint
from viscera.model.config import model_names, packaged_config
from viscera.model.precision import has_fast_bf16
from viscera.model.universal import UniversalModel

MODELS = {packaged_config(name).backbone: name for name in model_names()}
# Published weights that the published architecture never uses: the input of DiNTS's deepest level, which the search
# switched off (the last 0 in the first row of `node_active`).
IDLE = {"dints": ("backbone.stem_down.3.",)}
# Without processor support bf16 is computed a hundred times slower: a few are small enough all the same, most take
# minutes, and one takes longer than anybody waits.
BF16_IS_QUICK = ("lite", "segresnet")
BF16_NEEDS_SUPPORT = ("swin_unetr",)
HAS_BF16 = has_fast_bf16(torch.device("cpu"))


@dataclass(frozen=True)
class Case:
    """A backbone's untrained model and what it makes of two random images, one alone and both in one batch."""

    backbone: str
    model: UniversalModel
    images: torch.Tensor
    alone: tuple[torch.Tensor, torch.Tensor]
    together: tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", params=backbone_names())
def case(request):
    model = untrained(MODELS[request.param])
    side = model.backbone.minimum_voxels
    images = torch.rand(2, 1, side, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return Case(request.param, model, images, model.encode(images[:1]), model.encode(images))


@pytest.fixture(scope="module", params=backbone_names())
def traced(request):
    """The same model without numbers."""
    return request.param, untrained(MODELS[request.param]).to("meta")


def test_every_backbone_has_a_packaged_model():
    assert sorted(MODELS) == backbone_names()


def test_the_maps_of_a_box_have_the_promised_channels_and_sides(traced):
    backbone = traced[1].backbone
    box = [backbone.minimum_voxels + i * backbone.multiple for i in range(3)]
    bottleneck, decoder_map = backbone(torch.empty(2, 1, *box, device="meta"))
    assert bottleneck.shape[:2] == (2, backbone.bottleneck_channels)
    assert decoder_map.shape[:2] == (2, backbone.feature_channels)
    assert backbone.bottleneck_channels % 16 == backbone.feature_channels % 16 == 0
    # Both are the box on a grid coarser by one whole factor: no axis swapped, none cut.
    for found in (bottleneck, decoder_map):
        factor = box[0] // found.shape[2]
        assert factor >= 1 and [factor * side for side in found.shape[2:]] == box
    features, embedding = traced[1].encode(torch.empty(2, 1, *box, device="meta"))
    assert features.shape == (2, 8, *box)
    assert embedding.shape == (2, 256)


def test_every_weight_has_a_way_to_the_result(traced):
    name, model = traced
    model.train()
    side = model.backbone.minimum_voxels + model.backbone.multiple
    sum(out.sum() for out in model.encode(torch.empty(2, 1, side, side, side, device="meta"))).backward()
    vision = [
        (key, weight.grad is not None)
        for key, weight in model.named_parameters()
        if key.startswith(("backbone.", "GAP.", "precls_conv."))
    ]
    assert len(vision) > 10
    assert [key for key, reached in vision if not reached and not key.startswith(IDLE.get(name, ()))] == []
    assert not any(reached for key, reached in vision if name in IDLE and key.startswith(IDLE[name]))


def test_an_image_that_does_not_fit_is_refused_with_the_size_to_pad_to(case):
    backbone = case.model.backbone
    least, multiple = backbone.minimum_voxels, backbone.multiple
    with pytest.raises(SettingError) as error:
        case.model(torch.zeros(1, 1, least, least + 1, least + multiple))
    assert f"{least} x {least + 1} x {least + multiple} voxels" in str(error.value)
    assert f"a multiple of {multiple} and at least {least}" in str(error.value)
    assert f"Pad it to {least} x {least + multiple} x {least + multiple}." in str(error.value)


def test_an_image_that_is_too_small_is_refused(case):
    backbone = case.model.backbone
    least = backbone.minimum_voxels
    with pytest.raises(SettingError, match=f"Pad it to {least} x {least} x {least}\\."):
        case.model(torch.zeros(1, 1, least, least, least - backbone.multiple or 1))


def test_a_sample_does_not_depend_on_its_batch_mates(case):
    assert not torch.equal(case.images[0], case.images[1])
    for alone, together in zip(case.alone, case.together, strict=True):
        assert (together[:1] - alone).abs().max() <= 1e-3 * alone.std()
        assert (together[1:] - alone).abs().max() > 1e-2 * alone.std()  # the other one is another result


def test_the_fused_backbone_gives_the_same_maps(case):
    backbone = case.model.backbone
    with torch.inference_mode():
        expected, found = backbone(case.images[:1]), backbone.fused().eval()(case.images[:1])
    for plain, fused in zip(expected, found, strict=True):
        assert (fused - plain).abs().max() <= 1e-3 * plain.std()


def test_the_quick_backbone_for_bfloat16_gives_the_same_maps_up_to_rounding(case):
    if case.backbone not in BF16_IS_QUICK and not HAS_BF16:
        pytest.skip(f"{case.backbone} takes minutes in bf16 on a processor without support for it")
    image = case.images[:1].contiguous(memory_format=torch.channels_last_3d)
    quick, backbone = case.model.backbone.fused(bf16=True).eval(), case.model.backbone
    with torch.inference_mode():
        expected = backbone(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, usual = quick(image), backbone(image)
    for exact, fast, slow in zip(expected, found, usual, strict=True):
        rounding = (slow - exact).square().mean().sqrt()
        assert (fast - exact).square().mean().sqrt() <= 2 * rounding + 1e-6
        assert rounding < 0.2 * exact.std()


def test_the_logits_of_some_classes_are_those_rows_of_all(case):
    features, embedding = case.alone
    with torch.inference_mode():
        every = case.model.decode(features, embedding)
        some = case.model.decode(features, embedding, [5, 0, 31])
    assert every.shape == (1, len(case.model.config.classes), *case.images.shape[2:])
    assert every.dtype == torch.float32 and every.isfinite().all()
    torch.testing.assert_close(some, every[:, [5, 0, 31]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(every[:, 5], every[:, 0])


def test_saved_and_loaded_it_is_the_same_to_the_bit(case, tmp_path):
    again = load_checkpoint(save_checkpoint(case.model, tmp_path / "model.safetensors"))
    expected, found = case.model.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert [key for key in found if found[key].dtype != expected[key].dtype] == []
    assert again.config == case.model.config
    assert not again.training


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_random_numbers_alone(case):
    before = torch.get_rng_state()
    again = untrained(MODELS[case.backbone]).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert [key for key, value in case.model.state_dict().items() if not torch.equal(value, again[key])] == []


def test_every_backbone_can_be_exported(case):
    program = exported_program(case.model, case.images.shape[2:]).module()
    with torch.inference_mode():
        found = program(case.images[:1])
    for exported, plain in zip(found, case.alone, strict=True):
        assert (exported - plain).abs().max() <= 1e-3 * plain.std()


@pytest.mark.slow  # a minute and a half; OpenVINO joins layers in its own way on every kind of processor
@pytest.mark.skipif(not has_openvino(), reason="needs the package openvino")
def test_openvino_gives_the_same_for_every_backbone(case, tmp_path, monkeypatch):
    monkeypatch.setenv("VISCERA_CACHE", str(tmp_path))
    shape = case.images.shape[2:]
    encode = vision_encoder(case.model, shape, runtime="openvino", precision="fp32", device=torch.device("cpu"))
    for found, plain in zip(encode(case.images[:1]), case.alone, strict=True):
        assert (found - plain).abs().max() <= 1e-2 * plain.std()  # it trades digits for speed on some processors


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in BF16_IS_QUICK else pytest.mark.slow) for n in backbone_names()]
)
def test_bf16_stays_close_to_float32(name):
    if name in BF16_NEEDS_SUPPORT and not HAS_BF16:
        pytest.skip(f"{name} takes more than ten minutes in bf16 on a processor without support for it")
    model = untrained(MODELS[name])
    side = model.backbone.minimum_voxels
    image = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = model.encode(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.encode(image)
            logits = model.decode(*rough)
    assert rough[0].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    # bf16 has 8 bits, and random weights pass its rounding on undamped: 2 % for a U-Net, 15 % for the far deeper DiNTS.
    for coarse, fine in zip(rough, exact, strict=True):
        assert (coarse.float() - fine).square().mean().sqrt() <= 0.2 * fine.std()


@pytest.mark.skipif(not HAS_BF16, reason="a processor without support for bf16 computes it in other ways, for minutes")
@pytest.mark.parametrize("name", BF16_IS_QUICK)
def test_bf16_does_not_depend_on_what_memory_held_before(name):
    """On thin slabs, a convolution once read past the end of its rows: now and then a number that is none."""
    model = untrained(MODELS[name])
    least, wide = model.backbone.minimum_voxels, model.backbone.minimum_voxels + 3 * model.backbone.multiple
    image = torch.rand(1, 1, wide, wide, least, generator=torch.Generator().manual_seed(1))
    encode = vision_encoder(model, (wide, wide, least), runtime="torch", precision="bf16", device=torch.device("cpu"))
    results = []
    with torch.inference_mode():
        for _ in range(4):
            junk = [torch.full((1 << power,), float("nan"), dtype=torch.bfloat16) for power in range(8, 23)]
            del junk
            results.append([part.clone() for part in encode(image)])
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert first.isfinite().all()
            torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_another_seed_gives_another_model():
    first, second = untrained("lite", seed=0).state_dict(), untrained("lite", seed=1).state_dict()
    assert not torch.equal(first["organ_embedding"], second["organ_embedding"])
    assert not torch.equal(first["controller.weight"], second["controller.weight"])


def test_an_unknown_backbone_is_refused_with_the_names_there_are():
    with pytest.raises(CheckpointError, match=r"no backbone 'resnet'; there are dints, lite,"):
        make_backbone("resnet", {})


def test_settings_of_another_backbone_are_refused():
    with pytest.raises(CheckpointError, match=r"backbone 'lite' do not fit: .*'filters'"):
        make_backbone("lite", {"filters": 32})
