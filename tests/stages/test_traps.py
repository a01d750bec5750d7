"""What the libraries accept and then train wrongly, without a word: each is refused or repaired here, and shown to be."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.rundir.folder import read_json, write_json
from tests.stages import runs
from tests.stages.harness import fork_ranks, run_ranks, run_verb
from tests.stages.look import curve, held_out, refused, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks


def edit(path, change):
    value = read_json(path)
    change(value)
    write_json(path, value)


# --- the DeepSpeed config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_at_zero_0_is_refused(world, precision):
    """bf16: the first Adam step is taken twice. fp16: gradients are divided by a scale that the loss never had."""
    codes, [problem] = refused(make_run(world, kind="sft", zero=0, precision=precision), "sft")

    assert (codes, problem["code"]) == ({5}, "E553")
    assert "use parallel.zero: 1" in problem["hint"]


CONFIG_EDITS = {
    "a value left auto": (lambda c: c.update(gradient_clipping="auto"), "gradient_clipping is still auto"),
    "auto inside a section": (
        lambda c: c["zero_optimization"].update(reduce_bucket_size="auto"),
        "zero_optimization.reduce_bucket_size is still auto",
    ),
    "an optimizer that replaces the stage's": (
        lambda c: c.update(optimizer={"type": "SGD", "params": {"lr": 0.5}}),
        "a section 'optimizer': it would replace the stage's own",
    ),
    "a scheduler": (lambda c: c.update(scheduler={"type": "WarmupLR", "params": {}}), "a section 'scheduler'"),
    "another micro-batch": (
        lambda c: c.update(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=2),
        "train_micro_batch_size_per_gpu is 4, the plan's is 8",
    ),
    "no clipping": (lambda c: c.pop("gradient_clipping"), "gradient_clipping is absent, the plan's is 1.0"),
    "another precision": (lambda c: c["bf16"].update(enabled=True), "bf16 is True, the plan's is False"),
    "another ZeRO stage": (
        lambda c: c["zero_optimization"].update(stage=1),
        "ZeRO stage is 1 in the engine, 2 in the plan",
    ),
}


@pytest.mark.parametrize(("change", "what"), CONFIG_EDITS.values(), ids=CONFIG_EDITS.keys())
def test_a_config_that_differs_from_the_plan_stops_before_the_first_step(world, change, what):
    run = make_run(world, kind="sft", zero=2)
    edit(run.ds_config("sft"), change)
    codes, problems = refused(run, "sft")

    assert codes == {5}
    assert {problem["code"] for problem in problems} == {"E552"}
    assert what in "\n".join(problem["what"] for problem in problems)
    assert not run.stage("sft").metrics.exists() or not curve(run, "sft")


def test_another_number_of_ranks_than_planned_is_refused(world):
    """DeepSpeed trains on one node when its hostfile is missing, and exits 0."""
    run = make_run(world, kind="sft", ranks=2)
    codes, [problem] = refused(run, "sft", ranks=1)

    assert (codes, problem["code"]) == ({5}, "E550")
    assert problem["what"] == "1 ranks were started, the plan is for 2"


def test_an_environment_that_did_not_arrive_is_refused(world, monkeypatch):
    run = make_run(world, kind="sft")
    monkeypatch.setenv("OTHER", "b")
    given = {"env": {"OTHER": "a", "NEVER": "x", "HOME": os.environ["HOME"]}, "secrets": ["TOKEN_"]}
    edit(run.job_json, lambda job: job.setdefault("cluster", {}).update(given))
    codes, [problem] = refused(run, "sft")

    assert (codes, problem["code"]) == ({5}, "E570")
    assert problem["what"] == "OTHER is 'b' here; NEVER is not set; TOKEN_, a secret, is not set; the job says otherwise"


# --- precision and activations -----------------------------------------------------------------------------------------


def _write_bf16(world):
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.bfloat16).save_pretrained(world / "bf16")


def test_a_bf16_checkpoint_is_trained_in_the_precision_of_the_plan(world):
    """Without a dtype, the checkpoint's own would be taken: pure bf16 without fp32 masters."""
    run_ranks(_write_bf16, world, world=1)
    run = make_run(world, kind="sft", start=world / "bf16")
    train(run, "sft")

    assert {str(weight.dtype) for weight in weights(run.stage("sft").artifact).values()} == {"float32"}


