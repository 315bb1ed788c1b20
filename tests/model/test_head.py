"""The text-driven head against its plain form (a feature map per class, grouped convolutions), and the text part."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

from viscera.model import head
from viscera.model.build import untrained
from viscera.model.head import ClassHeads, apply_heads


def plain(features, parameters):
    """The head as the paper draws it: the features once per class, three grouped 1 x 1 x 1 convolutions."""
    k = len(parameters)
    w1, w2, w3, b1, b2, b3 = torch.split(parameters, [64, 64, 8, 8, 8, 1], dim=1)
    x = features.repeat(k, 1, 1, 1)[None]
    x = functional.conv3d(x, w1.reshape(8 * k, 8, 1, 1, 1), b1.reshape(-1), groups=k).relu()
    x = functional.conv3d(x, w2.reshape(8 * k, 8, 1, 1, 1), b2.reshape(-1), groups=k).relu()
    return functional.conv3d(x, w3.reshape(k, 8, 1, 1, 1), b3.reshape(-1), groups=k)[0]


def random_case(classes, shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(8, *shape, generator=generator, dtype=dtype)
    return features, 0.5 * torch.randn(classes, 153, generator=generator, dtype=dtype)


def test_one_voxel_by_hand():
    """First layer the identity, second twice the identity, third the sum; biases 1, -3 and 0.25.

    Features 0 .. 7: after the first layer 1 .. 8; after the second 2 x - 3, nothing below 0: 0, 1, 3, ..., 13; their
    sum is 49.
    """
    identity = torch.eye(8).flatten()
    biases = torch.cat([torch.full((8,), 1.0), torch.full((8,), -3.0), torch.tensor([0.25])])
    parameters = torch.cat([identity, 2 * identity, torch.ones(8), biases])[None]
    assert apply_heads(torch.arange(8.0).reshape(8, 1, 1, 1), parameters).tolist() == [[[[49.25]]]]


def test_the_weights_lie_in_rows_of_outputs():
    """A first layer that gives output 3 input 5 alone, and hands it on to output 1."""
    parameters = torch.zeros(1, 153)
    parameters[0, 8 * 3 + 5] = 1
    parameters[0, 64 + 8 * 1 + 3] = 10
    parameters[0, 128 + 1] = 100
    features = torch.arange(1.0, 9).reshape(8, 1, 1, 1)
    assert apply_heads(features, parameters).item() == 6 * 10 * 100


@pytest.mark.parametrize("classes", [1, 2, 32, 70])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 7), (16, 16, 8), (17, 16, 8)], ids=["one voxel", "less", "chunks", "more"]
)
def test_values_and_gradients_are_those_of_the_plain_form(classes, shape):
    ours, theirs = random_case(classes, shape), random_case(classes, shape)
    for tensor in (*ours, *theirs):
        tensor.requires_grad_()
    found, expected = apply_heads(*ours), plain(*theirs)
    assert found.shape == (classes, *shape)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)
    assert all(tensor.grad.any() for tensor in theirs)
    with torch.inference_mode():
        torch.testing.assert_close(apply_heads(*ours), found)


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("voxels", [1, 7, 104, 105, 106])
def test_the_size_of_chunks_and_groups_changes_nothing(voxels, classes, monkeypatch):
    features, parameters = random_case(3, (3, 5, 7))
    whole = apply_heads(features, parameters)
    monkeypatch.setattr(head, "_CLASSES", classes)
    monkeypatch.setattr(head, "_MOST_VOXELS", voxels)
    features.requires_grad_()
    torch.testing.assert_close(apply_heads(features, parameters), whole)
    (ours,) = torch.autograd.grad(apply_heads(features, parameters).square().sum(), features)
    (theirs,) = torch.autograd.grad(plain(features, parameters).square().sum(), features)
    torch.testing.assert_close(ours, theirs)


@pytest.fixture
def three_threads():
    """However many processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_each_chunk_is_computed_in_one_of_several_threads_and_the_bits_are_those_of_one(
    mode, three_threads, monkeypatch
):
    features, parameters = random_case(3, (20, 10, 10), torch.float32)
    monkeypatch.setattr(head, "_MOST_VOXELS", 100)
    seen, real = [], head.QuickHeads.__call__

    def watched(heads, part):
        seen.append((threading.current_thread(), torch.get_num_threads(), part.shape[1]))
        return real(heads, part)

    monkeypatch.setattr(head.QuickHeads, "__call__", watched)
    with mode():
        several = apply_heads(features, parameters)
        assert [used for _, used, _ in seen] == [1] * 20 and sum(voxels for *_, voxels in seen) == 2000
        assert threading.main_thread() not in {thread for thread, *_ in seen}
        torch.set_num_threads(1)
        assert torch.equal(apply_heads(features, parameters), several)
    assert seen[-1][0] is threading.main_thread()


