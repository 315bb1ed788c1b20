"""The loop: learns, resumes to the bit, shares a step out without changing it, and refuses what is not a number."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.conftest import TINY, as_toml, recipe

from viscera.data.catalogue import dataset_table
from viscera.data.loader import patch_loader
from viscera.data.phantom import PhantomSettings, write_dataset
from viscera.data.sampling import PatchSampler
from viscera.errors import CheckpointError, SettingError, TrainingError
from viscera.model.checkpoint import load_checkpoint
from viscera.model.precision import has_fast_bf16
from viscera.train.log import RunLog
from viscera.train.loop import BEST, LAST, STATE, Listener, Report, _clip, _lattice, ready_to_train, step_loss
from viscera.train.loss import masked_loss
from viscera.train.start import first_model
from viscera.workflow.training import make_plan, run


def weights(folder):
    return load_checkpoint(folder / LAST).state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="session")
def undisturbed(sets, cache, tmp_path_factory):
    """The weights of the tiny recipe, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    run(make_plan(replace(recipe(), sets=sets), cache), folder, device="cpu")
    return weights(folder)


def test_it_learns(plan, tmp_path):
    """The loss of the same patches falls; both sets teach what they annotate and nothing else."""
    reports: list[Report] = []
    run(
        plan(loop=dict(steps=60, log_every=20), schedule=dict(learning_rate=1e-2)),
        tmp_path,
        Listener(reported=reports.append),
        device="cpu",
    )
    assert [report.step for report in reports] == [20, 40, 60]
    assert reports[-1].loss < 0.8 * reports[0].loss
    taught = {dataset: {name for (of, name) in reports[-1].classes if of == dataset} for dataset in ("amos", "lits")}
    assert taught["lits"] == {"liver", "liver_tumor"}
    assert "liver_tumor" not in taught["amos"] and "spleen" in taught["amos"]
    model = load_checkpoint(tmp_path / LAST)
    assert model.config.trained and model.config.training["steps"] == 60
    assert model.config.training["scans"] == {"amos": 2, "lits": 2}


def test_a_stopped_run_goes_on_to_the_same_weights(plan, tmp_path, undisturbed):
    steps = []

    def stop_at_3() -> bool:
        steps.append(1)
        return len(steps) == 3

    first = run(plan(), tmp_path, Listener(stop=stop_at_3), device="cpu")
    assert (first.step, first.complete) == (3, False)
    begun: list[int] = []
    second = run(plan(), tmp_path, Listener(begun=begun.append), device="cpu")
    assert begun == [3] and second.complete
    assert_same(weights(tmp_path), undisturbed)
    again = run(plan(), tmp_path, device="cpu")
    assert again.step == 6 and again.complete
    assert_same(weights(tmp_path), undisturbed)


def test_workers_do_not_change_the_weights(plan, tmp_path, undisturbed):
    run(plan(loop=dict(workers=2)), tmp_path, device="cpu")
    assert_same(weights(tmp_path), undisturbed)


def test_another_recipe_or_other_scans_are_another_run(plan, tmp_path):
    run(plan(loop=dict(steps=2)), tmp_path, device="cpu")
    with pytest.raises(SettingError, match="another recipe"):
        run(plan(loop=dict(steps=3)), tmp_path, device="cpu")
    with pytest.raises(SettingError, match="other scans"):
        other = plan(loop=dict(steps=2))
        run(replace(other, learned=other.learned[1:]), tmp_path, device="cpu")


def test_a_damaged_state_is_an_error(plan, tmp_path):
    (tmp_path / STATE).write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(CheckpointError, match="damaged"):
        run(plan(), tmp_path, device="cpu")


