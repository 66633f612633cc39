"""The summary of a run of several components: the figures of a run of each."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from lit_attr.errors import UserError
from lit_attr.evaluation.closing import closing_lines
from lit_attr.evaluation.findings import RunFindings
from lit_attr.evaluation.summary import by_component, summarise
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import ComponentScores, ExactRecord, Example

Runs = dict[str, RunFolder]
ATTENTION = "model.layers.{layer}.self_attn"


def with_scores(example: Example, *components: str) -> Example:
    """The contrast with the scores of these components alone."""
    return msgspec.structs.replace(example, scores={name: example.scores[name] for name in components})


def of_component(found: RunFindings, component: str) -> dict:
    """The figures of one component, without those that are of all together."""
    found_of = {**by_component(found.summary)[component]}
    if found_of["agreement"] is not None:
        found_of["agreement"] = {**found_of["agreement"], "faithfulness": None}
    return found_of


@pytest.fixture
def runs(make_run: Callable, drawn: Callable, exact_of: Callable) -> Runs:
    """Runs of both components and of each, with the same contrasts and their exact effects."""
    generator = np.random.default_rng(1)
    examples, exact = drawn(24), []
    for place, each in enumerate(examples):
        shape = each.scores["mlp"].sum.shape
        each.scores[ATTENTION] = ComponentScores(*(generator.standard_normal(shape) for _ in range(2)))
        record = exact_of(each, place)
        effects_LT = each.scores[ATTENTION].sum + generator.standard_normal(shape)
        exact.append(msgspec.structs.replace(record, effects={**record.effects, ATTENTION: effects_LT}))

    def run(*components: str) -> RunFolder:
        records = [
            msgspec.structs.replace(each, effects={name: each.effects[name] for name in components})
            for each in exact
        ]
        model = {"component": ", ".join(components), "layers": [0, 1, 2], "rule": "gradient"}
        name = "-".join(components).replace("/", "")
        contrasts = [with_scores(each, *components) for each in examples]
        folder = make_run(contrasts, records, model=model, name=name, sizes=[10, 10, 4])
        folder.write_summary(summarise(folder).summary)
        return folder

    return {
        "both": run("mlp", ATTENTION),
        "turned": run(ATTENTION, "mlp"),
        "mlp": run("mlp"),
        ATTENTION: run(ATTENTION),
    }


def test_each_component_has_the_figures_of_a_run_of_its_own(runs: Runs):
    both = summarise(runs["both"])
    assert list(by_component(both.summary)) == list(both.components) == ["mlp", ATTENTION]
    assert list(both.summary["other_components"]) == [ATTENTION]
    for component in ("mlp", ATTENTION):
        alone = summarise(runs[component])
        assert "other_components" not in alone.summary
        assert of_component(both, component) == of_component(alone, component)
        views, expected = both.components[component], alone.components[component]
        assert views.relations == expected.relations
        assert views.points is not None and expected.points is not None
        for ours_N, theirs_N in zip(views.points, expected.points, strict=True):
            np.testing.assert_array_equal(ours_N, theirs_N)
    assert (
        both.summary["agreement"]["pearson"] != both.summary["other_components"][ATTENTION]["agreement"]["pearson"]
    )


def test_the_component_named_first_is_at_the_top(runs: Runs):
    turned = summarise(runs["turned"]).summary
    assert turned["profile"]["component"] == ATTENTION
    assert list(turned["other_components"]) == ["mlp"]
    both = summarise(runs["both"]).summary
    assert turned["other_components"]["mlp"]["profile"] == both["profile"]
    # Faithfulness is of the cells of all.
    assert turned["agreement"]["faithfulness"] == both["agreement"]["faithfulness"]
    assert "faithfulness" not in both["other_components"][ATTENTION]["agreement"]


def test_each_component_has_the_closing_lines_of_a_run_of_its_own(runs: Runs):
    found = closing_lines(runs["both"].path, pictures=False).splitlines()
    for component in ("mlp", ATTENTION):
        alone = closing_lines(runs[component].path, pictures=False).splitlines()
        named = ("strongest", "largest", "agreement")
        ours = [line.replace(f" of {component}", "") for line in found if f" of {component}" in line]
        assert ours == [line for line in alone if line.startswith(named)]
        assert len(ours) == 3


def test_an_empty_run_has_a_summary_of_each(make_run: Callable):
    model = {"component": "mlp, attention", "layers": [2, 5], "rule": "gradient"}
    summary = summarise(make_run([], model=model)).summary
    assert list(summary["other_components"]) == ["attention"]
    assert summary["other_components"]["attention"]["profile"]["layers"] == [2, 5]


def test_files_of_other_components_are_refused(make_run: Callable, drawn: Callable):
    first, second = drawn(2)
    second.scores["attention"] = second.scores["mlp"]
    with pytest.raises(UserError, match="another component"):
        summarise(make_run([first, second]))


def test_exact_effects_have_to_be_of_all_components(make_run: Callable, drawn: Callable, exact_of: Callable):
    (each,) = drawn(1)
    exact: ExactRecord = exact_of(each, 0)
    each.scores["attention"] = each.scores["mlp"]
    with pytest.raises(UserError, match="of other cells than the scores"):
        summarise(make_run([each], [exact]))
