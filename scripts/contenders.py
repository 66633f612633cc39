"""The contenders of `benchmark.py` and `benchmark_exact.py`: lit-attr and its alternatives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location

UNSORTED_ROWS = 32


class Setting(NamedTuple):
    """The input of every contender."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    location: Location
    rows: list[Any]
    contrasts: list[Contrast]
    batches: list[list[Contrast]]
    inseq_rows: int


# Yields the scores of each contrast by its id, or nothing where it writes them to files.
Contender = Callable[[Setting], Iterator[tuple[Any, Tensor]]]


def core(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """lit-attr's core alone."""
    for contrasts in setting.batches:
        batch = collate_contrasts(contrasts).to(setting.model.device)
        scores_BLT = attribute_batch(setting.model, setting.location, batch).to("cpu").scores_sum_BLT
        yield from _by_id(contrasts, scores_BLT)


def predict(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """The whole of lit-attr in a Trainer; its scores go to files, so it yields none."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=setting.model.device.type,
            devices=1,
            logger=TensorBoardLogger(folder),
            callbacks=[AttributionWriter(folder)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = AttributionModule(model=setting.model, tokenizer=setting.tokenizer, verify=0)
        data = CounterfactDataModule(setting.rows, max_tokens=_largest(setting.batches))
        trainer.predict(module, datamodule=data, return_predictions=False)
        return
        yield


def hooks(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Plain PyTorch: forward hooks, `retain_grad` and `.backward()`."""
    model = setting.model
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> Tensor:
        output.requires_grad_()
        output.retain_grad()
        kept.append(output)
        return output

    handles = [module.register_forward_hook(keep) for module in setting.location.modules]
    for contrasts, inputs, answers in _unsorted(setting):
        kept.clear()
        _difference(model(**inputs).logits, *answers).sum().backward()
        yield from _by_id(contrasts, _summed([activation * activation.grad for activation in kept]))
        model.zero_grad()
    for handle in handles:
        handle.remove()


def captum(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Captum with a list of layers."""
    from captum.attr import LayerGradientXActivation

    def forward(token_ids_BT: Tensor, mask_BT: Tensor, *answers: Tensor) -> Tensor:
        return _difference(setting.model(input_ids=token_ids_BT, attention_mask=mask_BT).logits, *answers)

    peer = LayerGradientXActivation(forward, list(setting.location.modules))
    for contrasts, inputs, answers in _unsorted(setting):
        extra = (inputs["attention_mask"], *answers)
        layers = peer.attribute(inputs["input_ids"], additional_forward_args=extra)
        yield from _by_id(contrasts, _summed(layers))


def captum_sorted(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Captum with the batches and the two logits of core."""
    from captum.attr import LayerGradientXActivation

    model = setting.model
    unembedding_VH = model.get_output_embeddings().weight

    def forward(token_ids_BT: Tensor, last_B: Tensor, true_B: Tensor, false_B: Tensor) -> Tensor:
        hidden_BTH = model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state
        hidden_BH = hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
        return (hidden_BH * (unembedding_VH[true_B] - unembedding_VH[false_B])).sum(-1)

    peer = LayerGradientXActivation(forward, list(setting.location.modules))
    for contrasts in setting.batches:
        batch = collate_contrasts(contrasts).to(model.device)
        extra = (batch.last_B, batch.true_token_ids_B, batch.false_token_ids_B)
        layers = peer.attribute(batch.token_ids_BT, additional_forward_args=extra)
        yield from _by_id(contrasts, _summed(layers))


def inseq(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Inseq with one row and one layer at a time."""
    import inseq as library

    scores: dict[Any, list[Tensor]] = {}
    contrasts = setting.contrasts[: setting.inseq_rows]
    for path in setting.location.paths:
        peer = library.load_model(
            setting.model,
            "layer_gradient_x_activation",
            tokenizer=setting.tokenizer,
            target_layer=path,
            # Where there is a GPU, Inseq moves the model there unless it is given a device.
            device=str(setting.model.device),
        )
        for contrast in contrasts:
            fact = contrast.fact
            attributions = peer.attribute(
                fact.prompt,
                fact.prompt + fact.target_true,
                attributed_fn="contrast_logits_diff",
                contrast_targets=fact.prompt + fact.target_false,
                show_progress=False,
            )
            products_TH = attributions.sequence_attributions[0].target_attributions[: len(contrast.tokens), 0]
            scores.setdefault(fact.id, []).append(products_TH.sum(-1).cpu())
    for contrast in contrasts:
        yield contrast.fact.id, torch.stack(scores[contrast.fact.id])


CONTENDERS: dict[str, Contender] = {
    "core": core,
    "predict": predict,
    "hooks": hooks,
    "captum": captum,
    "captum, sorted": captum_sorted,
    "inseq": inseq,
}
# The package that a contender needs.
PEERS = {"captum": "captum", "captum, sorted": "captum", "inseq": "inseq"}


def _by_id(contrasts: Sequence[Contrast], scores_BLT: Tensor) -> Iterator[tuple[Any, Tensor]]:
    for contrast, scores_LT in zip(contrasts, scores_BLT, strict=True):
        yield contrast.fact.id, scores_LT[:, : len(contrast.tokens)].float()


def _unsorted(setting: Setting) -> Iterator[tuple[list[Contrast], dict[str, Tensor], tuple[Tensor, ...]]]:
    for start in range(0, len(setting.contrasts), UNSORTED_ROWS):
        contrasts = setting.contrasts[start : start + UNSORTED_ROWS]
        batch = collate_contrasts(contrasts).to(setting.model.device)
        places_T = torch.arange(batch.token_ids_BT.shape[1], device=setting.model.device)
        mask_BT = (places_T <= batch.last_B[:, None]).long()
        answers = (batch.last_B, batch.true_token_ids_B, batch.false_token_ids_B)
        yield contrasts, {"input_ids": batch.token_ids_BT, "attention_mask": mask_BT}, answers


def _difference(logits_BTV: Tensor, last_B: Tensor, true_B: Tensor, false_B: Tensor) -> Tensor:
    logits_BV = logits_BTV[torch.arange(len(last_B), device=last_B.device), last_B]
    row_B = torch.arange(len(last_B), device=last_B.device)
    return logits_BV[row_B, true_B] - logits_BV[row_B, false_B]


def _summed(products: Sequence[Any]) -> Tensor:
    """Sums the products of each layer, B × T × H or in a tuple, to scores B × L × T."""
    tensors = [each[0] if isinstance(each, tuple) else each for each in products]
    return torch.stack([products_BTH.sum(-1).detach() for products_BTH in tensors], 1).cpu()


def _largest(batches: Sequence[Sequence[Contrast]]) -> int:
    return max(len(batch) * len(batch[0].token_ids) for batch in batches)