def test_micro_batches_give_the_gradient_of_the_whole_batch(plan):
    """Group norm does not look at the rest of its batch, so parts add up to the whole. In float64: in float32 a ReLU
    whose input is 0 but for rounding lets a gradient pass or not, which on some processors is 3e-4 of the whole."""
    tiny = plan(
        model="segresnet",
        model_settings={"backbone_settings": {}, "preprocessing": {"spacing_mm": [10.0] * 3}},
        loop=dict(batch_size=4),
    )
    model = first_model(tiny.recipe, tiny.classes).double().train()
    source = tiny.source()
    batch = next(iter(patch_loader(source, batch_size=4, start_step=0, stop_step=1, workers=0)))
    batch = replace(batch, image=batch.image.double())
    gradients = []
    for size in (4, 1):
        model.zero_grad()
        for start in range(0, 4, size):
            step_loss(model, model, batch.part(start, start + size), tiny.recipe, batch.pairs)[1].total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    whole, parts = gradients
    assert float((whole - parts).norm()) < 1e-9 * float(whole.norm())


def test_the_loss_on_every_second_voxel_is_that_of_the_whole_logits_there(plan):
    whole, sparse = plan(), plan(loop=dict(voxel_stride=2))
    model = first_model(whole.recipe, whole.classes).eval()
    batch = next(iter(patch_loader(whole.source(), batch_size=2, start_step=0, stop_step=1, workers=0)))
    corners = set()
    for step in range(8):
        _, loss = step_loss(model, model, batch, sparse.recipe, step=step)
        voxels = _lattice(sparse.recipe.loop, step)
        corners.add(tuple(axis.start for axis in voxels))
        columns = batch.taught
        there = masked_loss(model(batch.image, columns)[:, :, *voxels], *_of(batch.of_classes(columns).at(voxels)))
        assert torch.allclose(loss.total, there.total, rtol=1e-5)
    assert len(corners) > 2, "other voxels in other steps"
    whole_losses = [step_loss(model, model, batch, whole.recipe, step=step)[1].total for step in (0, 3)]
    assert torch.equal(*whole_losses)


def _of(batch):
    return batch.target, batch.annotated


def test_an_unannotated_class_gets_no_gradient_through_the_whole_model(plan):
    """Its text vector, the only thing that is the class's own, is not moved by a scan that does not annotate it."""
    tiny = plan()
    model = first_model(tiny.recipe, tiny.classes).train()
    model.organ_embedding.requires_grad_(True)
    source = tiny.source()
    number = next(n for n in range(50) if source[n].case.startswith("lits"))
    from viscera.data.loader import _as_batch

    batch = _as_batch([source[number]])
    step_loss(model, model, batch, tiny.recipe)[1].total.backward()
    moved = {key for key, row in zip(tiny.classes, model.organ_embedding.grad, strict=True) if row.any()}
    assert moved == {"liver", "liver_tumor"}


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_scans(plan, tmp_path, monkeypatch):
    tiny = plan()
    source = tiny.source()
    clean = type(source).__getitem__

    def poisoned(self, number):
        patch = clean(self, number)
        if number >= 6:
            patch.image[0, 0, 0] = float("nan")
        return patch

    monkeypatch.setattr(type(source), "__getitem__", poisoned)
    with pytest.raises(TrainingError, match=r"Step 3: .*(amos|lits)/.*") as caught:
        run(tiny, tmp_path, device="cpu")
    named = {source.sampler.cases[source.sampler.draw(n).case].id for n in (6, 7)}
    assert all(case in str(caught.value) for case in named)
    assert str(tmp_path / STATE) in str(caught.value), "the state of step 2 is kept"
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 2


def test_validation_segments_whole_scans_and_keeps_the_best(plan, tmp_path):
    seen = []
    tiny = plan(validation=dict(every=3, share=0.5), loop=dict(steps=6))
    assert len(tiny.held) == 2 and len(tiny.learned) == 2
    run(tiny, tmp_path, Listener(validated=lambda step, dice: seen.append((step, dict(dice)))), device="cpu")
    assert [step for step, _ in seen] == [3, 6]
    assert "liver" in seen[0][1] and all(0 <= value <= 1 for _, dice in seen for value in dice.values())
    assert load_checkpoint(tmp_path / BEST).config.trained


