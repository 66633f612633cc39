"""Settings of loading that few runs change, and where nested settings are found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

from lit_attr.attribution.catalogue import CATALOGUE, AblationName, AblationOptions, RuleOptions
from lit_attr.errors import ArgumentError, arguments_of, check_choice
from lit_attr.facts.contrasts import Step
from lit_attr.models.layers import Layers, check_layers
from lit_attr.models.loading import Dtype
from lit_attr.models.location import named_components
from lit_attr.records.screening import Only


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded, and how it is tested on loading.

    Args:
        revision: Branch, tag or commit of the model on the hub.
        attn_implementation: Attention code that transformers uses, such as `sdpa` or `eager`. Default:
            transformers' choice, but `eager` in bfloat16 on a CPU.
        llm_int8_threshold: With `8bit`, the magnitude from which a feature is computed in float16. It is so for
            all rows of a batch if for one. With 0 there is no such feature, and a row does not depend on the
            others of its batch. Default: bitsandbytes' 6.
        offload_folder: Folder for weights that `device_map` leaves on disk, if transformers asks for one.
        trust_remote_code: Run code that comes with the model.
        use_safetensors: Read weights from safetensors files only; false reads pickled ones as well.
        self_test: Test on loading that each scored output is what the component adds to the residual stream. Where
            it is not, the write is searched for elsewhere. Set it to false only for a model that cannot pass.
    """

    revision: str | None = None
    attn_implementation: str | None = None
    llm_int8_threshold: float | None = None
    offload_folder: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    self_test: bool = True

    def of_weights(self) -> dict[str, Any]:
        """The options as arguments of `load_model`: all but the test."""
        options = asdict(self)
        del options["self_test"]
        return options


# Where an argument of a pure function is found among the settings of `AttributionModule`.
RENAMED = {
    **{name: f"loading.{name}" for name in LoadingOptions.__dataclass_fields__},
    **{name: f"rule_options.{name}" for name in RuleOptions.__dataclass_fields__},
    **{name: f"ablation_options.{name}" for name in AblationOptions.__dataclass_fields__},
    "steps": "rule_options.integration_steps",
    # Errors about a model object are reported under its name.
    "model": "model_name",
}


@contextmanager
def arguments_of_passes() -> Iterator[None]:
    """Names the settings of module and data module that arguments of passes through the model come from."""
    of_data = arguments_of("data", {"batch": "source"}, only=("batch", "source", "max_tokens"))
    with arguments_of("model", RENAMED), of_data:
        yield


# The words that settings of the module take.
WORDS: Mapping[str, Collection[str]] = {
    "rule": CATALOGUE,
    "ablation": get_args(AblationName),
    "only": get_args(Only),
    "step": get_args(Step),
    "dtype": get_args(Dtype),
}


def check_settings(layers: Layers, component: str | Sequence[str], verify: int, words: Mapping[str, str]) -> None:
    """Checks settings of the module before a model is loaded: Python takes any value.

    Args:
        layers: The layers.
        component: The components.
        verify: The size of the sample.
        words: Settings that take one of `WORDS`, by name.

    Raises:
        ArgumentError: One has another value than it takes.
    """
    check_layers(layers)
    named_components(component)
    if verify < 0:
        raise ArgumentError("verify", f"{verify} is less than 0; give 0 or more")
    for name, value in words.items():
        check_choice(name, value, WORDS[name])


def refuse_loading_options(loading: LoadingOptions, **settings: Any) -> None:
    """Refuses settings of loading beside a model object, which is loaded already.

    Args:
        loading: The options of loading.
        settings: Other settings of loading, None where they are not given.

    Raises:
        ArgumentError: One of them is given.
    """
    settings |= {
        "loading.revision": loading.revision,
        "loading.llm_int8_threshold": loading.llm_int8_threshold,
        "loading.attn_implementation": loading.attn_implementation,
        "loading.offload_folder": loading.offload_folder,
    }
    for name, value in settings.items():
        if value is not None:
            reason = "it is for a model that is loaded here, and a model object was given; leave it out"
            raise ArgumentError(name, reason, "model")
