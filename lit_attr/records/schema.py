"""The record format, declared once: what is in a batch file and in a file of exact effects.

The files are read against these declarations, and the shipped JSON Schema and docs/records.md are made from them.
Axes: L layers, T tokens of one contrast, P percentages.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from lit_attr.facts.roles import Role

Version = Literal[2]
BatchFormat = Literal["lit-attr/attributions"]
ExactFormat = Literal["lit-attr/exact"]
FORMAT_VERSION: Version = 2
BATCH_FORMAT: BatchFormat = "lit-attr/attributions"
EXACT_FORMAT: ExactFormat = "lit-attr/exact"
MANIFEST_FORMAT = "lit-attr/manifest"
ERROR_MODEL_FORMAT = "lit-attr/error-model"
SUMMARY_FORMAT = "lit-attr/summary"

_ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_UNIT = "One row a layer, one number a token, in logits."

Index = Annotated[int, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
SignedScores = Annotated[
    NDArray[np.float64],
    Meta(
        description="The signed score: the sum over h of activation times gradient, or what the rule defines "
        f"instead. {_UNIT}",
        extra_json_schema=_ROWS,
    ),
]
ScoreNorms = Annotated[
    NDArray[np.float64],
    Meta(
        description=f"The l2 norm of the same products over h, for rules that have them. {_UNIT}",
        extra_json_schema=_ROWS,
    ),
]
Effects = Annotated[
    NDArray[np.float64],
    Meta(
        description=f"How much the logit difference falls when the write is replaced. {_UNIT}",
        extra_json_schema=_ROWS,
    ),
]
Layers = Annotated[
    list[Index],
    Meta(
        min_length=1, description="The layer of each row of the scores.", extra_json_schema={"uniqueItems": True}
    ),
]
RuleField = Annotated[str, Meta(description="The rule that computed the scores, such as gradient.")]
FactId = Annotated[int | str, Meta(description="The fact's own id, or its row number in the source.")]
RunField = Annotated[str, Meta(description="The run that wrote the file; its manifest names it.")]
DigestField = Annotated[
    str,
    Meta(
        description="The first 32 hexadecimal digits of the SHA-256 hash of the file's bytes before this field, "
        "comma excluded."
    ),
]
StepField = Annotated[Index, Meta(description="Which token of the answers is compared, from 0.")]


class ComponentScores(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The scores of one component."""

    sum: SignedScores
    l2: ScoreNorms | UnsetType = UNSET


class Neuron(Struct, forbid_unknown_fields=True):
    """A hidden unit of an MLP, the input of its down projection, at one token."""

    layer: Annotated[Index, Meta(description="The layer of the MLP.")]
    token: Annotated[Index, Meta(description="The position of the token, from 0.")]
    neuron: Annotated[Index, Meta(description="The index of the hidden unit.")]
    score: Annotated[
        float, Meta(description="Its activation times the gradient of the logit difference there. In logits.")
    ]


