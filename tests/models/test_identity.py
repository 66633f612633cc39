"""What identifies a model whose weights are no plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel, TorchAoConfig
from transformers.utils.quantization_config import QuantizationMethod

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.identity import fingerprint, model_identity
from lit_attr.models.location import locate
from lit_attr.models.weights.quantization import quantization_settings


class Rounded(Tensor):
    """A weight of 8-bit numbers with a scale for each row, which a linear layer can use and nothing else can."""

    numbers: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scales: Tensor) -> Rounded:
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scales.dtype, device=numbers.device)

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        self.numbers, self.scales = numbers, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scales"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            hidden, weight, *bias = args
            return func(hidden, weight.numbers * weight.scales, *bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scales)
        raise NotImplementedError(f"{func} is not implemented")


class Sealed(Rounded):
    """Like it, without a way to take it apart."""

    __tensor_flatten__ = property()

    def dequantize(self) -> Tensor:
        return self.numbers * self.scales


class Unreadable(Sealed):
    def dequantize(self) -> Tensor:
        raise NotImplementedError("no")


def rounded_model(kind: type[Rounded] = Rounded) -> PreTrainedModel:
    model = tiny_model("llama")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scales = module.weight.detach().abs().amax(1, keepdim=True) / 127
            numbers = (module.weight.detach() / scales).round().to(torch.int8)
            module.weight = nn.Parameter(kind(numbers, scales), requires_grad=False)
    return model


@pytest.mark.parametrize("kind", [Rounded, Sealed])
def test_weights_that_are_no_plain_tensors_have_a_fingerprint(kind: type[Rounded]):
    model, again = rounded_model(kind), rounded_model(kind)
    assert fingerprint(model) == fingerprint(again)
    weight: Any = again.model.layers[1].mlp.down_proj.weight
    weight.numbers[0] += 1
    assert fingerprint(model) != fingerprint(again)


def test_weights_that_cannot_be_read_are_named_in_one_line():
    with pytest.raises(UserError, match=r"^model: the numbers of its weight \S+ \(Unreadable\) cannot be read"):
        fingerprint(rounded_model(Unreadable))


def test_weights_quantised_in_place_are_named():
    assert model_identity(rounded_model())["quantization"] == "Rounded"
    assert model_identity(tiny_model("llama"))["quantization"] is None


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("method", [QuantizationMethod.TORCHAO, QuantizationMethod.QUANTO, "later"])
def test_quantisation_is_named_in_plain_text(method: Any, as_dict: bool):
    model: Any = tiny_model("llama")
    config = TorchAoConfig.__new__(TorchAoConfig)
    config.__dict__ = {"quant_method": method}
    config.to_dict = lambda: {"quant_method": method}  # type: ignore[method-assign]
    model.is_quantized = True
    model.config.quantization_config = {"quant_method": method} if as_dict else config
    assert quantization_settings(model) == {"quantization": getattr(method, "value", method)}


def test_such_a_model_is_scored_as_one_of_the_same_numbers():
    model, plain = rounded_model(), rounded_model()
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            weight: Any = module.weight
            module.weight = nn.Parameter(weight.numbers * weight.scales)
    batch = collate_contrasts(random_contrasts((3, 6)))
    expected, found = (attribute_batch(each, locate(each), batch) for each in (plain, model))
    torch.testing.assert_close(found[4:], expected[4:])
