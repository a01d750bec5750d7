"""Trying and exporting what a stage handed on: the same tokens as transformers' own generate, the same logits on disk."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from launcher.cli.main import main as command
from launcher.rundir.folder import RunDir
from tests.stages.harness import fork_ranks, run_ranks, run_verb
from tests.stages.look import largest_difference, train, weights
from tests.stages.ppo_world import make_ppo_run, make_ppo_world
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

PROMPT = "w10 w11 w12"
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' + m['content'] if m['role'] == 'user' else m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunDir:
    """A run whose ppo stage has finished, with an adapter, so that artifact/ holds a merged model and adapter/."""
    world = make_ppo_world(tmp_path_factory.mktemp("tried"))
    run = make_ppo_run(world, zero=1, stage={"steps": 1}, model={"adapter": {"kind": "lora", "rank": 2}})
    train(run, "ppo")
    return run


@pytest.fixture(scope="module")
def scored(world) -> RunDir:
    """A run whose reward stage has finished."""
    run = make_run(world, kind="reward", stage={"steps": 1})
    train(run, "reward")
    return run


def tool(*words: object) -> tuple[int, str]:
    """Exit code and output of `python -m launcher.stages …`."""
    [end] = run_verb(str(words[0]), *words[1:])
    return end.exit_code or end.value, end.output


def answers_of(*words: object) -> list[dict]:
    code, output = tool("generate", *words, "--json")
    assert code == 0, output
    return json.loads(output[output.index("{") :])["answers"]


def _greedy_by_transformers(folder, text):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**ids, do_sample=False, max_new_tokens=12, suppress_tokens=[tokenizer.pad_token_id])
    return tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_best_tokens_are_those_that_transformers_finds(trained):
    [told] = answers_of(trained.path, f"--prompt={PROMPT}", "--max-new-tokens=12")
    [expected] = run_ranks(_greedy_by_transformers, trained.stage("ppo").artifact, PROMPT, world=1)
    assert told["answer"] == expected
    assert told["answer"]


def test_a_prompt_is_written_by_the_chat_template_where_there_is_one(trained, tmp_path):
    chatty = RunDir(tmp_path / "run")
    shutil.copytree(trained.path, chatty.path, symlinks=True)
    artifact = chatty.stage("ppo").artifact
    (artifact / "chat_template.jinja").write_text(TEMPLATE)
    manifest = json.loads((artifact / "manifest.json").read_text())
    run_ranks(_list_again, artifact, manifest, world=1)
    [told] = answers_of(chatty.path, f"--prompt={PROMPT}", "--max-new-tokens=12")
    [expected] = run_ranks(_greedy_by_transformers, artifact, f"<user> {PROMPT} <assistant>", world=1)
    assert told["answer"] == expected
    assert told["answer"] != answers_of(trained.path, f"--prompt={PROMPT}", "--max-new-tokens=12")[0]["answer"]


def _list_again(folder, manifest):
    from launcher.rundir.artifact import write_manifest

    write_manifest(folder, {key: value for key, value in manifest.items() if key not in ("files", "schema")})


def test_several_prompts_are_answered_in_order_as_each_alone(trained):
    prompts = [f"w{i} w{i + 1}" + " w5" * (i % 3) for i in range(11)]
    words = ("--temperature=0.9", "--max-new-tokens=6", "--seed=4")
    told = answers_of(trained.path, *(f"--prompt={prompt}" for prompt in prompts), *words)
    assert [answer["prompt"] for answer in told] == prompts
    assert told[0] == answers_of(trained.path, f"--prompt={prompts[0]}", *words)[0]
    assert told != answers_of(trained.path, *(f"--prompt={prompt}" for prompt in prompts), *words[:2], "--seed=5")


def _answer_stdin(run, text):
    from launcher.stages.__main__ import main

    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    sys.stdin = os.fdopen(reader)  # pytest has taken the real one
    return main(["generate", str(run.path), "--max-new-tokens=4"])


def test_prompts_are_read_from_stdin_one_a_line(trained):
    [end] = fork_ranks(_answer_stdin, trained, "w7 w8\n\nw9\n", world=1)
    assert end.value == 0
    assert [line for line in end.output.splitlines() if line.startswith(">")] == ["> w7 w8", "> w9"]


def test_an_empty_stdin_is_a_usage_error(trained):
    [end] = fork_ranks(_answer_stdin, trained, "\n", world=1)
    assert end.value == 2
    assert "[E111]" in end.output


def test_a_prompt_as_long_as_the_positions_is_refused_and_a_long_answer_is_cut(trained):
    code, output = tool("generate", trained.path, "--prompt=" + "w9 " * 70)
    assert code == 5
    assert "[E545]" in output
    assert "64 positions" in output
    [told] = answers_of(trained.path, "--prompt=" + "w9 " * 60, "--max-new-tokens=50")
    assert told["tokens"] <= 4


def test_a_changed_artifact_is_neither_tried_nor_exported(trained, tmp_path):
    damaged = RunDir(tmp_path / "run")
    shutil.copytree(trained.path, damaged.path, symlinks=True)
    config = damaged.stage("ppo").artifact / "config.json"
    config.write_text(config.read_text().replace("0.3", "0.4"))
    for words in (("generate", damaged.path, "--prompt=w5"), ("export", damaged.path, "-o", tmp_path / "out")):
        code, output = tool(*words)
        assert code == 5
        assert "[E505]" in output
        assert "config.json has another sha256" in output
    assert not (tmp_path / "out").exists()


def test_export_writes_a_plain_folder_with_the_weights_that_were_handed_on(trained, tmp_path):
    code, output = tool("export", trained.path, "--output", tmp_path / "plain")
    assert code == 0, output
    artifact = trained.stage("ppo").artifact
    assert largest_difference(weights(tmp_path / "plain"), weights(artifact)) == 0.0
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"manifest.json", "adapter"}
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]  # nothing temporary is left


def _dtype_and_logit_difference(folder, artifact):
    import torch

    from launcher.stages.export import probe_logits
    from launcher.train.finished import load_model

    written = load_model(folder, "causal")
    return written.dtype == torch.bfloat16, (
        probe_logits(written) - probe_logits(load_model(artifact, "causal"))
    ).abs().max().item()


def test_export_in_bf16_rounds_the_weights_and_nothing_else(trained, tmp_path):
    code, output = tool("export", trained.path, "--output", tmp_path / "half", "--dtype=bf16", "--json")
    assert code == 0, output
    told = json.loads(output[output.index("{") :])
    assert (told["stage"], told["dtype"]) == ("ppo", "bfloat16")
    assert 0 < told["largest_logit_difference"] < 0.1
    [(is_bf16, off)] = run_ranks(_dtype_and_logit_difference, tmp_path / "half", trained.stage("ppo").artifact, world=1)
    assert is_bf16
    assert 0 < off < 0.5


def test_a_reward_model_is_exported_but_does_not_generate(scored, tmp_path):
    code, output = tool("generate", scored.path, "--stage=reward", "--prompt=w5")
    assert code == 5
    assert "[E566]" in output
    assert "reward model" in output
    code, output = tool("export", scored.path, "--stage=reward", "--output", tmp_path / "scores")
    assert code == 0, output
    assert "score.weight" in weights(tmp_path / "scores")


def test_export_into_a_folder_with_files_is_refused_and_an_empty_one_is_used(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "empty").mkdir()
    code, output = tool("export", trained.path, "--output", tmp_path / "full")
    assert code == 2
    assert "[E119]" in output
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]
    assert tool("export", trained.path, "--output", tmp_path / "empty")[0] == 0
    assert (tmp_path / "empty" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--stage", "sfd"], 2, "[E120] no stage 'sfd' in this run"),
        (["--temperature", "-1"], 2, "'-1' is not a temperature"),
        (["--max-new-tokens", "0"], 2, "'0' is not a number of tokens"),
    ],
)
def test_the_command_refuses_before_a_model_is_loaded(trained, capfd, words, code, text):
    assert command(["generate", str(trained.path), "--prompt", "w5", *words]) == code
    assert text in capfd.readouterr().err


def test_an_unfinished_run_has_nothing_to_try(world, capfd):
    run = make_run(world, kind="sft")
    assert command(["generate", str(run.path), "--prompt", "w5"]) == 5
    assert "[E566]" in capfd.readouterr().err


def test_the_command_starts_the_tool_and_prints_the_answer_alone(trained, capfd):
    """The one test that starts a real process: argv, environment and exit code of the whole way."""
    assert command(["generate", str(trained.path), "--prompt", PROMPT, "--max-new-tokens", "12"]) == 0
    assert capfd.readouterr().out.strip() == answers_of(trained.path, f"--prompt={PROMPT}", "--max-new-tokens=12")[0]["answer"]