def test_a_frozen_backbone_stays_as_it_was(plan, tmp_path):
    run(plan(loop=dict(steps=2)), tmp_path / "base", device="cpu")
    base = tmp_path / "base" / LAST
    tiny = plan(init=str(base), freeze_backbone=True, loop=dict(steps=2))
    run(tiny, tmp_path / "next", device="cpu")
    before, after = load_checkpoint(base).state_dict(), weights(tmp_path / "next")
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert "backbone" not in moved
    assert {"controller", "text_to_vision"} <= moved


def test_a_new_class_on_an_old_model_keeps_every_old_vector(plan, tmp_path):
    old = plan(classes=["liver", "spleen"], loop=dict(steps=2))
    run(old, tmp_path, device="cpu")
    base = load_checkpoint(tmp_path / LAST)
    grown = plan(init=str(tmp_path / LAST), classes=["spleen", "liver", "liver_tumor"])
    model = first_model(grown.recipe, grown.classes)
    assert torch.equal(model.organ_embedding[0], base.organ_embedding[1])
    assert torch.equal(model.organ_embedding[1], base.organ_embedding[0])
    assert torch.equal(model.controller.weight, base.controller.weight)
    assert model.config.text_bank["classes"] == ["spleen", "liver", "liver_tumor"]


def test_classes_nobody_annotates_and_scans_nobody_has(plan):
    with pytest.raises(SettingError, match="right_lung"):
        plan(classes=["liver", "right_lung"])
    with pytest.raises(SettingError, match="no class key"):
        plan(classes=["livr"])
    with pytest.raises(SettingError, match="amos/99"):
        plan(validation=dict(cases=["amos/99"]))
    with pytest.raises(SettingError, match="multiple of 4"):
        plan(sampling=dict(patch_voxels=[18, 16, 16]))


@pytest.mark.parametrize("model", ["lite", "swin_unetr"])
def test_patches_are_checked_before_anything_is_cached(model, tmp_path):
    wanted = recipe(model=model, model_settings={"backbone_settings": {}}, sampling=dict(patch_voxels=[90, 96, 96]))
    write_dataset(dataset_table("lits"), tmp_path, 1, 0, PhantomSettings(spacing_mm=(10.0, 10.0, 10.0)))
    with pytest.raises(SettingError, match="multiple of"):
        make_plan(replace(wanted, sets={"lits": str(tmp_path)}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_log_has_every_step_once_after_a_crash(tmp_path):
    def report(step):
        return Report(step, 9, 1.0, 1e-3, 2.0, 3.0, 0.1, 5.0, {})

    log = RunLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.report(report(step))
    log.close()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("8,0.")  # killed in the middle of a row
    log = RunLog(tmp_path, 4)
    log.report(report(6))
    log.close()
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]


needs_bf16 = pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this processor computes no bfloat16")


@needs_bf16
def test_bf16_gradients_are_sound_for_every_patch_that_is_let_through(plan):
    """torch 2.13 gives weight gradients of any size for maps of two voxels; three are the fewest that are allowed."""
    bf16, least = dict(precision="bf16"), 3 * 4  # the tiny network halves twice
    with pytest.raises(SettingError, match="at least 12 on every side"):
        small = plan(loop=bf16, sampling=dict(patch_voxels=[16, 8, 16]))
        ready_to_train(first_model(small.recipe, small.classes), small.recipe)
    gradients = []
    for precision in ("fp32", "bf16"):
        tiny = plan(loop=dict(precision=precision), sampling=dict(patch_voxels=[least] * 3))
        model = ready_to_train(first_model(tiny.recipe, tiny.classes), tiny.recipe)
        batch = next(iter(patch_loader(tiny.source(), batch_size=2, start_step=0, stop_step=1, workers=0)))
        for _ in range(3):  # garbage differs from call to call
            model.zero_grad()
            step_loss(model, model, batch, tiny.recipe)[1].total.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact = gradients[0]
    for gradient in gradients:
        assert (gradient - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("model", ["lite", "segresnet"])
def test_a_frozen_backbone_can_be_learned_on_by_every_kind_of_network(plan, model):
    """torch 2.13 ends the process in the backward pass of a group norm over channels-last maps without a gradient."""
    settings = {"backbone_settings": {}, "preprocessing": {"spacing_mm": [10.0] * 3}}
    tiny = plan(model=model, model_settings=settings, freeze_backbone=True, sampling=dict(patch_voxels=[32] * 3))
    ready = ready_to_train(first_model(tiny.recipe, tiny.classes), tiny.recipe)
    batch = next(iter(patch_loader(tiny.source(), batch_size=1, start_step=0, stop_step=1, workers=0)))
    step_loss(ready, ready, batch, tiny.recipe)[1].total.backward()
    assert ready.controller.weight.grad.any()
    assert all(p.grad is None for p in ready.backbone.parameters())


def test_the_gradient_is_shortened_whatever_its_layout():
    """3-4-12: length 13, shortened to 1; as PyTorch does it."""
    model = torch.nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
    assert _clip(model, 20.0) == 13.0 and model.bias.grad.item() == 12.0
    assert _clip(model, 1.0) == 13.0
    assert model.weight.grad.tolist()[0] == pytest.approx([3 / 13, 4 / 13])
    model.bias.grad.fill_(float("nan"))
    assert math.isnan(_clip(model, 1.0))


def test_draws_do_not_depend_on_the_process(plan):
    source = plan().source()
    again = PatchSampler(source.sampler.cases, source.sampler.classes, source.sampler.settings, 0)
    assert [again.draw(n) for n in range(9)] == [source.sampler.draw(n) for n in range(9)]


# Every child goes on with the run and kills itself when it touches the run's folder for the n-th time.
TRAIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from viscera.train.recipe import load_recipe
from viscera.workflow.training import make_plan, run

recipe, cache, folder = load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])

