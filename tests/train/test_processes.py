"""Two processes, started as a user starts them, and one: the same step shared out, the same weights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.train.conftest import TINY, as_toml

from viscera.model.checkpoint import load_checkpoint
from viscera.train.loop import LAST

SMALL_SEGRESNET = {
    **TINY,
    "model": "segresnet",
    "model_settings": {
        **TINY["model_settings"],
        "backbone_settings": {"filters": 16, "blocks_down": [1, 1], "blocks_up": [1]},
    },
}


def weights(values, folder, sets, cache, launcher=(), **loop):
    """What the command train leaves: the averaged weights, without the running statistics of batch norm."""
    recipe = folder.with_suffix(".toml")
    recipe.write_text(as_toml(values, steps=20, **loop))
    command = [sys.executable, "-m", *launcher, "viscera", "train", str(recipe), "--cache", str(cache)]
    command += ["--output", str(folder), "--device", "cpu"]
    command += [part for key in sets for part in ("--data", f"{key}={sets[key]}")]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    state = load_checkpoint(folder / LAST).state_dict()
    return {key: value for key, value in state.items() if not key.endswith(STATISTICS)}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.mark.timeout(900)  # three processes start, and the machine may be busy
@pytest.mark.parametrize(
    "values", [SMALL_SEGRESNET, pytest.param(TINY, marks=pytest.mark.slow)], ids=["group", "batch"]
)
def test_two_processes_learn_what_one_learns(values, sets, cache, tmp_path):
    """20 steps of 2 patches. One process takes them one by one, for two reasons: a sum over a batch is rounded in
    another order, which AdamW blows up where gradients are all but zero; and batch norm looks at what is computed
    together, which in two processes is each patch by itself."""
    one = weights(values, tmp_path / "one", sets, cache, micro_batch=1)
    two = weights(values, tmp_path / "two", sets, cache, TORCHRUN)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5, msg=key)