@pytest.mark.parametrize("classes", [1, 8, 11])
def test_compiled_heads_give_the_same_for_any_part_of_the_features(classes):
    pytest.importorskip("numba")
    features, parameters = random_case(classes, (9, 7, 5), torch.float32)
    for part in (features, features[:, 2:5, :, 1:4], features.bfloat16()[..., :3]):
        heads = ClassHeads(parameters, compiled=True)
        assert heads._compiled is not None
        found = heads(part)
        torch.testing.assert_close(found, ClassHeads(parameters)(part), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, apply_heads(part, parameters), rtol=1e-5, atol=1e-5)
    features[3, 4, 5, 2] = math.nan
    assert torch.equal(ClassHeads(parameters, compiled=True)(features)[0].isnan(), features[3].isnan())
    with pytest.raises(ValueError, match="no logits"):
        ClassHeads(parameters, compiled=True)(features[:7])


def test_without_numba_the_heads_are_torchs(monkeypatch):
    head._compiled_heads.cache_clear()
    monkeypatch.setitem(sys.modules, "viscera.model.compiled_head", None)
    features, parameters = random_case(3, (4, 5, 6), torch.float32)
    heads = ClassHeads(parameters, compiled=True)
    head._compiled_heads.cache_clear()
    assert heads._compiled is None
    torch.testing.assert_close(heads(features), apply_heads(features, parameters))


def test_the_number_of_threads_is_as_before_and_an_error_in_one_is_raised(three_threads):
    features, parameters = random_case(1, (16, 16, 16))
    apply_heads(features, parameters)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        apply_heads(features[:7], parameters)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:  # what a thread made later begins with
        assert pool.submit(torch.get_num_threads).result() == 3


@pytest.mark.parametrize("wanted", [0, 1], ids=["features alone", "parameters alone"])
def test_one_of_the_two_may_stand_still(wanted):
    """A frozen vision branch, or a frozen text branch."""
    ours, theirs = random_case(2, (2, 3, 4)), random_case(2, (2, 3, 4))
    ours[wanted].requires_grad_()
    theirs[wanted].requires_grad_()
    apply_heads(*ours).square().sum().backward()
    plain(*theirs).square().sum().backward()
    torch.testing.assert_close(ours[wanted].grad, theirs[wanted].grad)
    assert ours[1 - wanted].grad is None


