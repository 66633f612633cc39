"""Trains a small GPT-2 on capitals, byte by byte: `python train.py fit --config config.yaml`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LETTERS = pre_tokenizers.ByteLevel.alphabet()  # one for each byte
END = "<end>"


class SentenceData(pl.LightningDataModule):
    """Sentences such as `The capital of Spain is Madrid`, one token a byte.

    Args:
        facts: A CSV file with the columns `prompt` and `target_true`.
        batch_size: Sentences in a batch.
    """

    def __init__(self, facts: Path, batch_size: int = 16) -> None:
        super().__init__()
        self.facts = facts
        self.batch_size = batch_size
        # A byte-level BPE without merges.
        tokens = {letter: place for place, letter in enumerate([END, *sorted(LETTERS)])}
        bytewise = Tokenizer(models.BPE(vocab=tokens, merges=[]))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytewise.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token=END, pad_token=END)

    def setup(self, stage: str) -> None:
        """Reads the sentences."""
        with self.facts.open(encoding="utf-8", newline="") as stream:
            sentences = [f"{row['prompt']} {row['target_true']}{END}" for row in csv.DictReader(stream)]
        self.sentences = TensorDataset(self.tokenizer(sentences, padding=True, return_tensors="pt").input_ids)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """All sentences, shuffled."""
        return DataLoader(self.sentences, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The same sentences: validation measures how well they are memorised."""
        return DataLoader(self.sentences, batch_size=self.batch_size)


class LanguageModule(pl.LightningModule):
    """A GPT-2 trained from scratch.

    Args:
        layers: Number of decoder blocks.
        width: Width of the residual stream.
        heads: Number of attention heads.
        dropout: Dropout rate, at every place where a GPT-2 has one.
        learning_rate: Learning rate of AdamW.
    """

    def __init__(
        self,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.1,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.network = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(LETTERS) + 1,
                n_positions=64,
                n_layer=layers,
                n_embd=width,
                n_head=heads,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def loss(self, ids_BT: Tensor) -> Tensor:
        """Cross-entropy of each next byte and of the end, without the padding."""
        logits_BTV = self.network(input_ids=ids_BT[:, :-1]).logits
        counted_BT = ids_BT[:, :-1] != 0
        return cross_entropy(logits_BTV[counted_BT], ids_BT[:, 1:][counted_BT])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self.loss(batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Logs the loss without dropout."""
        self.log("val_loss", self.loss(batch[0]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    LightningCLI(LanguageModule, SentenceData, args=list(args) if args is not None else None)


if __name__ == "__main__":
    main()