class Example(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A contrast: what the model was asked, what it answered, and the scores."""

    id: FactId
    relation_id: Annotated[str, Meta(description="Wikidata property such as P36, or empty.")]
    prompt: Annotated[str, Meta(description="The text that the model continues.")]
    subject: Annotated[str, Meta(description="What the prompt is about.")]
    target_true: Annotated[str, Meta(description="The true answer as it continues the prompt.")]
    target_false: Annotated[str, Meta(description="The false answer as it continues the prompt.")]
    step: StepField
    tokens: Annotated[
        list[str],
        Meta(min_length=1, description="The text of each token of the context; special tokens by name."),
    ]
    roles: Annotated[list[Role], Meta(min_length=1, description="The role of each token.")]
    subject_span: Annotated[
        list[Index],
        Meta(min_length=2, max_length=2, description="The subject's first token, and the one after its last."),
    ]
    true_token: Annotated[str, Meta(description="The true answer's token at the step.")]
    false_token: Annotated[str, Meta(description="The false answer's token at the step.")]
    true_token_id: Annotated[Index, Meta(description="Its id in the vocabulary.")]
    false_token_id: Annotated[Index, Meta(description="Its id in the vocabulary.")]
    logit_true: Annotated[float, Meta(description="The true token's logit after the last token.")]
    logit_false: Annotated[float, Meta(description="The false token's logit after the last token.")]
    logit_diff: Annotated[float, Meta(description="logit_true - logit_false.")]
    prob_true: Annotated[Probability, Meta(description="The true token's probability.")]
    prob_false: Annotated[Probability, Meta(description="The false token's probability.")]
    rank_true: Annotated[
        Index, Meta(description="How many tokens are more likely than the true one; 0: a known fact.")
    ]
    scores: Annotated[
        dict[str, ComponentScores],
        Meta(
            min_length=1,
            description="The scores by component: mlp, attention, block, or a module path with {layer} in it.",
        ),
    ]
    is_exact: (
        Annotated[
            dict[str, list[list[bool]]],
            Meta(
                description="By component, the cells whose sum is the exact effect, in an adaptive run. One row a "
                "layer, one entry a token."
            ),
        ]
        | UnsetType
    ) = UNSET
    donor_id: (
        Annotated[int | str, Meta(description="The id of the fact whose writes replace those of this one.")]
        | UnsetType
    ) = UNSET
    neurons: (
        Annotated[
            list[Neuron],
            Meta(
                description="The neurons with the largest scores of either sign, the largest first, if asked for."
            ),
        ]
        | UnsetType
    ) = UNSET


class BatchRecord(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Contrastive attribution of one batch: OUT/batches/*.json."""

    format: BatchFormat
    version: Version
    layers: Layers
    rule: RuleField
    run: RunField | UnsetType = UNSET
    examples: Annotated[list[Example], Meta(min_length=1, description="The contrasts of the batch.")]
    digest: DigestField | UnsetType = UNSET


class Rankings(Struct, forbid_unknown_fields=True):
    """A curve for each ranking of the cells, in logits: one number a percentage."""

    scores: Annotated[list[float], Meta(description="By the scores.")]
    exact: Annotated[list[float], Meta(description="By the exact effects.")]
    random: Annotated[list[float], Meta(description="At random.")]


class CurvesRecord(Struct, forbid_unknown_fields=True):
    """Faithfulness curves of one contrast."""

    logit_diff: Annotated[float, Meta(description="logit_true - logit_false of the whole model.")]
    percent: Annotated[list[int], Meta(description="How many of the cells count as the top, in percent.")]
    comprehensiveness: Annotated[
        Rankings, Meta(description="What the logit difference loses without the top cells.")
    ]
    sufficiency: Annotated[
        Rankings, Meta(description="What the logit difference loses with nothing but the top cells.")
    ]


class WindowsRecord(Struct, forbid_unknown_fields=True):
    """The exact effects of several layers' writes, replaced together."""

    size: Annotated[int, Meta(ge=2, description="How many consecutive layers are replaced together.")]
    effects: Annotated[
        dict[str, Effects],
        Meta(min_length=1, description="The effects by component, one row for the lowest layer of each window."),
    ]


class ExactRecord(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Exact effects of one contrast, and its faithfulness curves: OUT/exact/*.json."""

    format: ExactFormat
    version: Version
    layers: Layers
    rule: Annotated[str, Meta(description="The rule of the scores that are compared with the effects.")]
    run: RunField | UnsetType = UNSET
    ablation: Annotated[str, Meta(description="What replaces an ablated write: zero, mean or resample.")]
    id: FactId
    step: StepField
    place: Annotated[
        int | None,
        Meta(description="The contrast's place in the run's random order; null where the run has no order."),
    ]
    is_pilot: Annotated[
        bool,
        Meta(
            description="Whether the error model of an adaptive run was fitted to the contrast; its scores are "
            "then exact, and it judges nothing."
        ),
    ] = False
    effects: Annotated[
        dict[str, Effects], Meta(min_length=1, description="The exact effects by component, as scores.")
    ]
    resolution: Annotated[
        float,
        Meta(ge=0, description="In logits: effects of smaller magnitude are rounding noise of the number format."),
    ]
    windows: (
        Annotated[WindowsRecord, Meta(description="The effects of windows of layers, where they are asked for.")]
        | UnsetType
    ) = UNSET
    curves: Annotated[
        CurvesRecord | None, Meta(description="The contrast's faithfulness curves; null where there are none.")
    ]
    refused: Annotated[
        str | None,
        Meta(description="Why there are no exact effects; null where there are. The effects are 0 then."),
    ]
    digest: DigestField | UnsetType = UNSET
