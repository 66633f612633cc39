"""Attributions as records. The only module of this package that needs torch.

Axes: B contrasts, L layers, T tokens of one contrast, K neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import UNSET

from lit_attr.attribution.faithfulness import PERCENT, RANKINGS, Curves
from lit_attr.attribution.neurons import NeuronScores
from lit_attr.attribution.results import AttributionBatch, ExactEffects, WindowEffects
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Rejected
from lit_attr.records.schema import (
    BATCH_FORMAT,
    EXACT_FORMAT,
    FORMAT_VERSION,
    BatchRecord,
    ComponentScores,
    CurvesRecord,
    ExactRecord,
    Example,
    Neuron,
    Rankings,
    WindowsRecord,
)


def batch_record(batch: AttributionBatch) -> BatchRecord:
    """Makes the record of a batch.

    Args:
        batch: On the CPU. Every number must be finite, see :func:`split_finite`.
    """
    sum_BLT, l2_BLT, is_exact_BLT = (
        None if tensor_BLT is None else tensor_BLT.numpy()
        for tensor_BLT in (batch.scores_sum_BLT, batch.scores_l2_BLT, batch.is_exact_BLT)
    )
    assert sum_BLT is not None
    places = _places(batch.components)
    answers = zip(
        batch.logit_true_B.tolist(),
        batch.logit_false_B.tolist(),
        batch.prob_true_B.tolist(),
        batch.prob_false_B.tolist(),
        batch.rank_true_B.tolist(),
        strict=True,
    )
    examples = []
    for row, (contrast, answer) in enumerate(zip(batch.contrasts, answers, strict=True)):
        width = len(contrast.tokens)
        scores = {
            component: ComponentScores(
                # The encoder needs each array in one piece.
                np.ascontiguousarray(sum_BLT[row, each, :width]),
                UNSET if l2_BLT is None else np.ascontiguousarray(l2_BLT[row, each, :width]),
            )
            for component, each in places.items()
        }
        example = _example(contrast, *answer, scores)
        if contrast.donor is not None:
            example.donor_id = contrast.donor.id
        if batch.neurons is not None:
            example.neurons = _neurons(batch.neurons, row)
        if is_exact_BLT is not None:
            example.is_exact = {
                component: is_exact_BLT[row, each, :width].tolist() for component, each in places.items()
            }
        examples.append(example)
    return BatchRecord(
        format=BATCH_FORMAT,
        version=FORMAT_VERSION,
        layers=_layers(batch.layers),
        rule=batch.rule,
        examples=examples,
    )


def exact_record(effects: ExactEffects, *, rule: str) -> ExactRecord:
    """Makes the record of a contrast's exact effects.

    Args:
        effects: The effects, finite or refused.
        rule: The rule of the scores that they are compared with.
    """
    contrast, effects_LT = effects.contrast, effects.effects_LT.numpy()
    places = _places(effects.components)
    return ExactRecord(
        format=EXACT_FORMAT,
        version=FORMAT_VERSION,
        layers=_layers(effects.layers),
        rule=rule,
        ablation=effects.ablation,
        id=contrast.fact.id,
        step=contrast.step,
        place=effects.place,
        effects={component: np.ascontiguousarray(effects_LT[each]) for component, each in places.items()},
        is_pilot=effects.is_pilot,
        resolution=effects.resolution,
        windows=UNSET if effects.windows is None else _windows_record(effects.windows, places),
        curves=None if effects.curves is None else _curves_record(effects.curves),
        refused=effects.refused,
    )


def split_finite(batch: AttributionBatch) -> tuple[AttributionBatch, list[Rejected]]:
    """Parts the contrasts all of whose numbers are finite from the others, each with the reason."""
    finite_B = batch.is_finite_B()
    if finite_B.all():
        return batch, []
    rejected = [
        Rejected(
            contrast.fact.row,
            contrast.fact.id,
            f"step {contrast.step}: a score or logit is not finite; dtype bfloat16 or float32 may fix it",
            contrast.step,
        )
        for contrast, finite in zip(batch.contrasts, finite_B.tolist(), strict=True)
        if not finite
    ]
    return batch.select(finite_B.nonzero().flatten().tolist()), rejected


def _example(
    contrast: Contrast,
    logit_true: float,
    logit_false: float,
    prob_true: float,
    prob_false: float,
    rank_true: int,
    scores: dict[str, ComponentScores],
) -> Example:
    fact = contrast.fact
    return Example(
        id=fact.id,
        relation_id=fact.relation_id,
        prompt=fact.prompt,
        subject=fact.subject,
        target_true=fact.target_true,
        target_false=fact.target_false,
        step=contrast.step,
        tokens=list(contrast.tokens),
        roles=list(contrast.roles),
        subject_span=list(contrast.subject_span),
        true_token=contrast.true_token,
        false_token=contrast.false_token,
        true_token_id=contrast.true_token_id,
        false_token_id=contrast.false_token_id,
        logit_true=logit_true,
        logit_false=logit_false,
        logit_diff=logit_true - logit_false,
        prob_true=prob_true,
        prob_false=prob_false,
        rank_true=rank_true,
        scores=scores,
    )


def _neurons(neurons: NeuronScores, row: int) -> list[Neuron]:
    places = zip(*(each_BK[row].tolist() for each_BK in neurons), strict=True)
    # Where a contrast has fewer neurons than asked for, the last places are empty.
    return [Neuron(layer, token, neuron, score) for layer, token, neuron, score in places if layer >= 0]


def _windows_record(windows: WindowEffects, places: Mapping[str, list[int]]) -> WindowsRecord:
    effects_LT = windows.effects_LT.numpy()
    # The highest layers are the lowest of no window.
    lowest = {component: each[: len(each) - windows.size + 1] for component, each in places.items()}
    return WindowsRecord(
        windows.size,
        {component: np.ascontiguousarray(effects_LT[each]) for component, each in lowest.items()},
    )


def _curves_record(curves: Curves) -> CurvesRecord:
    comprehensiveness, sufficiency = (
        Rankings(**dict(zip(RANKINGS, values_BRP[0].tolist(), strict=True)))
        for values_BRP in (curves.comprehensiveness_BRP, curves.sufficiency_BRP)
    )
    return CurvesRecord(
        logit_diff=curves.logit_diff_B.item(),
        percent=list(PERCENT),
        comprehensiveness=comprehensiveness,
        sufficiency=sufficiency,
    )


def _places(components: Sequence[str]) -> dict[str, list[int]]:
    """The places of each component on the layer axis."""
    return {
        name: [place for place, component in enumerate(components) if component == name]
        for name in dict.fromkeys(components)
    }


def _layers(layers: Sequence[int]) -> list[int]:
    """The layers that each component has."""
    return [*dict.fromkeys(layers)]
