"""What the records of a finished run show, on numbers made up for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.evaluation.findings import read_findings, summary_page
from lit_attr.evaluation.summary import RunSummary
from lit_attr.facts.contrasts import ROLES
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import OutputFolder


@pytest.fixture
def folder(batch: AttributionBatch, tmp_path: Path) -> OutputFolder:
    """Twenty-four contrasts with logit differences -12 to 11, every third of relation P1, the others of P2."""
    folder = OutputFolder(tmp_path)
    folder.open({"model": {}, "data": {}}, [])
    record = batch_record(batch.select([0]))
    (example,) = record["examples"]
    for row in range(24):
        changed = {"id": row, "logit_diff": float(row - 12), "relation_id": f"P{1 if row % 3 == 0 else 2}"}
        scores = {kind: scores_LT * 0 + row for kind, scores_LT in example["scores"].items()}
        contrast = batch.contrasts[0]._replace(fact=batch.contrasts[0].fact._replace(id=row))
        folder.write_batch(contrast, {**record, "examples": [{**example, **changed, "scores": scores}]})
    return folder


def test_median_and_extremes(folder: OutputFolder):
    findings = read_findings(folder, ids=[5, 99], largest=3)
    assert findings.median_logit_diff == -0.5
    assert [example["id"] for example in findings.strongest] == list(range(23, 13, -1))
    assert [example["id"] for example in findings.failures] == list(range(10))
    assert [example["id"] for example in findings.asked_for] == [5]
    assert [example["id"] for example in findings.largest] == [0, 1, 23]


def test_each_relation_has_a_profile(folder: OutputFolder):
    relations = read_findings(folder).relations
    last = ROLES.index("last")
    assert {name: profile["contrasts"][last] for name, profile in relations.items()} == {"P1": 8, "P2": 16}
    assert relations["P1"]["mean_score"][0][last] == pytest.approx(sum(range(0, 24, 3)) / 8)


def test_the_page_escapes_what_comes_from_the_data(folder: OutputFolder):
    findings = read_findings(folder)
    findings.strongest[0]["prompt"] = "<script>alert(1)</script> | [x](http://x) *b* `c` # d"
    summary = RunSummary([0, 1, 2], "mlp", "gradient").compute() | {"rejected": 0}
    page = summary_page(summary, {"model": {"model_name": "a|b"}, "data": {}}, findings)
    assert "<script>" not in page
    assert r"&lt;script&gt;alert\(1\)&lt;/script&gt; \| \[x\]\(http://x\) \*b\* \`c\` \# d" in page
    assert r"a\|b" in page


def test_the_page_tells_how_far_each_layer_can_be_trusted(folder: OutputFolder):
    layer = {"pearson": 0.25, "spearman": None, "same_sign": 0.5, "top_3_overlap": 1.0}
    trust = {"contrasts": 4, "pearson": 0.75, "spearman": 0.5, "same_sign": 0.9, "by_layer": {"0": layer}}
    summary = RunSummary([0], "mlp", "gradient").compute() | {"rejected": 0, "trust": trust}
    page = summary_page(summary, {"model": {}, "data": {}}, read_findings(folder))
    assert r"do not rely on the scores of layer 0 \(r = 0\.25\)" in page
    lines = page.splitlines()
    start = lines.index("| layer | pearson | spearman | same sign | top 3 overlap |")
    assert lines[start + 2 : start + 4] == [
        r"| all | \+0\.75 | \+0\.50 | \+0\.90 | \- |",
        r"| 0 | \+0\.25 | \- | \+0\.50 | \+1\.00 |",
    ]
    assert "## Trust" not in summary_page(
        summary | {"trust": None}, {"model": {}, "data": {}}, read_findings(folder)
    )