def test_bf16_with_fp32_masters_follows_the_fp32_curve(world):
    exact, rounded = (
        make_run(world, kind="sft", zero=zero, precision=precision, ranks=2, micro=4)
        for zero, precision in ((1, "fp32"), (3, "bf16"))
    )
    train(exact, "sft", ranks=2)
    train(rounded, "sft", ranks=2)

    assert curve(rounded, "sft") == pytest.approx(curve(exact, "sft"), abs=3e-3)
    assert curve(rounded, "sft") != curve(exact, "sft")


def test_activation_checkpointing_changes_nothing_but_memory(world):
    plain, checkpointed = (
        make_run(world, kind="sft", zero=3, checkpointing=checkpointing) for checkpointing in ("none", "full")
    )
    train(plain, "sft")
    train(checkpointed, "sft")

    assert curve(checkpointed, "sft") == pytest.approx(curve(plain, "sft"), abs=1e-6)


def test_weight_decay_leaves_norms_alone(world):
    """At a rate near 0 only decay moves a weight: matrices shrink, norms stay 1."""
    run = make_run(world, kind="sft", zero=2, stage={"lr": 1e-9, "weight_decay": 1.0, "eps": 1.0, "warmup": 0})
    train(run, "sft")
    before, after = weights(world / "model"), weights(run.stage("sft").artifact)
    shrunk = make_run(world, kind="sft", zero=2, stage={"lr": 1e-2, "weight_decay": 1.0, "eps": 1.0, "warmup": 0})
    train(shrunk, "sft")
    decayed = weights(shrunk.stage("sft").artifact)

    assert abs(after["model.norm.weight"] - before["model.norm.weight"]).max() < 1e-6
    assert abs(decayed["model.norm.weight"]).mean() == pytest.approx(1.0, abs=2e-3)
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert abs(decayed[matrix]).mean() < 0.99 * abs(before[matrix]).mean()


# --- tokens and heads ----------------------------------------------------------------------------------------------


def _write_pad_is_end(world):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(world / "pad_is_end")


def test_a_pad_token_that_is_the_end_token_is_refused(world):
    """The end of a padded answer would count as padding, and be scored without it."""
    run_ranks(_write_pad_is_end, world, world=1)
    run = make_run(world, kind="reward")
    (run.base / "tokenizer").unlink()
    (run.base / "tokenizer").symlink_to(world / "pad_is_end")
    codes, [problem] = refused(run, "reward")

    assert (codes, problem["code"]) == ({5}, "E556")


def _write_broken(world):
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    folder = world / "broken"
    AutoConfig.from_pretrained(world / "model").save_pretrained(folder)
    state = load_file(world / "model" / "model.safetensors")
    state["left.over"] = state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_weights_that_are_missing_are_not_drawn_at_random(world, kind):
    if not (world / "broken").exists():
        run_ranks(_write_broken, world, world=1)
    codes, [problem] = refused(make_run(world, kind=kind, start=world / "broken"), kind)

    assert (codes, problem["code"]) == ({5}, "E556")
    assert "1 missing: model.layers.1.mlp.up_proj.weight; 1 left over: left.over" in problem["what"]


# --- figures -------------------------------------------------------------------------------------------------------


