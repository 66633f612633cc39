"""The shipped model knows the shipped facts, and the script that makes both still works."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "lit_attr" / "assets"
COLUMNS = {
    "relation",
    "relation_prefix",
    "relation_suffix",
    "prompt",
    "relation_id",
    "target_true_id",
    "target_false_id",
    "target_true",
    "target_false",
    "subject",
}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))  # Python adds it when the script is run
    spec = importlib.util.spec_from_file_location("train_demo_model", ROOT / "scripts" / "train_demo_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def sample() -> list[dict]:
    return [json.loads(line) for line in (ASSETS / "sample_facts.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ASSETS / "demo_model")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "demo_model").eval()


@torch.no_grad()
def share_recalled(model, tokenizer, rows: list[tuple[str, str]]) -> float:
    """The share of rows whose answer greedy decoding gives: each token of it is the most likely one."""
    texts = tokenizer([prompt + answer for prompt, answer in rows], padding=True, return_tensors="pt")
    best = model(**texts).logits.argmax(-1)
    recalled = 0
    for n, (prompt, answer) in enumerate(rows):
        start, length = len(tokenizer(prompt)["input_ids"]), len(tokenizer(answer)["input_ids"])
        expected = texts["input_ids"][n, start : start + length]
        recalled += torch.equal(best[n, start - 1 : start + length - 1], expected)
    return recalled / len(rows)


def test_sample_has_the_columns_of_counterfact_tracing(sample):
    assert len(sample) >= 300
    assert len({row["relation_id"] for row in sample}) >= 8
    assert all(set(row) == COLUMNS for row in sample)
    assert len({row["prompt"] for row in sample}) == len(sample)


def test_sample_rows_are_consistent(sample):
    answers: dict[str, set[str]] = {}
    for row in sample:
        answers.setdefault(row["relation_id"], set()).add(row["target_true"])
    for row in sample:
        assert row["prompt"] == row["relation"].format(row["subject"])
        assert row["prompt"].count(row["subject"]) == 1
        gap = " " if row["relation_prefix"] else ""
        assert row["relation"] == row["relation_prefix"] + gap + "{}" + row["relation_suffix"]
        assert row["target_true"].startswith(" ") and row["target_true"] != row["target_false"]
        assert row["target_false"] in answers[row["relation_id"]]
        assert row["target_true_id"] is None and row["target_false_id"] is None
    assert all(len(found) >= 4 for found in answers.values())


def test_sample_covers_the_hard_cases(sample, tokenizer):
    assert any(row["relation_prefix"] == "" for row in sample)
    assert any(not row["subject"].isascii() for row in sample)
    assert {len(row["subject"].split()) for row in sample} >= {1, 2, 3}
    first_tokens = [
        (tokenizer(row["target_true"])["input_ids"][0], tokenizer(row["target_false"])["input_ids"][0])
        for row in sample
    ]
    assert sum(true == false for true, false in first_tokens) >= 10


def test_sample_is_what_the_script_writes(script, sample):
    relations, _ = script.load_relations()
    seed = script.Recipe.seed
    assert sample == script.sample_rows(relations, script.random.Random(seed))


def test_model_recalls_the_sample(model, tokenizer, sample):
    rows = [(row["prompt"], row["target_true"]) for row in sample]
    assert share_recalled(model, tokenizer, rows) >= 0.99


def test_model_recalls_phrasings_it_was_not_trained_on(model, tokenizer, script):
    relations, lead_ins = script.load_relations()
    rows = script.held_out_rows(relations)
    trained = {prompt for prompt, _ in script.training_rows(relations, lead_ins, script.random.Random(0))}
    assert len(rows) > 200
    assert trained.isdisjoint(prompt for prompt, _ in rows)
    assert share_recalled(model, tokenizer, rows) >= 0.90


def test_model_prefers_the_true_answer(model, tokenizer, script, sample):
    assert script.contrast_accuracy(model, tokenizer, sample) >= 0.99


def test_offsets_rebuild_prompt_and_subject(tokenizer, sample):
    for row in sample:
        prompt, subject = row["prompt"], row["subject"]
        offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        # A character of several bytes can be several tokens, all with the character's offsets.
        pieces = dict.fromkeys(offsets)
        assert "".join(prompt[start:end] for start, end in pieces) == prompt
        first = prompt.index(subject)
        last = first + len(subject)
        touched = [(start, end) for start, end in pieces if start < last and end > first]
        assert prompt[touched[0][0] : touched[-1][1]].strip() == subject


def test_answers_have_the_same_tokens_alone_and_after_the_prompt(tokenizer, sample):
    for row in sample:
        apart = tokenizer(row["prompt"])["input_ids"] + tokenizer(row["target_true"])["input_ids"]
        assert tokenizer(row["prompt"] + row["target_true"])["input_ids"] == apart


def test_assets_are_small_and_complete(model):
    files = {path.name: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert sum(files.values()) < 4_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= set(files)
    assert {"tokenizer.json", "tokenizer_config.json", "sample_facts.jsonl"} <= set(files)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_script_writes_a_folder_that_loads(script: ModuleType, tmp_path):
    threads = torch.get_num_threads()
    script.main(["--steps", "3", "--compared-rows", "2", "--output-dir", str(tmp_path)])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "demo_model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "demo_model")
    assert model.config.vocab_size == len(tokenizer) == 1024
    assert tokenizer.eos_token == "<|endoftext|>"
    card = (tmp_path / "demo_model" / "README.md").read_text("utf-8")
    assert "--steps 3" in card
    assert "| `gradient` | 1 |" in card and "| bfloat16 |" in card
    made, shipped = (folder / "sample_facts.jsonl" for folder in (tmp_path, ASSETS))
    assert made.read_bytes() == shipped.read_bytes()
