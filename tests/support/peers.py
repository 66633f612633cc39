"""Scores of Inseq, to compare ours with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.facts.contrasts import Contrast


def alike_in_length(contrasts: Sequence[Contrast], tokenizer: PreTrainedTokenizerBase) -> list[Contrast]:
    """The contrasts whose answers have equal lengths: Inseq aligns answers on the last token, we on the first."""
    return [
        contrast
        for contrast in contrasts
        if contrast.step == 0
        and len(tokenizer(contrast.fact.target_true).input_ids)
        == len(tokenizer(contrast.fact.target_false).input_ids)
    ]


def inseq_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str, contrasts: Sequence[Contrast]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sum and l2 norm of Inseq's gradient × activation at a module, for each contrast, [T]."""
    import inseq

    # Where there is a GPU, Inseq moves the model there unless it is given a device.
    device = str(model.device)
    peer = inseq.load_model(
        model, "layer_gradient_x_activation", tokenizer=tokenizer, target_layer=path, device=device
    )
    for contrast in contrasts:
        fact, width = contrast.fact, len(contrast.tokens)
        attributions = peer.attribute(
            fact.prompt,
            fact.prompt + fact.target_true,
            attributed_fn="contrast_logits_diff",
            contrast_targets=fact.prompt + fact.target_false,
            show_progress=False,
        )
        products_TH = attributions.sequence_attributions[0].target_attributions[:width, 0]
        yield products_TH.sum(-1), products_TH.norm(dim=-1)
