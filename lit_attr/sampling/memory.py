"""Batches that exhaust the memory are attributed in halves."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import ArgumentError, warn_about
from lit_attr.facts.batches import ContrastBatch


class Halving:
    """Attributes batches, in halves where memory runs out on one or has run out on one as large."""

    def __init__(self) -> None:
        self._too_many_tokens: float = math.inf

    def attribute(
        self,
        batch: ContrastBatch,
        attribute: Callable[[ContrastBatch], AttributionBatch],
        *,
        is_shared: bool = False,
    ) -> AttributionBatch:
        """Attributes a batch.

        Args:
            batch: The contrasts.
            attribute: Attributes a batch whole.
            is_shared: Whether processes share the model. FSDP2 then supports no pass after one that has failed.

        Raises:
            ArgumentError: The memory does not suffice for a single row, or for a batch of a shared model.
        """
        tokens, rows = batch.token_ids_BT.numel(), len(batch.contrasts)
        if rows == 1 or tokens < self._too_many_tokens:
            try:
                return attribute(batch)
            except RuntimeError as error:
                if not is_oom_error(error):
                    raise
                if is_shared:
                    raise ArgumentError(
                        "max_tokens", f"the memory does not suffice for a batch of {tokens} tokens; set fewer"
                    ) from error
                if rows == 1:
                    raise ArgumentError(
                        "source",
                        f"the memory does not suffice for a single row of {tokens} tokens; a smaller model.dtype "
                        "or fewer model.layers need less",
                    ) from error
            # The error, and with it the tensors of its frames, is released here.
            garbage_collection_cuda()
            self._too_many_tokens = tokens
            warn_about("max_tokens", "the memory does not suffice for a batch; continuing with halves of it")
        first, second = batch.split()
        return self.attribute(first, attribute).join(self.attribute(second, attribute))
