"""A command in a process of its own: its seconds, and what the operating system says of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from resource import struct_rusage


def run_timed(command: Sequence[str]) -> tuple[float, struct_rusage]:
    """Seconds from start to end (its imports count too), and its processor time and peak memory (ru_maxrss, KiB).

    Raises SystemExit if it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with exit code {process.returncode}")
    return seconds, usage