def go_on(moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if any(isinstance(a, (str, os.PathLike)) and str(folder) in str(a) for a in arguments):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    run(make_plan(recipe, cache), folder, device="cpu")
    os._exit(0)

kills = 0
for moment in np.random.default_rng(0).integers(5, 25, 100).tolist():
    child = os.fork()
    if not child:
        go_on(moment)
    if os.waitpid(child, 0)[1] == 0:
        break
    kills += 1
print(kills)
"""


@pytest.mark.timeout(900)
def test_kill_9_while_the_run_is_written_changes_no_weight(sets, cache, tmp_path, undisturbed):
    (tmp_path / "tiny.toml").write_text(as_toml({**TINY, "sets": sets}, save_every=1))
    command = [sys.executable, "-c", TRAIN_AND_DIE, str(tmp_path / "tiny.toml"), str(cache), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = int(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)
    assert kills >= 3
    assert_same(weights(tmp_path / "run"), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the command starts 21 times, and the machine may be busy
def test_killed_at_twenty_moments_it_ends_with_the_same_weights(sets, cache, tmp_path, plan):
    """`kill -9` at random moments of the command, again and again, until it is through."""
    changed = plan(loop=dict(steps=200, save_every=1), validation=dict(every=50, share=0.5))
    run(changed, tmp_path / "whole", device="cpu")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(as_toml({**TINY, "validation": {"every": 50, "share": 0.5}}, steps=200, save_every=1))
    command = [sys.executable, "-m", "viscera", "train", str(recipe), "--cache", str(cache), "--device", "cpu"]
    command += ["-o", str(tmp_path / "killed"), *(part for key in sets for part in ("--data", f"{key}={sets[key]}"))]
    rng = np.random.default_rng(0)
    reached = tmp_path / "killed" / STATE
    for _ in range(20):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        before = reached.stat().st_mtime if reached.exists() else 0.0
        while child.poll() is None and (not reached.exists() or reached.stat().st_mtime == before):
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.2)))
        assert child.poll() is None, "it ended before it could be killed"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
