"""Freed memory stays with the process while it is asked to, and not longer."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest
import torch

from viscera.heap import apart, give_back, memory_kept

PROGRAM = """
import numpy as np, resource
from viscera.heap import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(50_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

usual, before = faults(), resident()
with memory_kept():
    kept = faults()
    held = resident() - before
print(usual, kept, held, resident() - before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_is_used_again_within_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    usual, kept, held, after, again = map(int, done.stdout.split())
    assert kept < 0.5 * usual  # the first array has to be fetched
    assert held > 40_000_000 and after < 10_000_000
    assert again > 0.5 * usual


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr("viscera.heap._library", lambda: None)
    with memory_kept():
        give_back()


APART = """
import gc, torch
from viscera.heap import apart, memory_kept

def resident():
    import resource
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.ones(10).sum()
with memory_kept():
    before = resident()
    kept = [apart(torch.ones(2_000_000, dtype=torch.uint8)) for _ in range(30)]
    held = resident() - before
    del kept[::2]  # holes that are given back though memory is kept
    gc.collect()
    print(held, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_apart_goes_back_at_once():
    done = subprocess.run([sys.executable, "-c", APART], check=True, capture_output=True, text=True)
    held, after = map(int, done.stdout.split())
    assert held > 55_000_000 and after < held - 25_000_000


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("side", [2, 96])
def test_a_copy_apart_is_a_copy(dtype, side):
    tensor = torch.arange(side**3).reshape(side, side, side).to(dtype).permute(2, 0, 1)[1:]
    copy = apart(tensor)
    assert copy.is_contiguous() and torch.equal(copy, tensor)
    copy.zero_()
    assert tensor.any()


@pytest.mark.parametrize("values", [1, 256, 2_000_000])
def test_what_lies_apart_has_pages_of_its_own_however_small(values):
    kept = apart(torch.arange(2 * values)[values:])
    assert kept.tolist()[:1] == [values] and kept.data_ptr() % mmap.PAGESIZE == 0
