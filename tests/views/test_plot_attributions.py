"""`scripts/plot_attributions.py`: the numbers it draws, the files it writes, what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from project import REPOSITORY

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.callbacks.metrics import RoleLayerProfile
from lit_attr.facts.contrasts import ROLES, role_mask_BRT
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import OutputFolder

_SPEC = importlib.util.spec_from_file_location(
    "plot_attributions", REPOSITORY / "scripts" / "plot_attributions.py"
)
plots = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(plots)
FIRST, LAST_SUBJECT, LAST = ROLES.index("first subject"), ROLES.index("last subject"), ROLES.index("last")


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context(plots.STYLE):
        yield


def write(path: Path, examples: list[dict], *, layers: int = 2, model: str = "tiny") -> Path:
    """A run of one batch file with hand-made examples."""
    folder = OutputFolder(path)
    folder.open({"model": {"model_name": model}, "data": {}}, [])
    head = {"format": "lit-attr/attributions", "version": 1, "component": "mlp", "rule": "gradient"}
    batch = {**head, "layers": list(range(layers)), "examples": examples}
    (folder.batches / "0.json").write_text(json.dumps(batch))
    return path


def example(identity: int | str, scores_LT: list[list[float]], **other) -> dict:
    """Four tokens, `A B is in`, the subject the first two."""
    return {
        "id": identity,
        "relation_id": "P17",
        "prompt": "A B is in",
        "subject": "A B",
        "target_true": " X",
        "target_false": " Y",
        "step": 0,
        "tokens": ["A", " B", " is", " in"],
        "roles": ["first subject", "last subject", "first subsequent", "last"],
        "subject_span": [0, 2],
        "true_token_id": 1,
        "false_token_id": 2,
        **dict.fromkeys(("logit_true", "logit_false", "logit_diff", "prob_true", "prob_false", "rank_true"), 0),
        "scores": {"sum": scores_LT, "l2": scores_LT},
        **other,
    }


ONE = example("one", [[10, 1, 2, 4], [20, 3, 0, 8]])
TWO = example("two", [[-5, 2, 0, 6], [-1, 1, 0, -4]], rank_true=3, relation_id="P36")
SAME = example("same", [[9, 9, 9, 9], [9, 9, 9, 9]], false_token_id=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run", [ONE, TWO, SAME])


def drawn(axis) -> np.ndarray:
    """The numbers behind a map, NaN where there is none."""
    return np.ma.filled(axis.collections[0].get_array().astype(float), np.nan)


def texts(figure) -> list:
    return [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text().strip()]


def test_means_and_confidence_are_those_computed_by_hand(run: Path):
    each = plots.estimate(plots.read_run(run).means_NLR)
    # Two contrasts: the one of a token with itself is left out.
    assert each.count_R.tolist() == [0, 2, 0, 2, 2, 0, 2]
    np.testing.assert_allclose(each.mean_LR[:, LAST], [5, 2])
    np.testing.assert_allclose(each.mean_LR[:, FIRST], [2.5, 9.5])
    assert np.isnan(each.mean_LR[:, 0]).all()
    # Of a and b the standard error is |a - b| / 2.
    np.testing.assert_allclose(each.half_LR[:, LAST], [1.959964 * 1, 1.959964 * 6], rtol=1e-6)


def test_means_are_those_of_the_summary(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.open({"model": {}, "data": {}}, [])
    folder.write_batch(batch.contrasts[0], batch_record(batch))
    metric = RoleLayerProfile(3)
    contrasts = batch.contrasts
    mask_BRT = role_mask_BRT([each.roles for each in contrasts], [each.subject_span for each in contrasts])
    metric.update(batch.scores_sum_BLT, mask_BRT)
    mean_LR, error_LR, count_R = metric.compute()
    each = plots.estimate(plots.read_run(tmp_path / "out").means_NLR)
    np.testing.assert_allclose(each.mean_LR, mean_LR.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(each.half_LR, 1.959964 * error_LR.numpy(), rtol=1e-4, atol=1e-7)
    assert each.count_R.tolist() == count_R.tolist()


def test_one_contrast_has_a_mean_and_no_band(tmp_path: Path):
    each = plots.estimate(plots.read_run(write(tmp_path / "run", [ONE])).means_NLR)
    np.testing.assert_allclose(each.mean_LR[:, LAST], [4, 8])
    assert np.isnan(each.half_LR).all()


def test_maps_show_the_means(run: Path):
    taken = plots.read_run(run)
    everything, known = plots.draw_roles(taken).axes[:2]
    np.testing.assert_allclose(drawn(everything)[LAST], [5, 2])
    np.testing.assert_allclose(drawn(known)[LAST], [4, 8])
    assert np.isnan(drawn(known)[0]).all()
    assert [label.get_text() for label in known.get_yticklabels()][LAST] == "last\nn = 1"
    # On one scale, the largest magnitude of both.
    assert everything.collections[0].get_clim() == known.collections[0].get_clim() == (-20, 20)
    first, second = plots.draw_relations(taken, 5).axes[:2]
    assert first.get_title() == "P17 (n = 1)\n… is in"
    np.testing.assert_allclose(drawn(second)[LAST], [6, -4])


def test_profiles_draw_mean_and_band_and_windows_of_ten_layers(tmp_path: Path):
    # Layer l scores l at every token, and two more in the second fact.
    facts = [example(shift, [[layer + shift] * 4 for layer in range(12)]) for shift in (0, 2)]
    figure = plots.draw_profiles(plots.read_run(write(tmp_path / "run", facts, layers=12)))
    layer, window = figure.axes[2:4]
    (line,) = [line for line in layer.lines if len(line.get_xdata()) == 12]
    np.testing.assert_allclose(line.get_ydata(), np.arange(12) + 1)
    band = layer.collections[-1].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [1 - 1.959964, 12 + 1.959964], rtol=1e-6)
    (line,) = [line for line in window.lines if len(line.get_xdata()) == 12]
    # At layer 0 there are layers 0 to 4, at 5 there are 0 to 9, at 11 there are 6 to 11; and 1 for each.
    sums = line.get_ydata()
    np.testing.assert_allclose(sums[[0, 5, 11]], [10 + 5, 45 + 10, 51 + 6])


def test_few_or_parted_layers_have_no_windows(run: Path):
    taken = plots.read_run(run)
    assert len(plots.draw_profiles(taken).axes) == 2
    apart = taken._replace(layers_L=np.arange(0, 24, 2), means_NLR=taken.means_NLR.repeat(6, 1))
    assert len(plots.draw_profiles(apart).axes) == 2


def test_one_layer_has_its_interval_as_a_bar(tmp_path: Path):
    facts = [example(shift, [[shift] * 4]) for shift in (0, 2)]
    axis = plots.draw_profiles(plots.read_run(write(tmp_path / "run", facts, layers=1))).axes[1]
    ends = axis.collections[0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [1 - 1.959964, 1 + 1.959964], rtol=1e-6)


def test_a_fact_is_scaled_without_its_first_token(run: Path):
    (record,) = plots.pick_facts(plots.read_run(run), 6, ["one"], known=False)
    axis = plots.draw_facts([record], "tiny mlp").axes[0]
    np.testing.assert_array_equal(drawn(axis), np.array(ONE["scores"]["sum"]).T)
    assert axis.collections[0].get_clim() == (-8, 8)
    assert axis.yaxis_inverted()
    hatched = [patch.get_xy() for patch in axis.patches if patch.get_hatch()]
    assert hatched == [(0, 0), (1, 0)]
    labels = axis.get_yticklabels()
    assert [label.get_text() for label in labels] == ["A", "␣B", "␣is", "␣in"]
    assert [label.get_fontweight() for label in labels] == ["bold", "bold", "normal", "normal"]
    assert axis.get_title("left") == "A B is in → X / Y\nlogit difference +0.00 · known"


def test_facts_are_spread_over_the_run_or_asked_for(tmp_path: Path):
    facts = [example(number, [[1] * 4] * 2, rank_true=number % 2) for number in range(9)]
    taken = plots.read_run(write(tmp_path / "run", facts))

    def picked(count: int, ids: list[str], known: bool) -> list[int]:
        return [record["id"] for record in plots.pick_facts(taken, count, ids, known=known)]

    assert picked(3, [], False) == [0, 4, 8]
    assert picked(2, [], True) == [0, 8]
    assert picked(20, [], True) == [0, 2, 4, 6, 8]
    assert picked(0, [], False) == []
    assert picked(3, ["7", "2"], True) == [7, 2]


def test_text_that_the_font_lacks_is_escaped_and_long_text_shortened():
    assert plots.fit(" 日", "token") == r"␣\u65e5"
    assert plots.fit("של $x$", "prompt") == r"\u05e9\u05dc $x$"
    assert plots.fit("e\u0301", "prompt") == "é"
    short = plots.fit("日" * 50 + "x" * 200, "prompt")
    assert len(short) <= 120 and "…" in short and short.endswith("x")


def test_nothing_is_clipped_nor_read_as_mathtext_nor_lacks_a_glyph(tmp_path: Path, recwarn):
    odd = {
        "prompt": "The $x_1^2$ of 日本 🎉🦄, " + "said by many to be so, " * 30 + "is",
        "target_true": " " + "Remedios " * 20,
        "tokens": ["\U0001f984", " $x$", r" \frac", " abcdefghijklmnopqrstuvwxyz"],
        "relation_id": "P" * 60,
        "rank_true": 12345,
    }
    facts = [example(number, [[1, 2, 3, 4]] * 48, **odd, step=number) for number in range(5)]
    long = 300
    facts[4] |= {"tokens": ["word"] * long, "roles": ["further"] * (long - 1) + ["last"]}
    facts[4]["scores"] = dict.fromkeys(("sum", "l2"), [[0.5] * long] * 48)
    folder = write(tmp_path / "run", facts, layers=48, model="m" * 80)
    taken = plots.read_run(folder)
    records = plots.pick_facts(taken, 5, [], known=False)
    for figure in (
        plots.draw_facts(records, taken.title),
        plots.draw_roles(taken),
        plots.draw_relations(taken, 3),
        plots.draw_profiles(taken),
        plots.draw_comparison([taken] * 3, ["a", "b", "c" * 40]),
    ):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert 0 <= box.x0 <= box.x1 <= 7 and 0 <= box.y0 <= box.y1 <= figure.get_figheight()
        for text in texts(figure):
            assert 7 <= text.get_fontsize() <= 9
        titles = [text.get_window_extent() for text in texts(figure) if "\n" in text.get_text()]
        for place, title in enumerate(titles):
            assert title.count_overlaps(titles[place + 1 :]) == 0
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]


def test_comparison_is_over_depth_where_the_models_differ(run: Path, tmp_path: Path):
    deep = write(tmp_path / "deep", [example(0, [[3] * 4] * 5)], layers=5, model="deep")
    first, second = plots.read_run(run), plots.read_run(deep)
    axis = plots.draw_comparison([first, second], ["a", "b"]).axes[LAST]
    shallow, curve = (container.lines[0].get_xdata().tolist() for container in axis.containers)
    assert (shallow, curve) == ([0, 1], [0, 0.25, 0.5, 0.75, 1])
    # One model: its layers' own numbers, though one of the runs has fewer.
    axis = plots.draw_comparison([first, second._replace(model="tiny")], ["a", "b"]).axes[LAST]
    assert axis.containers[1].lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]


def test_writes_and_names_the_figures(batch: AttributionBatch, tmp_path: Path, capsys):
    write(tmp_path / "a" / "run", [ONE, TWO])
    other = OutputFolder(tmp_path / "b" / "run")
    other.open({"model": {}, "data": {}}, [])
    other.write_batch(batch.contrasts[0], batch_record(batch))
    names = ["facts", "roles", "profiles", "relations"]
    assert plots.main([str(tmp_path / "a" / "run")]) == 0
    expected = [tmp_path / "a" / "run" / "plots" / f"{name}.pdf" for name in names]
    assert capsys.readouterr().out.split() == [str(path) for path in expected]
    # Editable letters, not shapes: TrueType, embedded.
    assert b"/FontFile2" in expected[0].read_bytes()
    target = tmp_path / "figures"
    outs = [str(tmp_path / "a" / "run"), str(other.path), "--figures", str(target), "--facts", "0"]
    assert plots.main([*outs, "--format", "svg", "--relations", "0"]) == 0
    written = sorted(str(path.relative_to(target)) for path in target.rglob("*.svg"))
    assert written == [
        *(f"{folder}/{name}.svg" for folder in ("1-run", "2-run") for name in ("profiles", "roles")),
        "comparison.svg",
    ]
    drawn_text = (target / "comparison.svg").read_text()
    assert "tiny mlp (n = 2)</text>" in drawn_text and "model mlp (n = 2)</text>" in drawn_text


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_same_run_gives_the_same_files(run: Path, tmp_path: Path, ending: str):
    for place in ("one", "two"):
        args = [str(run), "--figures", str(tmp_path / place), "--facts", "0", "--relations", "0"]
        assert plots.main([*args, "--format", ending]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_runs_of_one_model_go_by_their_folders(run: Path, tmp_path: Path):
    other = write(tmp_path / "other", [ONE, TWO])
    target = tmp_path / "figures"
    args = ["--known", "--figures", str(target), "--format", "svg", "--facts", "0", "--relations", "0"]
    assert plots.main([str(run), str(other), *args]) == 0
    drawn_text = (target / "comparison.svg").read_text()
    assert "run (n = 1)</text>" in drawn_text and "other (n = 1)</text>" in drawn_text


@pytest.mark.parametrize(
    "examples, args, message",
    [
        (None, [], "there is no manifest.json in it; give the output folder of a run"),
        ([], [], "there is no contrast of two different tokens in it; give another folder"),
        ([SAME], [], "there is no contrast of two different tokens in it; give another folder"),
        ([ONE], ["--ids", "one", "12", "11"], "--ids: {run} has no contrast of 11, 12"),
        ([TWO], ["--known"], "--known: {run} has no known fact; leave the option out"),
        ([ONE], ["--figures", "{run}/manifest.json"], "manifest.json"),
    ],
)
def test_errors_are_one_line(examples, args: list[str], message: str, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    if examples is not None:
        write(folder, examples)
    assert plots.main([str(folder), *(arg.format(run=folder) for arg in args)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("plot_attributions: error: ") and told.count("\n") == 1
    assert message.format(run=folder) in told


def test_hand_made_examples_are_like_written_ones(batch: AttributionBatch):
    written = batch_record(batch)["examples"][0]
    assert set(written) - {"true_token", "false_token"} == set(ONE)
