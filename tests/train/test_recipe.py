"""Recipes: what is read, what is refused, and what makes two of them the same run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from viscera.data.transforms import PAPER, STRONG
from viscera.errors import InputError, SettingError
from viscera.train.recipe import load_recipe, recipe_from, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_reads(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.licence
    assert not recipe.sets, "a packaged recipe cannot know where data lie"


def test_a_file_is_named_after_itself_and_its_folders_lie_beside_it(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'classes = ["liver"]\n[sets]\nlits = "LiTS"\nbtcv = "/data/BTCV"\n"ours.toml" = "."\n[loop]\nsteps = 7\n'
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.name, recipe.loop.steps, recipe.classes) == ("mine", 7, ("liver",))
    assert recipe.sets == {
        "lits": str(tmp_path / "LiTS"),
        "btcv": "/data/BTCV",
        str(tmp_path / "ours.toml"): str(tmp_path),
    }
    assert recipe.augment == STRONG


def test_augmentation_by_name_and_by_what_differs():
    assert recipe_from({"augment": "paper"}, "a", "here").augment == PAPER
    changed = recipe_from({"augment": {"recipe": "paper", "noise": 0.25, "noise_hu": [1, 2]}}, "a", "here").augment
    assert changed == replace(PAPER, noise=0.25, noise_hu=(1.0, 2.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lop": {}}, "here: there is no setting 'lop'"),
        ({"loop": {"step": 3}}, "here, loop: there is no setting 'step'"),
        ({"loop": {"steps": "many"}}, "steps is 'many'"),
        ({"loop": {"steps": 0}}, "here, loop: .*must be at least 1"),
        ({"loop": {"precision": "fp8"}}, "precision is 'fp8'"),
        ({"schedule": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"augment": "mild"}, "there is no recipe 'mild'"),
        ({"augment": {"noise": 2.0}}, "noise is 2.0"),
        ({"sampling": {"patch_voxels": [4, 4, 4]}}, "at least 8"),
        ({"validation": {"share": 1.0}}, "share 1.0"),
        ({"text": {"finish": {"whiten": 2}}}, "whiten is 2"),
        ({"name": "a/b"}, "'a/b'"),
    ],
)
def test_what_is_wrong_is_named(values, said):
    with pytest.raises(SettingError, match=said):
        recipe_from(values, "a", "here")


def test_no_such_recipe(tmp_path):
    with pytest.raises(InputError, match="phantom"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("steps = ")
    with pytest.raises(SettingError, match="not TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_only_what_decides_the_weights_decides_the_run():
    one = recipe_from({}, "a", "here")
    assert recipe_from(one.as_json(), "a", "here") == one
    same = replace(one, sets={"lits": "/elsewhere"}, loop=replace(one.loop, workers=5, log_every=1, save_every=9))
    assert same.digest() == one.digest()
    for other in (
        replace(one, loop=replace(one.loop, seed=1)),
        replace(one, loop=replace(one.loop, steps=1)),
        replace(one, classes=("liver",)),
        replace(one, augment=PAPER),
        replace(one, model_settings={"preprocessing": {"spacing_mm": [2, 2, 2]}}),
    ):
        assert other.digest() != one.digest()
