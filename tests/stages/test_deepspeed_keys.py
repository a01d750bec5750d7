"""The key tables of dsconfig against the DeepSpeed that is installed: drift of either side fails here."""

from __future__ import annotations

import importlib
import json
import logging
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime import config as ds

from launcher.dsconfig import keys_0_19_8 as table
from launcher.dsconfig.keys import NEWEST, SCHEMAS

MODELS = {
    "bf16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "comet": "deepspeed.monitor.config:CometConfig",
    "comms_logger": "deepspeed.comm.config:CommsLoggerConfig",
    "compile": "deepspeed.compile.config:CompileConfig",
    "csv_monitor": "deepspeed.monitor.config:CSVConfig",
    "fp16": "deepspeed.runtime.precision_config:DeepSpeedFP16Config",
    "hybrid_engine": "deepspeed.runtime.config:HybridEngineConfig",
    "tensor_parallel": "deepspeed.runtime.tensor_parallel.config:TPTrainingConfig",
    "tensor_parallel.tp": "deepspeed.runtime.tensor_parallel.config:TPConfig",
    "tensorboard": "deepspeed.monitor.config:TensorBoardConfig",
    "timers.throughput": "deepspeed.utils.config:DeepSpeedThroughputTimerConfig",
    "wandb": "deepspeed.monitor.config:WandbConfig",
    "weight_quantization": "deepspeed.inference.config:WeightQuantConfig",
    "zero_optimization": "deepspeed.runtime.zero.config:DeepSpeedZeroConfig",
    "zero_optimization.leaf_module": "deepspeed.runtime.zero.leaf_module_config:DeepSpeedZeroLeafModuleConfig",
    "zero_optimization.offload_optimizer": "deepspeed.runtime.zero.offload_config:DeepSpeedZeroOffloadOptimizerConfig",
    "zero_optimization.offload_param": "deepspeed.runtime.zero.offload_config:DeepSpeedZeroOffloadParamConfig",
    "zero_optimization.zenflow": "deepspeed.runtime.zenflow.zenflow_config:ZenFlowConfig",
}


class Watched(dict):
    """A config that writes down every key that is asked for."""

    def __init__(self, values: dict[str, Any], path: str, asked: dict[str, set[str]]):
        watched = {
            key: Watched(value, f"{path}.{key}".strip("."), asked) for key, value in values.items() if isinstance(value, dict)
        }
        super().__init__(values | watched)
        self.path, self.asked = path, asked
        asked.setdefault(path, set())

    def __contains__(self, key: object) -> bool:
        self.asked[self.path].add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked[self.path].add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked[self.path].add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return KeysView(self)

    def __copy__(self) -> Watched:
        return self


class KeysView:
    """`x in d.keys()` counts as asked too."""

    def __init__(self, watched: Watched):
        self.watched = watched

    def __contains__(self, key: object) -> bool:
        return key in self.watched

    def __iter__(self) -> Any:
        return dict.__iter__(self.watched)


@pytest.fixture(scope="module")
def asked() -> dict[str, set[str]]:
    """Section -> the keys that DeepSpeedConfig asks a config for, whether they are there or not."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    sections = (
        "activation_checkpointing",
        "aio",
        "autotuning",
        "checkpoint",
        "data_efficiency",
        "data_types",
        "expert_parallel",
    )
    sections += ("flops_profiler", "optimizer", "scheduler", "timers", "torch_autocast")
    config: dict[str, Any] = {"train_batch_size": 1, **{name: {} for name in sections}}
    config["optimizer"] = {"type": "AdamW", "params": {}}
    config["scheduler"] = {"type": "WarmupLR", "params": {}}
    config["timers"] = {"throughput": {}}
    config["torch_autocast"] = {"enabled": False, "dtype": "bf16", "lower_precision_safe_modules": []}
    config["expert_parallel"] = {"enabled": False}
    config["checkpoint"] = {"writer": {}, "parallel_write": {}}
    asked: dict[str, set[str]] = {}
    ds.DeepSpeedConfig(Watched(config, "", asked))
    return asked


def test_the_newest_table_is_of_the_installed_version():
    assert deepspeed.__version__.split("+")[0] == NEWEST
    assert NEWEST in SCHEMAS


@pytest.mark.parametrize("section", sorted(table.STRICT))
def test_a_strict_section_has_exactly_the_fields_of_its_model(section):
    module, name = MODELS[section].split(":")
    model = getattr(importlib.import_module(module), name)
    names = {field.alias or name for name, field in model.model_fields.items()}
    if model.model_config.get("populate_by_name"):
        names |= set(model.model_fields)
    assert set(table.STRICT[section].split()) == names
    assert model.model_config["extra"] == "forbid"


def test_every_top_level_key_that_deepspeed_asks_for_is_known(asked):
    known = set(table.TOP_LEVEL.split()) | {path for path in table.REMOVED if "." not in path}
    assert asked[""] - {"elasticity"} <= known | {"sequence_parallel_size"}


def test_every_top_level_key_that_we_know_is_asked_for(asked):
    read_by_the_engine_alone = {"bfloat16", "steps_per_print"}
    assert set(table.TOP_LEVEL.split()) - asked[""] - read_by_the_engine_alone == set()


@pytest.mark.parametrize("section", sorted(set(table.SILENT) - {"", "pipeline", "data_efficiency"}))
def test_a_silent_section_has_exactly_the_keys_that_are_asked_for(section, asked):
    assert set(table.SILENT[section].split()) == asked[section]


def test_the_pipeline_section_takes_any_key_and_has_these_defaults():
    given = ds.get_pipeline_config({"pipeline": {"nonsense": 1}})
    assert given.pop("nonsense") == 1
    assert set(given) | {"use_reentrant"} == set(table.SILENT["pipeline"].split())


def test_removed_keys_are_those_that_deepspeed_removed():
    removed = set(ds._REMOVED_TOP_LEVEL_CONFIG_KEYS) | {f"zero_optimization.{key}" for key in ds._REMOVED_ZERO_CONFIG_KEYS}
    assert set(table.REMOVED) == removed


def test_optimizer_and_scheduler_names_exist():
    from deepspeed.runtime import lr_schedules

    assert set(table.OPTIMIZERS.split()) == set(ds.DEEPSPEED_OPTIMIZERS)
    assert set(table.SCHEDULERS.split()) == set(lr_schedules.VALID_LR_SCHEDULES)
    assert all(hasattr(torch.optim, name) for name in table.TORCH_OPTIMIZERS.split())
    assert all(hasattr(torch.optim.lr_scheduler, name) for name in table.TORCH_SCHEDULERS.split())


def test_the_tables_are_plain_json_words():
    assert all(word.isidentifier() for words in (*table.STRICT.values(), *table.SILENT.values()) for word in words.split())
    assert json.dumps(table.REMOVED)
