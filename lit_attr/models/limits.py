"""What a model bounds: the tokens of a context, and the token ids that it embeds."""

from __future__ import annotations

from typing import NamedTuple

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lit_attr.models.loading import adapter_base, not_loaded
from lit_attr.models.location import token_embedding


class ModelLimits(NamedTuple):
    """The bounds of a model.

    Attributes:
        positions: How many tokens a context may have; None where the model sets no bound.
        vocabulary: How many token ids have an embedding; None where the config does not say.
    """

    positions: int | None
    vocabulary: int | None


def limits_of(config: PretrainedConfig) -> ModelLimits:
    """The limits that a model's config states."""
    text = config.get_text_config()
    # MPT has its own name for the number of positions; relative positions need none.
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return ModelLimits(positions, getattr(text, "vocab_size", None))


def model_limits(model: PreTrainedModel) -> ModelLimits:
    """The limits of a loaded model, with the size of its embedding as it is."""
    return ModelLimits(limits_of(model.config).positions, len(token_embedding(model).weight))


def read_limits(model_name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelLimits:
    """Reads the limits of a model from its config alone, without its weights; of an adapter, its base model's.

    Args:
        model_name: Hub name or local folder, as of `load_model`.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ArgumentError: There is no such model.
    """
    try:
        base = adapter_base(model_name, revision)
        name, at = (model_name, revision) if base is None else (base, None)
        config = AutoConfig.from_pretrained(name, revision=at, trust_remote_code=trust_remote_code)
    except Exception as error:  # config loading, and code that comes with a model, may raise anything
        raise not_loaded("model_name", "model", model_name, error) from error
    return limits_of(config)
