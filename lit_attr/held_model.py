"""A LightningModule that holds a language model which it neither trains nor changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.models.language_model import is_placed
from lit_attr.models.location import Location


class HoldsModel(pl.LightningModule):
    """Moves a language model to a Trainer's device and back, and leaves all else of it as it is.

    Attributes:
        language_model: The model; None until it is loaded.
        location: The modules whose outputs are scored; None until they are located.
    """

    def __init__(self) -> None:
        super().__init__()
        self.language_model: PreTrainedModel | None = None
        self.location: Location | None = None
        self._home: torch.device | None = None

    def setup(self, stage: str) -> None:
        """Remembers the model's device: a Trainer moves it to its own device, and to the CPU in the end."""
        if self._home is not None:
            # An earlier run has failed.
            self.location = None
        if self.language_model is not None and not is_placed(self.language_model):
            self._home = next(self.language_model.parameters()).device

    def teardown(self, stage: str) -> None:
        """Moves the model back. The next run locates its modules anew, since it may be trained until then."""
        if self._home is not None:
            self.to(self._home)
        self.location, self._home = None, None

    def on_predict_model_eval(self) -> None:
        """Leaves all modes as they are: scores are computed in eval mode in any case."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leaves gradients as they are: a Trainer clears them before each run, and they are another module's."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the model, but keeps its number format; `to`, `half` and the like call this."""

        def move(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def _hold(self, model: PreTrainedModel) -> None:
        if is_placed(model):
            # Not as a submodule: Lightning would move it from the devices on which its loader has put it.
            object.__setattr__(self, "language_model", model)
        else:
            self.language_model = model

    @property
    def _model(self) -> PreTrainedModel:
        assert self.language_model is not None
        return self.language_model

    @property
    def _location(self) -> Location:
        assert self.location is not None
        return self.location
