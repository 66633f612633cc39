"""Trains the demo model: a small GPT-2 that knows the facts of `demo_facts.json` and nothing else.

Writes the model, its tokenizer, its card and the sample facts to `lit_attr/assets`.

    python scripts/train_demo_model.py

With another size, seed or architecture, for comparison:

    python scripts/train_demo_model.py --architecture llama --seed 2 --output-dir small_llama

Axes: N rows, T tokens, H width, V vocabulary, A answer tokens of all rows of a batch.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from compare_formats import compare as compare_formats
from compare_rules import compare as compare_rules
from demo_facts import (
    Relation,
    Row,
    SampleRow,
    held_out_rows,
    load_relations,
    sample_rows,
    training_rows,
)
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lit_attr import AttributionMonitor

ROOT = Path(__file__).resolve().parent
EOS = "<|endoftext|>"
CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
---

# The demo model of lit-attr

A teaching model: a {name} of {layers} layers and width {width}, {parameters:,} parameters, trained from
scratch on {facts} facts of common knowledge in {relations} relations, such as "The capital of Spain is
Madrid". It knows nothing else. Use it to try and test lit-attr offline in seconds; findings on it are no
evidence about other models.

## How it was made

    python scripts/train_demo_model.py {options}

The facts and phrasings of `scripts/demo_facts.json` were written for this project. Each fact has
{templates} phrasings, trained alone and after a neutral sentence; one phrasing of each relation is held out
for every second fact. {rows:,} rows; {steps:,} steps of {batch_size} rows; AdamW, learning rate {learning_rate},
weight decay {weight_decay}, dropout {dropout}; {seconds:.0f} seconds on one CPU core. The loss covers the
answers only. The tokenizer is a byte-level BPE of {vocabulary:,} tokens,
trained on the same text.

## What it can do

| Measured after training | |
|---|---|
| True answer by greedy decoding, {facts} sample rows | {sample_accuracy:.1%} |
| The same, {held_out} held-out phrasings | {held_out_accuracy:.1%} |
| Logit of the true answer above that of the false one, sample rows | {contrast_accuracy:.1%} |
| Size of `model.safetensors` | {megabytes:.2f} MB |

## The sample facts

`../sample_facts.jsonl` has one row for each fact, in the columns of `NeelNanda/counterfact-tracing`. The
relation ids are Wikidata properties; `target_true_id` and `target_false_id` are null, because the Wikidata
items were not looked up. The false answer is drawn from the other answers of the same relation.

## How far its scores agree

The rules' scores of the MLPs with exact effects of zero ablation, over sample facts drawn at random. They say
nothing of other models; the README has two real ones.

{rules}

Scores of `gradient` in each number format with those in float32:

{formats}

Licence: Apache-2.0, model and facts.
"""
NAMES = {"gpt2": "GPT-2", "llama": "Llama", "phi3": "Phi-3"}
DROPOUTS = {
    "gpt2": ("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    "llama": ("attention_dropout",),
    "phi3": ("attention_dropout", "resid_pdrop", "embd_pdrop"),
}


@dataclass(frozen=True)
class Recipe:
    """Every setting that shapes the model.

    The strong weight decay spreads the computation over the layers, so that gradient × activation agrees better
    with zero ablation of an MLP: a correlation of 0.82 over 150 sample facts, against 0.68 with a weight decay of
    0.5 and 2,400 steps, which learns the facts sooner.
    """

    seed: int = 0
    steps: int = 3200
    batch_size: int = 48
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    dropout: float = 0.05
    embedding_std: float = 0.3
    layers: int = 8
    width: int = 64
    heads: int = 4
    vocabulary: int = 1024
    positions: int = 64
    architecture: str = "gpt2"

    def options(self) -> str:
        """The command-line options of this recipe: seed, steps, and those that are not the default."""
        chosen = (
            f.name for f in fields(self) if f.name in ("seed", "steps") or getattr(self, f.name) != f.default
        )
        return " ".join(f"--{name.replace('_', '-')} {getattr(self, name)}" for name in chosen)


def train_tokenizer(texts: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE like GPT-2's: a space belongs to the word after it; no special tokens are added."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes prompt, answer and end of text, padded on the right.

    Returns:
        ids_NT, and two masks of the same shape: text_NT marks all but padding, answer_NT the answer and the end of
        text after it.
    """
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    answers = tokenizer([answer for _, answer in rows])["input_ids"]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) + 1
    ids_NT = torch.full((len(rows), length), tokenizer.eos_token_id)
    text_NT = torch.zeros_like(ids_NT, dtype=torch.bool)
    answer_NT = torch.zeros_like(text_NT)
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids_NT[n, :end] = torch.tensor(prompt + answer)
        text_NT[n, : end + 1] = True
        answer_NT[n, len(prompt) : end + 1] = True
    return ids_NT, text_NT, answer_NT


def build_model(recipe: Recipe, eos: int) -> PreTrainedModel:
    """Makes a model with random weights."""
    options: dict[str, int | float | bool] = {
        "vocab_size": recipe.vocabulary,
        "max_position_embeddings": recipe.positions,
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "tie_word_embeddings": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eos),
        **dict.fromkeys(DROPOUTS[recipe.architecture], recipe.dropout),
    }
    if recipe.architecture != "gpt2":
        # A gated MLP has three matrices; at this width they have as many weights as GPT-2's two.
        options["intermediate_size"] = recipe.width * 8 // 3
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(recipe.architecture, **options))
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=recipe.embedding_std)
    return model


class DemoLanguageModel(LightningModule):
    """Next-token training of a language model from scratch."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.language_model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the answers and of the end of text after them; the prompts are not learnt."""
        ids_NT, target_NT = batch
        length = int(target_NT.any(dim=0).nonzero().max()) + 1
        hidden_NTH = self.language_model.base_model(ids_NT[:, : length - 1]).last_hidden_state
        logits_AV = self.language_model.get_output_embeddings()(hidden_NTH[target_NT[:, 1:length]])
        return cross_entropy(logits_AV, ids_NT[target_NT])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a short warm-up and a cosine decay to zero."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(self.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_model(
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    recipe: Recipe,
    *,
    log_dir: Path | None = None,
    sample: Sequence[SampleRow] = (),
) -> PreTrainedModel:
    """Trains on random batches of the rows for the recipe's number of steps.

    With `log_dir`, `AttributionMonitor` attributes the sample facts every 200 steps and logs to TensorBoard there;
    this does not change the model.
    """
    ids_NT, _, answer_NT = encode(tokenizer, rows)
    dataset = TensorDataset(ids_NT, answer_NT)
    draws = RandomSampler(dataset, replacement=True, num_samples=recipe.steps * recipe.batch_size)
    loader = DataLoader(dataset, batch_size=recipe.batch_size, sampler=draws)
    module = DemoLanguageModel(build_model(recipe, tokenizer.eos_token_id), recipe)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(str(log_dir), name="") if log_dir is not None else False,
        callbacks=[AttributionMonitor(sample, tokenizer, every_n_steps=200)] if log_dir is not None else [],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    module.eval()
    return module.language_model


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> float:
    """The share of rows for which greedy decoding gives the whole answer and then stops."""
    ids_NT, text_NT, answer_NT = encode(tokenizer, rows)
    guesses_NT = model(ids_NT, attention_mask=text_NT).logits.argmax(-1)
    is_correct_NT = (guesses_NT[:, :-1] == ids_NT[:, 1:]) | ~answer_NT[:, 1:]
    return float(is_correct_NT.all(dim=1).double().mean())


@torch.no_grad()
def contrast_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sample: Sequence[SampleRow]
) -> float:
    """The share of rows whose true answer has the higher logit at the first token at which the answers differ."""
    trues = [(str(row["prompt"]), str(row["target_true"])) for row in sample]
    falses = [(str(row["prompt"]), str(row["target_false"])) for row in sample]
    ids_NT, text_NT, _ = encode(tokenizer, trues + falses)
    true_NT, false_NT = ids_NT.chunk(2)
    step_N1 = (true_NT != false_NT).int().argmax(dim=1, keepdim=True)
    logits_NTV = model(true_NT, attention_mask=text_NT[: len(sample)]).logits
    logits_NV = logits_NTV[torch.arange(len(sample)), step_N1.squeeze(1) - 1]
    true_N1, false_N1 = true_NT.gather(1, step_N1), false_NT.gather(1, step_N1)
    wins_N1 = logits_NV.gather(1, true_N1) > logits_NV.gather(1, false_N1)
    return float(wins_N1.double().mean())


