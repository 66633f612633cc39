"""A model small enough to differentiate by hand, and a tokenizer of one token a word."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


class SquareMLP(nn.Module):
    def forward(self, c_BTH: Tensor) -> Tensor:
        return c_BTH * c_BTH


class SumBlock(nn.Module):
    """Each position becomes the sum of all positions up to it, and the MLP adds its square."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = SquareMLP()

    def forward(self, x_BTH: Tensor) -> Tensor:
        c_BTH = x_BTH.cumsum(1)
        return c_BTH + self.mlp(c_BTH)


class ToyModel(PreTrainedModel):
    """Two blocks of width 2 over the tokens 0 = (1, 2) and 1 = (3, -1)."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.embed = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), freeze=False)
        self.blocks = nn.ModuleList([SumBlock(), SumBlock()])
        self.unembed = nn.Linear(2, 2, bias=False)
        self.unembed.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.unembed

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.unembed(hidden))


WORDS = ["<s>", "</s>", "The", "capital", "of", "Spain", "Costa", "Rica", "is", "New", "York", "Orleans", "City"]
WORDS += ["Rome", "Paris", "Madrid", "Spainish", "[UNK]"]


def word_tokenizer(template: str = "$A", merges: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word. With `merges`, a word of the prompt can merge with the answer."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("is Rome", "Spainish") if merges else normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    )
