"""Attributions in three lines, without a Trainer: for notebooks.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

import os
import warnings
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any, overload

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_attr.attribution.catalogue import RuleName, rule_title
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import arguments_of
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import ContrastKey, Step, random_order
from lit_attr.facts.rows import Rejected
from lit_attr.facts.sources import SAMPLE, has_splits
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.module import AttributionModule
from lit_attr.records.encoding import batch_record, split_finite
from lit_attr.records.reading import records_of
from lit_attr.text import counted, cut
from lit_attr.views.pictures import MAX_TOKEN, component_name, components_name, fact_image, fact_title

# How many heatmaps a sequence of attributions shows.
MAX_SHOWN = 4
# Settings of the module and the data module to the arguments of `attribute`.
RENAMED = {"source": "facts", "model_name": "model", "attribute": "model"}


def attribute(
    model: str | nn.Module = DEMO_MODEL,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    facts: str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] = SAMPLE,
    *,
    layers: list[int | str] | str | int = "all",
    component: str | list[str] = "mlp",
    rule: RuleName = "gradient",
    step: Step = "divergence",
    columns: dict[str, str] | None = None,
    template: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
    **settings: Any,
) -> Attributions:
    """Attributes facts to a model's layers and tokens: what `lit-attr predict` does, in memory.

    The model is left as it was: modes, hooks, gradients and `requires_grad`. It is used on the device it is on;
    one given by name is loaded onto the CPU. Rows that cannot be used are left out, with a warning.

    Args:
        model: A causal language model of transformers, a module that contains one, such as a LightningModule, or a
            hub name or local folder. Default: the demo model of this package.
        tokenizer: A fast tokenizer, or the name or folder of one. Default: the module's attribute `tokenizer`,
            else the one that the model's name refers to.
        facts: One fact or several, as dicts; or a `source` of `CounterfactDataModule`: `sample`, a file, a hub
            name, a `datasets.Dataset`.
        layers: `all`, one index, or several, such as `4-8`, `0:12:2` or a list; negative indices count from the
            top.
        component: `mlp`, `attention`, `block`, or a dotted path from the language model with `{layer}` in it; or
            several, whose maps are shown side by side.
        rule: How scores are computed, see `lit_attr.attribution.catalogue`.
        step: Where the two answers are compared: `divergence`, or `all` for a record of every step.
        columns: Column names that differ: ours to yours, such as `{"target_true": "answer"}`.
        template: A prompt template such as `Q: {prompt} A:` in place of each row's prompt.
        limit: Keep only the first so many rows.
        max_tokens: Maximum number of tokens in a batch, padding included. Default: 1,024 on a CPU and 4,096
            elsewhere.
        settings: Other settings of `AttributionModule`, such as `min_agreement`, or `dtype` for a model given by
            name.

    Raises:
        UserError: The model or a setting cannot be used, or no row can.
    """
    # A `datasets.DatasetDict` is a mapping as well.
    rows: Any = [facts] if isinstance(facts, Mapping) and not has_splits(facts) else facts
    named = {"layers": layers, "component": component, "rule": rule, "step": step, **settings}
    with arguments_of("attribute", RENAMED, replaces_owner=True):
        data = CounterfactDataModule(
            rows, tokenizer, columns=columns, template=template, limit=limit, max_tokens=max_tokens
        )
        if isinstance(model, str):
            module = AttributionModule(model, tokenizer=tokenizer, **named)
        else:
            module = AttributionModule.from_lightning(model, tokenizer=tokenizer, **named)
        data.make_contrasts(module.data_requirements())
        records: dict[ContrastKey, Attribution] = {}
        rejected = [*data.rejected]
        for batch in _batches(data, module.input_device):
            finite, broken = split_finite(module.predict_step(batch, 0).to("cpu"))
            rejected += broken
            if finite.contrasts:
                examples = map(Attribution, records_of(batch_record(finite)))
                records.update(zip((each.key for each in finite.contrasts), examples, strict=True))
    if rejected:
        first = min(rejected)
        words = f"the first, row {first.row} (id {first.id!r}): {first.reason}"
        warnings.warn(f"attribute.facts: {counted(len(rejected), 'row')} left out; {words}", stacklevel=2)
    keys = (contrast.key for contrast in data.contrasts)
    return Attributions([records[key] for key in keys if key in records], rejected)


def _batches(data: CounterfactDataModule, device: torch.device) -> Iterator[ContrastBatch]:
    """The pilot's contrasts, one a batch, where the module has a pilot; then all others."""
    requirements = data.requirements
    keys = [contrast.key for contrast in data.contrasts if contrast.is_contrastive]
    places = {key: place for place, key in enumerate(random_order(keys, requirements.sample_seed))}
    pilot = [each for each in data.contrasts if places.get(each.key, requirements.pilot) < requirements.pilot]
    for at, contrast in enumerate(pilot):
        yield collate_contrasts([contrast], [places[contrast.key]], (at + 1, len(pilot)), is_pilot=True)
    in_pilot = {contrast.key for contrast in pilot}
    others = [contrast for contrast in data.contrasts if contrast.key not in in_pilot]
    for batch in data.in_batches(others, device) if others else ():
        yield collate_contrasts(batch, [places.get(contrast.key) for contrast in batch])


