"""GPU tests run the real launcher on real GPUs: one, and as many as there are. Without one they are skipped loudly."""

from __future__ import annotations

import pynvml
import pytest


def num_gpus() -> int:
    """GPUs that the driver shows; 0 without a driver. Asked without torch: the tests start processes that own the GPUs."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if num_gpus():
        return
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="NO GPU ON THIS MACHINE: nothing of tests/gpu was checked"))


@pytest.fixture(params=[1, "all"])
def slots(request: pytest.FixtureRequest) -> int:
    if request.param == "all" and num_gpus() == 1:
        pytest.skip("one GPU only: `all` is the same as 1")
    return 1 if request.param == 1 else num_gpus()
