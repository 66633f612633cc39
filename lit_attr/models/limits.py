"""What a model bounds: the tokens of a context, the widths of a batch, and the token ids that it embeds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, cast

from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_attr.errors import ArgumentError
from lit_attr.models.loading import adapter_base, gguf_place, not_loaded


class ModelLimits(NamedTuple):
    """The bounds of a model.

    Attributes:
        positions: How many tokens a context may have; None where the model sets no bound.
        vocabulary: How many token ids have an embedding; None where the config does not say.
        switches: The widths after which the rotary frequencies of all tokens change, as in LongRoPE. A batch may
            not reach across one, or its short rows would not score as they do alone.
        own_beyond: Beyond this width each width has frequencies of its own, as in dynamic NTK scaling; None where
            that is not so.
    """

    positions: int | None
    vocabulary: int | None
    switches: tuple[int, ...] = ()
    own_beyond: int | None = None

    def width_class(self, width: int) -> int:
        """The class of a width: rows may share a batch where their lengths are of one class."""
        if self.own_beyond is not None and width > self.own_beyond:
            return width
        return bisect_left(self.switches, width)

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Checks that all tokens have an embedding.

        Raises:
            ArgumentError: Some have none, as a fault of `tokenizer`.
        """
        if self.vocabulary is not None and len(tokenizer) > self.vocabulary:
            reason = f"it has {len(tokenizer)} tokens, but the model embeds {self.vocabulary}"
            raise ArgumentError("tokenizer", f"{reason}; use the model's own tokenizer")


def limits_of(config: PretrainedConfig) -> ModelLimits:
    """The limits that a model's config states."""
    text = config.get_text_config()
    # MPT has its own name for the number of positions; relative positions need none.
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(positions, int):
        return ModelLimits(positions, vocabulary)
    try:
        frequencies = [_frequencies_at(text, width) for width in range(positions, positions + 3)]
        if len({*frequencies}) == len(frequencies):
            # They grow with every token from there on, by which the model is meant to go beyond its positions.
            positions = max(positions, int(positions * _growth(text)))
        return ModelLimits(
            positions, vocabulary, *_switches(lambda width: _frequencies_at(text, width), positions)
        )
    except (
        Exception
    ):  # a config of code that comes with a model may hold anything; the self-test sees what it does
        return ModelLimits(positions, vocabulary)


def model_limits(model: PreTrainedModel) -> ModelLimits:
    """The limits of a loaded model, with the size of its embedding as it is."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    return limits_of(model.config)._replace(vocabulary=len(embedding.weight))


def read_limits(
    model_name: str,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelLimits:
    """Reads the limits of a model from its config alone, without its weights; of an adapter, its base model's.

    Args:
        model_name: Hub name, local folder or GGUF file, as of `load_model`.
        gguf_file: The name of a GGUF file in that folder or repository.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ArgumentError: There is no such model.
    """
    place, gguf_file = gguf_place(model_name, gguf_file)
    given = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        base = adapter_base(place, revision) if gguf_file is None else None
        name, at = (place, revision) if base is None else (base, None)
        config = AutoConfig.from_pretrained(name, revision=at, trust_remote_code=trust_remote_code, **given)
    except ArgumentError:
        raise
    except Exception as error:  # config loading, and code that comes with a model, may raise anything
        raise not_loaded("model_name", "model", model_name, error) from error
    return limits_of(config)


def _rotary_types(text: PretrainedConfig) -> dict[str | None, Mapping[str, Any]]:
    """The rotary parameters that a config states for all layers, or for each type of layer."""
    parameters: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    nested: dict[str | None, Mapping[str, Any]] = {
        key: value for key, value in parameters.items() if isinstance(value, Mapping) and "rope_type" in value
    }
    return nested or {None: parameters}


def _frequencies_at(text: PretrainedConfig, width: int) -> Hashable:
    """The rotary frequencies of a pass of a width, by transformers' own functions."""
    found: list[Hashable] = []
    for layer_type, parameters in _rotary_types(text).items():
        function = ROPE_INIT_FUNCTIONS.get(parameters.get("rope_type", "default"))
        if function is not None:
            # Functions of models with one type for all layers need not know layer types.
            of_type = {} if layer_type is None else {"layer_type": layer_type}
            frequencies, scaling = function(text, device="cpu", seq_len=width, **of_type)
            found.append((tuple(frequencies.tolist()), float(scaling)))
    return tuple(found)


def _growth(text: PretrainedConfig) -> float:
    """How far beyond its positions a model with growing frequencies is meant to go."""
    factors = [parameters["factor"] for parameters in _rotary_types(text).values() if "factor" in parameters]
    return float(min(factors, default=1))


def _switches(frequencies_at: Callable[[int], Hashable], widest: int) -> tuple[tuple[int, ...], int | None]:
    """The widths after which frequencies change, and the one beyond which they change with every token."""
    switches: list[int] = []
    start, last = 1, frequencies_at(widest)
    while (here := frequencies_at(start)) != last:
        # The last width with these frequencies.
        same, other = start, widest
        while other - same > 1:
            middle = (same + other) // 2
            same, other = (middle, other) if frequencies_at(middle) == here else (same, middle)
        if switches and same == start:
            return tuple(switches), start - 1
        switches.append(same)
        start = other
    return tuple(switches), None