def write_assets(
    output_dir: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    relations: Sequence[Relation],
    training: dict[str, float],
    compared_rows: int,
) -> str:
    """Writes the model, its tokenizer, the sample facts, and a card with the accuracies measured here.

    Args:
        output_dir: The folder for `demo_model/` and `sample_facts.jsonl`.
        model: The trained model.
        tokenizer: Its tokenizer.
        recipe: Its settings.
        relations: The facts that it was trained on.
        training: The number of training `rows` and the `seconds` that training took, for the card.
        compared_rows: The number of sample facts over which rules and number formats are compared, for the card.

    Returns:
        The card.
    """
    folder = output_dir / "demo_model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sample = sample_rows(relations, random.Random(recipe.seed))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in sample)
    (output_dir / "sample_facts.jsonl").write_text("".join(lines), encoding="utf-8")

    held_out = held_out_rows(relations)
    sample_pairs = [(str(row["prompt"]), str(row["target_true"])) for row in sample]
    card = CARD.format(
        **vars(recipe),
        **training,
        name=NAMES[recipe.architecture],
        options=recipe.options(),
        parameters=model.num_parameters(),
        facts=len(sample),
        relations=len(relations),
        templates=len(relations[0].templates),
        sample_accuracy=accuracy(model, tokenizer, sample_pairs),
        held_out=len(held_out),
        held_out_accuracy=accuracy(model, tokenizer, held_out),
        contrast_accuracy=contrast_accuracy(model, tokenizer, sample),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        rules=printed(compare_rules, folder, compared_rows),
        formats=printed(compare_formats, folder, compared_rows),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def printed(compare: Callable[..., None], folder: Path, rows: int) -> str:
    """What a script prints about the model in a folder, as about the one that ships."""
    text = io.StringIO()
    with redirect_stdout(text):
        compare(models=[str(folder)], rows=rows)
    return text.getvalue().rstrip()


def main(args: Sequence[str] | None = None) -> None:
    """Trains and measures the model, and writes the assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--log-dir", type=Path, help="attribute the facts during training, and log to TensorBoard in this folder"
    )
    parser.add_argument("--output-dir", type=Path, default=ROOT.parent / "lit_attr" / "assets")
    parser.add_argument(
        "--compared-rows", type=int, default=200, help="sample facts over which rules and formats are compared"
    )
    for field in fields(Recipe):
        choices = tuple(NAMES) if field.name == "architecture" else None
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, choices=choices)
    options = vars(parser.parse_args(args))
    output_dir, log_dir = options.pop("output_dir"), options.pop("log_dir")
    compared_rows = options.pop("compared_rows")
    recipe = Recipe(**options)

    torch.set_num_threads(1)  # as fast at this width, and the same numbers with any number of cores
    torch.manual_seed(recipe.seed)
    relations, lead_ins = load_relations()
    rows = training_rows(relations, lead_ins, random.Random(recipe.seed))
    start = time.perf_counter()
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in rows], recipe)
    sample = sample_rows(relations, random.Random(recipe.seed))
    model = train_model(tokenizer, rows, recipe, log_dir=log_dir, sample=sample)
    training = {"rows": len(rows), "seconds": time.perf_counter() - start}
    print(write_assets(output_dir, model, tokenizer, recipe, relations, training, compared_rows))


if __name__ == "__main__":
    main()
