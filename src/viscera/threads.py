"""Work on the processor in threads of which each computes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Task = TypeVar("Task")


def in_threads(work: Callable[[Task], None], tasks: Sequence[Task], device: torch.device) -> None:
    """Does every task, in as many threads as torch may use; on another device than the processor, one by one.

    What a thread computes it computes alone. Were every operation of many small ones shared between the threads, they
    would wait for each other thousands of times, and long where other programs run too. Raises what a task raises.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or len(tasks) < 2 or threads < 2:
        for task in tasks:
            work(task)
        return

    left = iter(tasks)  # shared: whoever is free takes the next one, which costs less than a future for each

    @contextmanager
    def nothing_left() -> Iterator[None]:
        """After an error or Ctrl-C nobody goes on."""
        try:
            yield
        finally:
            for _ in left:
                pass

    def work_on(_: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode(), nothing_left():  # a new thread records gradients unless told otherwise
            for task in left:
                work(task)

    try:
        # An error in a thread is raised here, but only when those before it have ended: each sees to it by itself.
        with ThreadPoolExecutor(threads) as pool, nothing_left():
            list(pool.map(work_on, range(threads)))
    finally:
        torch.set_num_threads(threads)  # the number is each thread's own, but a thread begins with the one set last