def test_float32_stays_close_to_float64():
    features, parameters = random_case(32, (17, 16, 16))
    rough = apply_heads(features.float(), parameters.float())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), plain(features, parameters), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_training_under_bf16_keeps_the_head_in_float32(where):
    """The backward pass may be called within the autocast block too."""
    model = untrained("lite").train()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, 3, 4, 5, generator=generator)
    embedding = torch.randn(1, 256, generator=generator)
    model.decode(features, embedding).square().mean().backward()
    exact = model.controller.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.decode(features, embedding)
        loss = logits.square().mean()
        if where == "inside":
            loss.backward()
    if where == "outside":
        loss.backward()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(model.controller.weight.grad, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


# The model's part: what the controller makes of image and text.


@pytest.fixture
def model():
    return untrained("lite")


def logits_in_full(model, features, embedding):
    """Every class's image and text embedding joined, image first, through the controller, as the paper's figure has it.

    The text's way is walked anew from the weights as they are.
    """
    with torch.no_grad():
        label = (model.organ_embedding @ model.text_to_vision.weight.T + model.text_to_vision.bias).clamp(min=0)
        joined = torch.cat([embedding.expand(len(label), -1), label], 1)
        parameters = joined @ model.controller.weight.flatten(1).T + model.controller.bias
        return plain(features[0], parameters)[None]


def some_maps():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 8, 2, 3, 4, generator=generator), torch.randn(1, 256, generator=generator)


def in_place(model):
    with torch.no_grad():
        model.text_to_vision.weight.mul_(2)


def through_data(model):
    model.controller.weight.data.mul_(2)


def other_bias(model):
    model.controller.bias.data.add_(1)


def other_vectors(model):
    """New text vectors, which may come to lie where the old ones lay."""
    shape = model.organ_embedding.shape
    del model.organ_embedding
    model.register_buffer("organ_embedding", torch.randn(shape, generator=torch.Generator().manual_seed(4)))


def loaded_state(model):
    model.load_state_dict(untrained("lite", seed=5).state_dict())


def rounded(model):
    model.half().float()


def fused_step(model):
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    model.decode(*some_maps()).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "change", [in_place, through_data, other_bias, other_vectors, loaded_state, rounded, fused_step]
)
def test_a_changed_weight_of_the_text_branch_is_seen_at_once(change, training, model):
    model.train(training)
    maps = some_maps()
    with torch.inference_mode():
        before = model.decode(*maps)
    torch.testing.assert_close(before, logits_in_full(model, *maps), rtol=1e-4, atol=1e-4)
    change(model)
    expected = logits_in_full(model, *maps)
    assert not torch.equal(before, expected)
    with torch.inference_mode():
        torch.testing.assert_close(model.decode(*maps), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(*maps).detach(), expected, rtol=1e-4, atol=1e-4)


def test_rounding_is_a_change_too(model):
    before = model.text_part().detach()
    rounded(model)
    assert not torch.equal(model.text_part(), before)


def test_the_text_branch_learns(model):
    model.train().decode(*some_maps()).square().mean().backward()
    for part in (model.text_to_vision, model.controller):
        assert all(weight.grad is not None and weight.grad.any() for weight in part.parameters())
    assert model.organ_embedding.grad is None  # the text encoder is frozen


def test_a_model_made_for_inference_alone_works():
    with torch.inference_mode():
        assert untrained("lite")(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 32, 32, 32, 32)


def test_a_model_that_has_answered_can_be_trained(model):
    image = torch.rand(2, 1, 48, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(image)
    model.train()(image).square().mean().backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None] == []


def test_a_new_model_says_not_here():
    """The probability that a new model gives before it looks: its last bias is the logit of 1 %."""
    assert untrained("lite").controller.bias[-1].item() == pytest.approx(math.log(0.01 / 0.99))


def test_each_sample_of_a_batch_has_its_own_head(model):
    features, embedding = some_maps()
    two = torch.cat([features, features]), torch.cat([embedding, -embedding])
    with torch.inference_mode():
        both = model.decode(*two, [3, 1])
        torch.testing.assert_close(both[:1], model.decode(features, embedding, [3, 1]))
        torch.testing.assert_close(both[1:], model.decode(features, -embedding, [3, 1]))
    assert both.shape == (2, 2, 2, 3, 4)
    assert not torch.allclose(both[0], both[1])


def test_a_crop_of_the_features_gives_that_crop_of_the_logits(model):
    features, embedding = some_maps()
    with torch.inference_mode():
        whole = model.decode(features, embedding)
        torch.testing.assert_close(model.decode(features[..., 1:, 2:], embedding), whole[..., 1:, 2:])
