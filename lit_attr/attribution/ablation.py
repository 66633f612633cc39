"""Ablations: what takes the place of a component's write, in scores and in exact effects.

Axes: B contrasts, L chosen layers of each component, T tokens (padded on the right), H width of the component's
output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import AblationName
from lit_attr.attribution.gradient import last_tokens_only
from lit_attr.attribution.passes import check_inputs, only_last_logits, parts_of_one_width, token_mask_BT
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, undisturbed
from lit_attr.models.location import Location


class Ablation(ABC):
    """By what writes are replaced."""

    name: ClassVar[AblationName]

    @abstractmethod
    def replacement_BLTH(self, model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Tensor | None:
        """What replaces each write of a batch; None for zeros.

        Args:
            model: A causal language model.
            location: The modules whose outputs are the writes.
            batch: The contrasts, on the device of the model's embeddings.
        """


class ZeroAblation(Ablation):
    """Writes are set to zero."""

    name: ClassVar[AblationName] = "zero"

    def replacement_BLTH(self, model: PreTrainedModel, location: Location, batch: ContrastBatch) -> None:
        """None."""
        return


ZERO = ZeroAblation()


@dataclass(frozen=True, eq=False)
class MeanAblation(Ablation):
    """Writes are replaced by their mean over the tokens of many contrasts.

    The token at position 0 has a mean of its own: it is most often an attention sink, whose write is many times
    larger than others.

    Attributes:
        mean_LH: float32, the mean write of each layer after position 0.
        mean_at_0_LH: float32, at position 0.
    """

    name: ClassVar[AblationName] = "mean"
    mean_LH: Tensor
    mean_at_0_LH: Tensor

    def replacement_BLTH(self, model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Tensor:
        """The means, the same for all rows."""
        rows, tokens = batch.token_ids_BT.shape
        parts_LTH = [self.mean_at_0_LH[:, None], self.mean_LH[:, None].expand(-1, tokens - 1, -1)]
        mean_LTH = torch.cat(parts_LTH, 1).to(batch.token_ids_BT.device, non_blocking=True)
        return mean_LTH.expand(rows, -1, -1, -1)


class ResampleAblation(Ablation):
    """Writes are replaced by those at the same token in the run of another fact, the donor.

    Zhang & Nanda (2024, arXiv:2309.16042) recommend it over zero and mean ablation, whose writes a model never
    computes.
    """

    name: ClassVar[AblationName] = "resample"

    @torch.inference_mode(False)
    @torch.no_grad()
    def replacement_BLTH(self, model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Tensor:
        """The donors' writes, from one forward pass.

        Raises:
            ArgumentError: The contrasts have no donors, or the components' outputs differ in width.
        """
        if batch.donor_token_ids_BT is None:
            raise ArgumentError(
                "ablation",
                "resample needs a donor for each contrast; use a CounterfactDataModule, or zero",
            )
        donors = batch._replace(token_ids_BT=batch.donor_token_ids_BT)
        check_inputs(location, donors)
        replacement_BLTH = None
        with undisturbed(model, donors.token_ids_BT.device) as model:
            for rows, part in parts_of_one_width(location, donors):
                with last_tokens_only(model, location, part):
                    writes_LBTH = _writes_LBTH(model, location, part)
                if replacement_BLTH is None:
                    shape = donors.token_ids_BT.shape
                    replacement_BLTH = writes_LBTH.new_zeros(
                        shape[0], len(writes_LBTH), shape[1], writes_LBTH.shape[-1]
                    )
                replacement_BLTH[rows, :, : writes_LBTH.shape[2]] = writes_LBTH.transpose(0, 1)
        assert replacement_BLTH is not None
        return replacement_BLTH


RESAMPLE = ResampleAblation()


@torch.inference_mode(False)
@torch.no_grad()
def mean_ablation(model: PreTrainedModel, location: Location, batches: Iterable[ContrastBatch]) -> MeanAblation:
    """The mean writes over all tokens of many contrasts, each with the same weight.

    Args:
        model: A causal language model.
        location: The modules whose outputs are averaged.
        batches: The contrasts. Padding is left out.

    Raises:
        ArgumentError: There is no contrast of two tokens, a token id has no embedding in the model, a context is
            longer than its positions, or the components' outputs differ in width.
    """
    sums: list[Any] = [0.0, 0.0]
    counts = [0, 0]
    for batch in batches:
        check_inputs(location, batch)
        with undisturbed(model, batch.token_ids_BT.device) as inner:
            for _, part in parts_of_one_width(location, batch):
                with only_last_logits(inner, part):
                    # In float64: the sum is over all tokens of a data set.
                    writes_LBTH = _writes_LBTH(inner, location, part).double()
                is_token_BT = token_mask_BT(part)
                for at_0 in (False, True):
                    is_taken_BT = is_token_BT & ((torch.arange(is_token_BT.shape[1]) == 0) == at_0)
                    sums[at_0] = sums[at_0] + writes_LBTH[:, is_taken_BT.to(writes_LBTH.device)].sum(1).cpu()
                    counts[at_0] += int(is_taken_BT.sum())
    if not all(counts):
        raise ArgumentError("batches", "no contrast has two tokens to take mean writes of; give more")
    return MeanAblation(*((total_LH / count).float() for total_LH, count in zip(sums, counts, strict=True)))


def _writes_LBTH(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Tensor:
    """The writes at all places, on the device of the batch, in float32 at least."""
    device, shape = batch.token_ids_BT.device, batch.token_ids_BT.shape
    writes: dict[int, Tensor] = {}

    def keep(place: int, output: Any) -> None:
        write = first_tensor(output)
        # Some modules have the tokens of all rows in one axis.
        write_BTH = write.reshape(*shape, -1).to(device, torch.promote_types(write.dtype, torch.float32))
        # A copy, since some blocks add to it in place.
        writes[place] = write_BTH.clone()

    with outputs_changed(location.modules, keep):
        model(input_ids=batch.token_ids_BT, use_cache=False)
    widths = {write_BTH.shape[-1] for write_BTH in writes.values()}
    if len(widths) > 1:
        raise ArgumentError(
            "component",
            f"the outputs have the widths {', '.join(map(str, sorted(widths)))}; ablations other than zero take "
            "components of one width",
        )
    return torch.stack([writes[place] for place in range(len(location.modules))])
