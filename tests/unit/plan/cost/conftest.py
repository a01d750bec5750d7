"""One device of round numbers, one step of Llama-2-7B, one layout of our own stages. A test changes the field it is about."""

from __future__ import annotations

import pytest

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.kernels import Device
from launcher.plan.cost.links import Links, links_of
from launcher.plan.cost.of_stage import Speeds
from launcher.plan.cost.stack import OURS
from launcher.plan.cost.work import Work
from launcher.plan.gpus import Gpu
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.shape import ModelShape
from tests.unit.plan.cost.ideal import IDEAL, MEMORY_GBS, NIC_GBS, NVLINK_GBS, PCIE_GBS, TFLOPS


@pytest.fixture
def gpu() -> Gpu:
    """Round numbers: 1e14 operations and 1e12 bytes a second, 100 multiprocessors, eight on NVLink."""
    return Gpu(
        name="round-80gb",
        generation="ampere",
        usable_gib=80,
        tflops_16bit=TFLOPS,
        memory_gbs=MEMORY_GBS,
        nvlink_gbs=NVLINK_GBS,
        nvlink_gpus=8,
        pcie_gbs=PCIE_GBS,
        nic_gbs=NIC_GBS,
        multiprocessors=100,
        watts=500,
        usd_per_hour=2.0,
    )


@pytest.fixture
def device(gpu: Gpu) -> Device:
    return Device(gpu=gpu, arithmetic="bf16", constants=IDEAL)


@pytest.fixture
def links(gpu: Gpu) -> Links:
    return links_of(gpu, host_gpus=8)


@pytest.fixture
def work(llama: ModelShape) -> Work:
    """Llama-2-7B, one row of 4096 tokens on one GPU."""
    return Work(
        shape=llama,
        row_tokens=4096,
        tokens=4096,
        micro_batches=8,
        dp=1,
        tp=1,
        pp=1,
        sp=1,
        zero=1,
        arithmetic="bf16",
        attention="flash2",
    )


@pytest.fixture
def load(llama: ModelShape) -> Load:
    return Load(shape=llama, kind="sft", adapter=None, quantized=False, eager=False, row_tokens=4096, answer_tokens=0)


@pytest.fixture
def layout() -> Layout:
    return Layout(
        dp=8,
        zero=3,
        precision="bf16",
        checkpointing="full",
        offload_optimizer="none",
        offload_parameters="none",
        micro_batch=1,
        grad_accum=8,
        cuda=True,
    )


@pytest.fixture
def speeds(gpu: Gpu, links: Links) -> Speeds:
    return Speeds(gpu=gpu, links=links, stack=OURS, constants=PUBLISHED, host_ranks=8)