def _write_nan(world):
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    AutoConfig.from_pretrained(world / "model").save_pretrained(world / "nan")
    state = load_file(world / "model" / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, world / "nan" / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_no_numbers_are_blamed_before_the_first_step(world):
    """Later it would look like a rate that is too high."""
    run_ranks(_write_nan, world, world=1)
    codes, [problem] = refused(make_run(world, kind="sft", ranks=2, micro=4, zero=0, start=world / "nan"), "sft", ranks=2)

    assert codes == {5}
    assert (problem["code"], problem["where"]) == ("E554", "stage sft, base/model")


def _train_at_an_infinite_rate(run, kind):
    from launcher.stages.__main__ import main
    from launcher.train import course

    course.learning_rate = lambda *_: float("inf")
    return main(["train", str(run.path), kind])


def test_a_loss_that_is_no_number_stops_the_stage(world):
    """ZeRO 0 tells no gradient norm; ZeRO 1 to 3 skip such a step without a word."""
    run = make_run(world, kind="sft", ranks=2, micro=4, zero=0)
    ends = fork_ranks(_train_at_an_infinite_rate, run, "sft", world=2)
    [problem] = read_json(run.stage("sft").problem(0))["problems"]

    assert {end.exit_code for end in ends} == {5}
    assert (problem["code"], problem["where"]) == ("E554", "stage sft, step 2")


def test_a_step_that_fp16_skips_to_lower_its_scale_does_not_stop_the_stage(world):
    """DeepSpeed tells an infinite gradient norm for it; the first steps of nearly every fp16 run are such steps."""
    run = make_run(world, kind="sft", zero=1, micro=4, precision="fp16", stage={"steps": 10})
    edit(run.ds_config("sft"), lambda config: config["fp16"].update(initial_scale_power=24))
    [end] = fork_ranks(_train_in_fp16, run, "sft", world=1)
    norms = curve(run, "sft", "grad_norm")

    assert end.exit_code == 0, run.stage("sft").rank_log(0).read_text()
    assert norms[0] is None
    assert norms[-1] < 10
    assert held_out(run, "sft")["after/loss"] < held_out(run, "sft")["before/loss"]


def _train_in_fp16(run, stage):
    """As on a GPU without bf16: this CPU can compute in fp16, DeepSpeed only does not trust it to."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from launcher.stages.__main__ import main

    CPU_Accelerator.is_fp16_supported = lambda self: True
    return main(["train", str(run.path), stage])


def test_a_loss_scale_that_may_grow_is_refused_because_that_steps_gradient_counts_half(world):
    """The guard; and without it the curve leaves the right one, although the reported gradient norms show nothing."""
    layout = {"zero": 1, "micro": 4, "precision": "fp16", "stage": {"steps": 8, "log_every": 1, "warmup": 0.0, "lr": 1e-2}}
    steady, growing = make_run(world, kind="sft", **layout), make_run(world, kind="sft", **layout)
    [end] = fork_ranks(_train_in_fp16, steady, "sft", world=1)
    assert end.exit_code == 0, steady.stage("sft").rank_log(0).read_text()
    edit(growing.ds_config("sft"), lambda config: config["fp16"].update(loss_scale_window=2))
    codes, [problem] = refused(growing, "sft")
    assert (codes, problem["code"]) == ({5}, "E553")
    assert "counts half" in problem["what"]

    [end] = fork_ranks(_train_unguarded_in_fp16, growing, "sft", world=1)
    assert end.exit_code == 0, growing.stage("sft").rank_log(0).read_text()
    losses = zip(curve(growing, "sft", "loss"), curve(steady, "sft", "loss"), strict=True)
    off = [abs(wrong - right) for wrong, right in losses]
    assert off[:2] == [0.0, 0.0]
    assert max(off) > 1e-3, off


def _train_unguarded_in_fp16(run, stage):
    from launcher.train import agreement

    agreement.MOST_STEPS = 0
    return _train_in_fp16(run, stage)


def test_an_empty_split_is_refused(world):
    run = make_run(world, kind="sft")
    edit(run.stage("sft").prepared, lambda prepared: prepared["rows"].update(held_out=0))
    codes, [problem] = refused(run, "sft")

    assert (codes, problem["code"], problem["what"]) == ({5}, "E560", "no rows in held_out after preparation")


def test_every_row_comes_once_an_epoch_and_the_order_knows_no_ranks():
    from launcher.train.rows import row_numbers

    order = row_numbers(10, seed=1, start=0, stop=25)

    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order[7:] == row_numbers(10, seed=1, start=7, stop=25)
    assert order[:10] != row_numbers(10, seed=2, start=0, stop=10)


def test_a_batch_larger_than_the_data_is_full_all_the_same(world):
    run = make_run(world, kind="sft", micro=64, accum=2, stage={"steps": None, "epochs": 3.0})
    train(run, "sft")

    assert read_json(run.stage("sft").result)["steps"] == 3  # 3 x 96 rows in steps of 128, rounded up


# --- what is handed on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "missing"])
def test_a_folder_that_does_not_hold_the_model_is_not_handed_on(tmp_path, damage):
    """ZeRO-3 without its gather leaves empty tensors, in a file that looks like any other."""
    import torch
    from safetensors.torch import save_file

    from launcher.train.artifacts import verify

    state = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4)}
    assert _saved_and_verified(tmp_path, state, dict(state)) == (2, 20)
    written = {
        "empty": {**state, "a.weight": torch.empty(0)},
        "missing": {"a.weight": torch.ones(4, 4)},
    }[damage]
    save_file(written, tmp_path / "model.safetensors")
    with pytest.raises(LauncherError) as error:
        verify(tmp_path, _shapes(state), 20)
    assert error.value.problems[0].code == "E558"


def test_a_weight_that_is_not_finite_is_not_handed_on(tmp_path):
    """Found behind the last weight: the other ranks take part in every one."""
    import torch

    from launcher.train.artifacts import write_weights

    taken = []
    weights = {"a": torch.tensor([1.0, float("inf")]), "b": torch.ones(2)}
    with pytest.raises(LauncherError) as error:
        write_weights(tmp_path, (taken.append(name) or (name, weight) for name, weight in weights.items()))
    assert error.value.problems[0].code == "E558"
    assert taken == ["a", "b"]


def _saved_and_verified(folder, state, written):
    from safetensors.torch import save_file

    from launcher.train.artifacts import verify

    save_file(written, folder / "model.safetensors")
    return verify(folder, _shapes(state), 20)


def _shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _write_untied(world):
    runs.write_model(world / "untied", tied=False)


@pytest.mark.parametrize("zero", [0, 3])
def test_tied_weights_are_written_once_and_untied_ones_twice_whatever_the_zero_stage(world, zero):
    if not (world / "untied").exists():
        run_ranks(_write_untied, world, world=1)
    tied, untied = (make_run(world, kind="sft", zero=zero, start=world / start) for start in ("model", "untied"))
    train(tied, "sft")
    train(untied, "sft")

    assert "lm_head.weight" not in weights(tied.stage("sft").artifact)
    assert weights(untied.stage("sft").artifact)["lm_head.weight"].shape == (64, 32)


def _names_of_copies(folder):
    """State as it comes from a GPU: every tensor copied, so that nothing shows that two names are one weight."""
    from transformers import AutoModelForCausalLM

    from launcher.train.artifacts import untied

    model = AutoModelForCausalLM.from_pretrained(folder)
    return sorted(untied(model, {name: weight.clone() for name, weight in model.state_dict().items()}))


def test_the_second_name_of_a_tied_weight_is_dropped_even_where_the_weights_were_copied(world):
    [names] = run_ranks(_names_of_copies, world / "model", world=1)

    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


# --- ranks ---------------------------------------------------------------------------------------------------------


def test_a_rank_does_not_outlive_its_launcher(tmp_path):
    read_end, write_end = os.pipe()
    started = tmp_path / "pid"

    def parent():
        from launcher.stages.__main__ import die_with_parent

        child = os.fork()
        if child == 0:
            die_with_parent()
            started.write_text(str(os.getpid()))
            os.write(write_end, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(read_end, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    [end] = fork_ranks(parent, world=1)
    orphan = int(started.read_text())

    assert end.exit_code == -signal.SIGKILL
    assert _ends_within(orphan, 5.0)


def _ends_within(pid, limit_s):
    give_up = time.monotonic() + limit_s
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_bug_leaves_its_traceback_and_exit_code_1(world):
    run = make_run(world, kind="sft")
    run.ds_config("sft").unlink()
    [end] = run_verb("train", run.path, "sft")
    told = json.loads(run.stage("sft").problem(0).read_text())

    assert end.exit_code == 1
    assert told["problems"][0]["code"] == "E901"
    assert "FileNotFoundError" in told["traceback"]
    assert "FileNotFoundError" in run.stage("sft").rank_log(0).read_text()


def test_a_rank_that_waited_for_a_lost_one_says_so_and_does_not_call_it_a_bug(world):
    run = make_run(world, kind="sft", ranks=2, micro=4)
    ends = fork_ranks(_lose_rank_1, run, world=2)
    told = json.loads(run.stage("sft").problem(0).read_text())

    assert [end.exit_code for end in ends] == [5, -signal.SIGKILL]
    assert told["problems"][0]["code"] == "E551"


def _lose_rank_1(run):
    from launcher.stages.__main__ import main
    from launcher.train import assemble

    def lose(*args):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    assemble.compare_engine = lose
    return main(["train", str(run.path), "sft"])


FAILURES = {
    "E555": ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "lower batch.micro"),
    "E513": ("OSError", "[Errno 28] No space left on device", "free space, then resume"),
}


@pytest.mark.parametrize(("code", "kind", "said", "hint"), [(code, *rest) for code, rest in FAILURES.items()])
def test_a_device_or_a_disk_that_is_full_is_no_bug(world, code, kind, said, hint):
    run = make_run(world, kind="sft")
    [end] = fork_ranks(_fail_with, run, kind, said, world=1)
    [problem] = json.loads(run.stage("sft").problem(0).read_text())["problems"]

    assert (end.exit_code, problem["code"]) == (5, code)
    assert said in problem["what"]
    assert hint in problem["hint"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_on_a_full_disk_is_known_though_it_hardly_says_so(zipped):
    import torch

    from launcher.stages.__main__ import known_failure

    with pytest.raises((RuntimeError, OSError)) as caught:
        torch.save({"a": torch.zeros(200_000)}, "/dev/full", _use_new_zipfile_serialization=zipped)
    problem = known_failure(caught.value)
    assert problem is not None
    assert problem.code == "E513"


def test_a_damaged_file_is_not_taken_for_a_full_disk(tmp_path):
    import torch

    from launcher.stages.__main__ import known_failure

    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + b"junk" * 100)
    with pytest.raises(RuntimeError) as caught:
        torch.load(tmp_path / "x.pt")
    assert known_failure(caught.value) is None


def test_weights_of_another_shape_than_config_json_are_no_bug(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from launcher.stages.__main__ import known_failure

    sizes = {"vocab_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(hidden_size=16, **sizes)).save_pretrained(tmp_path)
    LlamaConfig(hidden_size=32, **sizes).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    problem = known_failure(caught.value)
    assert problem is not None
    assert problem.code == "E546"


def _fail_with(run, kind, said):
    import torch

    from launcher.stages.__main__ import main
    from launcher.train import assemble

    error = {"OutOfMemoryError": torch.OutOfMemoryError, "OSError": OSError}[kind]

    def fail(*args):
        raise error(said)

    assemble.compare_engine = fail
    return main(["train", str(run.path), "sft"])


def test_success_is_marked_last_and_an_older_mark_is_gone_before_anything_runs(world):
    run = make_run(world, kind="sft", ranks=2, micro=4)
    train(run, "sft", ranks=2)
    assert [read_json(run.stage("sft").done(rank))["world"] for rank in (0, 1)] == [2, 2]
    assert held_out(run, "sft")

    run.ds_config("sft").unlink()
    run_verb("train", run.path, "sft", world=2)
    assert not run.stage("sft").done(0).exists()
    assert not run.stage("sft").done(1).exists()
