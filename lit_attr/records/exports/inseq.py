"""Records as Inseq's own objects, in files that it can load, show, aggregate and merge.

Axes: L layers, T tokens of one contrast, followed by the answer's, G generated tokens (one).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_attr.errors import UserError
from lit_attr.records.exports.export import read_contrasts
from lit_attr.records.files import read_json
from lit_attr.text import safe_name

# Inseq's names of what it computes beside attributions, and ours.
STEP_SCORES = {
    "logit": "logit_true",
    "contrast_logits": "logit_false",
    "contrast_logits_diff": "logit_diff",
    "probability": "prob_true",
    "contrast_prob": "prob_false",
}
INFO = ("id", "relation_id", "step", "rule")
# Bytes of an id and of a component: with the other parts of a name, within the 255 that a file's name can have.
ID_BYTES, COMPONENT_BYTES = 100, 80


def write_inseq(folder: Path, path: Path, *, by_layer: bool) -> None:
    """Writes a file for each contrast, or for each contrast and layer.

    Args:
        folder: The run's folder.
        path: The folder to create.
        by_layer: Whether a file has the scores of one layer.

    Raises:
        UserError: Inseq is not installed.
    """
    try:
        from inseq.data.attribution import (
            CoarseFeatureAttributionSequenceOutput,
            FeatureAttributionOutput,
            MultiDimensionalFeatureAttributionSequenceOutput,
        )
        from inseq.utils.typing import TokenWithId
    except ImportError as error:
        raise UserError(f"inseq: it cannot be imported ({error}); pip install 'lit-attr[peers]'") from error
    # Of Inseq's classes, those that show scores as they are; others norm them first, by default.
    kind = CoarseFeatureAttributionSequenceOutput if by_layer else MultiDimensionalFeatureAttributionSequenceOutput
    model = read_json(folder / "manifest.json").get("model", {}).get("model_name")
    path.mkdir()
    for record in read_contrasts(folder):
        tokens = record["tokens"]
        # Inseq's own id of what is no token of a vocabulary: records lack the ids of the context.
        context = [TokenWithId(token, -1) for token in tokens]
        true, false = record["true_token"], record["false_token"]
        # As Inseq writes two tokens that are compared.
        answer = TokenWithId(f"{false} → {true}", -1)
        if record["true_token_id"] == record["false_token_id"]:
            answer = TokenWithId(true, record["true_token_id"])
        span = {"attr_pos_start": len(tokens), "attr_pos_end": len(tokens) + 1}
        step_scores = {theirs: torch.tensor([record[ours]]) for theirs, ours in STEP_SCORES.items()}
        for name, component, layers, scores in _parts(record, by_layer=by_layer):
            sequence = kind(
                source=context,
                target=[*context, answer],
                target_attributions=scores,
                step_scores=step_scores,
                sequence_scores={},
                **span,
            )
            info = {**_info(record, model), **span, "component": component, "layers": layers}
            FeatureAttributionOutput([sequence], info=info).save(path / f"{name}.json")


def file_name(record: dict[str, Any]) -> str:
    """A name that no other id and step has, also where upper and lower case are the same."""
    # Always with a hash: the text "7_step_1" is not the id 7 at step 1.
    name = safe_name(record["id"], ID_BYTES, hashed=isinstance(record["id"], str))
    return f"{name}_step_{record['step']}" if record["step"] else name


def _parts(record: dict[str, Any], *, by_layer: bool) -> Iterator[tuple[str, str, list[int], Tensor]]:
    """The files of a contrast: name, component, layers, and scores [T, G, L], or [T, G] of a single layer."""
    layers, several = record["layers"], len(record["scores"]) > 1
    for component, scores in record["scores"].items():
        name = f"ex_{file_name(record)}"
        if several:
            name = f"{safe_name(component, COMPONENT_BYTES)}_{name}"
        # Inseq too has NaN for what the answer's token contributes to itself.
        scores_TGL = torch.full((len(record["tokens"]) + 1, 1, len(layers)), torch.nan)
        scores_TGL[:-1, 0] = torch.from_numpy(scores["sum"].T)
        if not by_layer:
            yield name, component, layers, scores_TGL
            continue
        for layer, scores_TG in zip(layers, scores_TGL.unbind(-1), strict=True):
            yield f"layer_{layer}_{name}", component, [layer], scores_TG


def _info(record: dict[str, Any], model: str | None) -> dict[str, Any]:
    # The names up to the texts are Inseq's: it merges outputs whose settings are the same.
    return {
        "attribution_method": "layer_gradient_x_activation",
        "attributed_fn": "contrast_logits_diff_fn",
        "attributed_fn_args": {"contrast_targets": record["prompt"] + record["target_false"]},
        "attribute_target": False,
        "constrained_decoding": True,
        "include_eos_baseline": False,
        "model_name": model,
        "step_scores": list(STEP_SCORES),
        "input_texts": [record["prompt"]],
        "generated_texts": [record["prompt"] + record["target_true"]],
        **{field: record[field] for field in INFO},
    }
