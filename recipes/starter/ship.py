"""Makes the packaged weights of a trained run: only the classes it learned, float16, the name people type.

python recipes/starter/ship.py runs/starter/final/last.safetensors --without rectum prostate
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from viscera.model.build import build
from viscera.model.checkpoint import load_checkpoint, save_checkpoint
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank
from viscera.text.encoders import load
from viscera.text.prompts import prompt
from viscera.train.recipe import load_recipe

PLACE = Path(__file__).parents[2] / "src/viscera/weights/starter.safetensors"
SHARE = 0.4  # of the weights that a run began with, in the average
SOURCE = "Trained for viscera from public scans; recipe, data and measurements: docs/models/starter.md"


def averaged(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Between a run's weights and those it began with: on scans unlike those of the run, better than either (Wortsman
    et al., CVPR 2022, arXiv 2109.01903). Text vectors, whose number may differ, are not averaged."""
    return {
        key: torch.lerp(value.float(), old[key].float(), share)
        if value.is_floating_point() and value.shape == old[key].shape
        else value
        for key, value in new.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="classes that were not learned")
    parser.add_argument("--average", type=Path, help="the weights that the run began with, to be averaged in")
    parser.add_argument("--share", type=float, default=SHARE, help="of these, from 0 to 1")
    parser.add_argument("-o", "--output", type=Path, default=PLACE)
    given = parser.parse_args()
    model = load_checkpoint(given.weights)
    numbers = model.state_dict()
    if given.average:
        numbers = averaged(numbers, load_checkpoint(given.average).state_dict(), given.share)
    kept = tuple(key for key in model.config.classes if key not in given.without)
    old = Bank.from_checkpoint_metadata(model.config.text_bank, model.organ_embedding.numpy())
    structures = [taxonomy()[key] for key in kept]
    bank = old.changed(structures, load(model.config.training["recipe"]["text"]["encoder"]), prompt(old.prompt))
    vectors = torch.from_numpy(bank.vectors.copy())
    config = replace(
        model.config,
        name="starter",
        classes=kept,
        thresholds={key: value for key, value in model.config.thresholds.items() if key in kept},
        text_bank=bank.provenance(),
        source=SOURCE,
        licence=load_recipe("starter").licence,
    )
    small = build(config, vectors)
    small.load_state_dict({**numbers, "organ_embedding": vectors})
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(small, given.output, half=True)
    print(f"{given.output}: {len(kept)} classes, {given.output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
