"""Other Lightning modules, and their state, which attribution must not change."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_attr.models.loading import DEMO_MODEL, load_tokenizer

SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}


def tiny(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SMALL))


class StrangersModule(pl.LightningModule):
    """Its language model has train mode with dropout, a frozen parameter, a part in eval mode, and hooks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer = load_tokenizer(DEMO_MODEL)
        self.net = nn.ModuleDict({"lm": tiny(self.tokenizer).train()})
        self.critic = nn.Linear(3, 3)
        self.lm.transformer.wpe.weight.requires_grad_(False)
        self.lm.transformer.h[0].attn.eval()
        self.lm.transformer.ln_f.register_forward_hook(lambda *_: None)
        self.lm.register_forward_pre_hook(lambda *_: None)

    @property
    def lm(self) -> GPT2LMHeadModel:
        return self.net["lm"]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.lm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def learn(self) -> None:
        ids_NT = torch.randint(1000, (8, 8), generator=torch.Generator().manual_seed(1))
        pl.Trainer(accelerator="cpu", enable_checkpointing=False, **QUIET).fit(
            self, DataLoader(ids_NT, batch_size=4)
        )


def state(module: nn.Module) -> list[Any]:
    """The state of a module: parameters, gradients, flags, modes, hooks and attributes."""
    modules = [*module.modules()]
    return [
        [parameter.tolist() for parameter in module.parameters()],
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in module.parameters()],
        [(parameter.requires_grad, parameter.device, parameter.dtype) for parameter in module.parameters()],
        [each.training for each in modules],
        [[*each._forward_hooks, *each._forward_pre_hooks, *each._backward_hooks] for each in modules],
        [sorted(vars(each)) for each in modules],
    ]
