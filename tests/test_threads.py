"""Every task once, in threads that compute alone; errors come out and nobody goes on after one."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from viscera.threads import in_threads

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_every_task_is_done_once(threads, tasks):
    done = []
    in_threads(done.append, range(tasks), CPU)
    assert sorted(done) == list(range(tasks))


def test_each_computes_alone_and_records_no_gradients(threads):
    seen = set()

    def work(_):
        time.sleep(0.002)
        seen.add((threading.current_thread(), torch.get_num_threads(), torch.is_grad_enabled()))

    in_threads(work, range(30), CPU)
    if threads > 1:
        assert len(seen) > 1 and {(n, grad) for _, n, grad in seen} == {(1, False)}
    else:
        assert {thread for thread, *_ in seen} == {threading.current_thread()}


@pytest.mark.parametrize("bad", [0, 1, 3])  # in the thread whose result is asked for first, and in another one
def test_an_error_is_raised_and_ends_the_work(threads, bad):
    done = []

    def work(task):
        if task == bad:
            raise ValueError(f"task {bad}")
        time.sleep(0.002)
        done.append(task)

    with pytest.raises(ValueError, match=f"task {bad}"):
        in_threads(work, range(1000), CPU)
    assert len(done) < 500
