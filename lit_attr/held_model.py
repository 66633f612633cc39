"""A LightningModule that holds a language model which it neither trains nor changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.errors import UserError
from lit_attr.models.language_model import is_placed
from lit_attr.models.loading import load_model
from lit_attr.models.location import Location
from lit_attr.trainers import shares_model

if TYPE_CHECKING:
    from lit_attr.models.weights.sharding import SharedBlocks


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
        self._shared: SharedBlocks | None = None
        self._has_left = False

    def setup(self, stage: str) -> None:
        """Remembers the model's device: a Trainer moves it to its own device, and to the CPU in the end.

        Raises:
            UserError: Each process is to have a part of a model that is loaded whole, or the reverse.
        """
        self._has_left = False
        is_shared = self._shared is not None
        if self.language_model is not None and self._trainer and is_shared != shares_model(self._trainer):
            raise UserError(
                "model: it is loaded whole where processes share it, or shared where each needs the whole; make a "
                "new module, with the model's name or folder"
            )
        if self._home is not None:
            # An earlier run has failed.
            self.location = None
        if self.language_model is not None and not is_placed(self.language_model):
            self._home = next(self.language_model.parameters()).device

    def teardown(self, stage: str) -> None:
        """Moves the model back. The next run locates its modules anew, since it may be trained until then."""
        self.await_others(at_end=True)
        if self._home is not None:
            self.to(self._home)
        self.location, self._home = None, None

    def await_others(self, *, at_end: bool = False) -> None:
        """Where processes share the model, takes part in the passes of the others until all of them wait here.

        Args:
            at_end: Whether this process makes no more passes; it then takes part until no other makes any.
        """
        if self._shared is None or self._has_left:
            return
        if at_end:
            self._shared.leave()
            self._has_left = True
        else:
            self._shared.wait()

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

    def _load(self, trainer: pl.Trainer | None, model_name: str, **options: Any) -> None:
        """Loads the model as the Trainer's processes need it, each the whole or each a part.

        Args:
            trainer: The Trainer.
            model_name: As of `load_model`.
            options: Other options of `load_model`.
        """
        if trainer is None or not shares_model(trainer):
            device = trainer.strategy.root_device if trainer is not None else None
            self._hold(load_model(model_name, device=device, **options))
            return
        # Imported here: it takes seconds, and few runs need it.
        from lit_attr.models.weights.sharding import SharedBlocks, load_sharded_model

        model = load_sharded_model(model_name, trainer.world_size, trainer.strategy.root_device, **options)
        self._shared = SharedBlocks(model)
        self._hold(model)

    def _hold(self, model: PreTrainedModel) -> None:
        if is_placed(model) or self._shared is not None:
            # Not as a submodule: Lightning would move it from the devices on which its loader has put it. What
            # FSDP2 has gathered would be freed.
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
