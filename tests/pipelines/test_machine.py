"""What is asked of the operating system, where it does not have it."""

import os

import pytest

from soundlake.pipelines.engine.machine import cores


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process is bound to, on Linux; macOS binds none."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()