class Attribution(dict[str, Any]):
    """The record of one contrast, as in a batch file: a dict that a notebook shows as a heatmap.

    Beside the example's own fields it has the `layers` and the `rule` of its file. Each kind of `scores` of each
    component is an array of layers × tokens, in logits.
    """

    def __repr__(self) -> str:
        return f"<{fact_title(self)}: logit difference {self['logit_diff']:+.2f}>"

    def _repr_html_(self) -> str:
        return _figure(self, "100%")


class Attributions(Sequence[Attribution]):
    """Records in the order of their facts; a notebook shows the first few as heatmaps.

    Attributes:
        rejected: The rows that were left out, with the reasons.
    """

    def __init__(self, records: Sequence[Attribution], rejected: Sequence[Rejected]) -> None:
        self._records = tuple(records)
        self.rejected = tuple(sorted(rejected))

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> Attribution: ...

    @overload
    def __getitem__(self, place: slice) -> Attributions: ...

    def __getitem__(self, place: int | slice) -> Attribution | Attributions:
        if isinstance(place, slice):
            return Attributions(self._records[place], self.rejected)
        return self._records[place]

    def __iter__(self) -> Iterator[Attribution]:
        return iter(self._records)

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _repr_html_(self) -> str:
        figures = "".join(_figure(record, "min(100%, 34em)") for record in self._records[:MAX_SHOWN])
        words = self._words()
        if len(self) > MAX_SHOWN:
            words += f"; the first {MAX_SHOWN} are shown"
        return f'<p>{escape(words)}</p><div style="display:flex;flex-wrap:wrap;gap:0.5em">{figures}</div>'

    def _words(self) -> str:
        words = f"{len(self)} attributions"
        if self._records:
            preferred = sum(record["logit_diff"] > 0 for record in self._records)
            scored = f"{components_name([*self[0]['scores']])} {rule_title(self[0]['rule'])}"
            words += f", {scored}; true answer preferred in {preferred / len(self):.1%}"
        return words + (f"; {counted(len(self.rejected), 'row')} left out" if self.rejected else "")


def _figure(record: Mapping[str, Any], width: str) -> str:
    """The heatmap as a self-contained HTML image; what comes from the data is in its `alt` text."""
    content = BytesIO()
    image = fact_image(record)
    image.save(content, "PNG", optimize=True)
    components = [*record["scores"]]
    component = max(components, key=lambda each: np.abs(record["scores"][each]["sum"]).max())
    scores_LT = record["scores"][component]["sum"]
    layer, token = np.unravel_index(np.abs(scores_LT).argmax(), scores_LT.shape)
    of = f" of {component_name(component)}" if len(components) > 1 else ""
    text = cut(record["tokens"][token], MAX_TOKEN)
    alt = (
        f"{fact_title(record)}: logit difference {record['logit_diff']:+.2f}; largest score "
        f"{scores_LT[layer, token]:+.2f}{of}, at {text!r} in layer {record['layers'][layer]}"
    )
    data = b64encode(content.getvalue()).decode()
    style = f"max-width:{width};height:auto"
    return f'<img alt="{escape(alt)}" style="{style}" src="data:image/png;base64,{data}">'
