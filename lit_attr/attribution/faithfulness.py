"""Faithfulness of rankings: the logit difference without the top cells, and with the top cells alone.

A cell is a layer at a token of a contrast. Axes: B contrasts, R rankings, P percentages (in the order of
`PERCENT`), V versions of one contrast with different cells removed, L chosen layers, T tokens, N cells, H width of
the component's output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.passes import check_inputs, difference_B, only_last_logits
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.hooks import first_tensor, outputs_changed, replace_first, undisturbed
from lit_attr.models.location import Location

Ranking = Literal["scores", "exact", "random"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
# The sizes of the top, in percent of a contrast's cells.
PERCENT = (1, 2, 5, 10, 20, 50)
# Bounds memory: versions × tokens that go through a layer together, as in `exact_effects_BLT`.
MAX_TOKENS = 8192


class Curves(NamedTuple):
    """Faithfulness curves of each contrast, in logits: float32, float64 where the model is; on the CPU.

    Attributes:
        logit_diff_B: logit_true − logit_false of the unchanged model.
        comprehensiveness_BRP: Its fall without the top cells; large for a faithful ranking.
        sufficiency_BRP: Its fall with the top cells alone; small for a faithful ranking.
    """

    logit_diff_B: Tensor
    comprehensiveness_BRP: Tensor
    sufficiency_BRP: Tensor


@torch.inference_mode(False)
@torch.no_grad()
def faithfulness_curves(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    rankings: Sequence[Tensor],
    replacement_BLTH: Tensor | None = None,
) -> Curves:
    """Comprehensiveness and sufficiency of rankings of cells, by the size of the top.

    `comprehensiveness[k] = diff − diff without the top k%`, `sufficiency[k] = diff − diff with only the top k%`:
    as in ERASER (DeYoung et al., 2020, arXiv:1911.03429), with the logit difference instead of a class's
    probability, and with writes replaced instead of tokens removed. The top k% are the
    ⌈k/100 · layers · tokens⌉ cells with the largest signed scores, which favour the true answer most. Ties go to
    the lower layer, then to the earlier token.

    Each contrast goes through the model alone, in all its versions at once. So no row has padding, and none
    depends on its batch.

    Args:
        model: A causal language model.
        location: The modules whose outputs are the writes.
        batch: The contrasts, on the device of the model's embeddings.
        rankings: The scores of each ranking, axes contrast × layer (as `location.layers`) × token. Values at
            padding or beyond are ignored.
        replacement_BLTH: What replaces each write; zeros where None.

    Raises:
        ArgumentError: A token id has no embedding in the model, a context is longer than its positions, or a
            ranking has another shape.
    """
    check_inputs(location, batch)
    rows, tokens = batch.token_ids_BT.shape
    for scores_BLT in rankings:
        if scores_BLT.shape[:2] != (rows, len(location.layers)) or scores_BLT.shape[2] < tokens:
            raise ArgumentError(
                "rankings",
                f"the shape {list(scores_BLT.shape)} is not {rows} contrasts × {len(location.layers)} layers × "
                f"{tokens} tokens",
            )
    with undisturbed(model, batch.token_ids_BT.device) as model:
        curves = []
        for row, length in enumerate(len(contrast.token_ids) for contrast in batch.contrasts):
            scores_RLT = torch.stack([scores_BLT[row, :, :length].cpu() for scores_BLT in rankings])
            alone = batch.select([row])
            replacement_LTH = None if replacement_BLTH is None else replacement_BLTH[row, :, :length]
            curves.append(_curves_of_one(model, location, alone.narrowed(length), scores_RLT, replacement_LTH))
    return Curves(*(torch.stack(part) for part in zip(*curves, strict=True)))


def random_scores_BLT(contrasts: Sequence[Contrast], layers: int) -> Tensor:
    """Scores that rank each contrast's cells at random, seeded by its key: the same in every batch and process."""
    scores_BLT = torch.zeros(len(contrasts), layers, max(len(contrast.token_ids) for contrast in contrasts))
    for row, contrast in enumerate(contrasts):
        seed = int.from_bytes(hashlib.sha256(repr(contrast.key).encode()).digest()[:8], "big")
        length = len(contrast.token_ids)
        scores_BLT[row, :, :length] = torch.rand(layers, length, generator=torch.Generator().manual_seed(seed))
    return scores_BLT


def _curves_of_one(
    model: PreTrainedModel,
    location: Location,
    alone: ContrastBatch,
    scores_RLT: Tensor,
    replacement_LTH: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The logit difference of one contrast, and its comprehensiveness and sufficiency, [R, P]."""
    rankings, *cells = scores_RLT.shape
    scores_RN = scores_RLT.flatten(1)
    counts_P = torch.tensor([-(-percent * scores_RN.shape[1] // 100) for percent in PERCENT])
    places_RN = scores_RN.argsort(stable=True, descending=True).argsort()
    is_top_RPN = places_RN[:, None] < counts_P[:, None]
    versions_VN = torch.cat([torch.zeros_like(is_top_RPN[0, :1]), *is_top_RPN, *~is_top_RPN])
    diffs = [
        _diff_without_V(model, location, alone, is_removed_VLT, replacement_LTH)
        for is_removed_VLT in versions_VN.unflatten(1, cells).split(max(1, MAX_TOKENS // cells[1]))
    ]
    diff, *others = torch.cat(diffs).cpu().split([1, rankings * len(PERCENT), rankings * len(PERCENT)])
    without_RP, with_only_RP = (diff_V.unflatten(0, (rankings, len(PERCENT))) for diff_V in others)
    return diff[0], diff - without_RP, diff - with_only_RP


def _diff_without_V(
    model: PreTrainedModel,
    location: Location,
    alone: ContrastBatch,
    is_removed_VLT: Tensor,
    replacement_LTH: Tensor | None,
) -> Tensor:
    """The logit difference of one contrast with the writes of some cells replaced, for each version."""
    versions = alone.select([0] * len(is_removed_VLT))

    def remove(place: int, output: Any) -> Any:
        hidden = first_tensor(output)
        is_removed_VT1 = is_removed_VLT[:, place, :, None].to(hidden.device)
        # Some modules have the tokens of all rows in one axis.
        write_VTH = hidden.reshape(*is_removed_VT1.shape[:2], -1)
        other = write_VTH.new_zeros(()) if replacement_LTH is None else replacement_LTH[place].to(write_VTH)
        return replace_first(output, torch.where(is_removed_VT1, other, write_VTH).reshape(hidden.shape))

    with outputs_changed(location.modules, remove), only_last_logits(model, versions):
        return difference_B(model(input_ids=versions.token_ids_BT, use_cache=False).logits, versions)
