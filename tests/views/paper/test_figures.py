"""The files of the figures: their names, their content, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from tiny_runs import ONE, SAME, TWO, example, write_run

from lit_attr.errors import UserError
from lit_attr.views.paper.facts import draw_facts
from lit_attr.views.paper.figures import write_figures
from lit_attr.views.paper.maps import draw_relations, draw_roles
from lit_attr.views.paper.profiles import draw_comparison, draw_profiles
from lit_attr.views.paper.run import pick_facts, read_run


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


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
    facts[4]["scores"] = {"mlp": dict.fromkeys(("sum", "l2"), [[0.5] * long] * 48)}
    folder = write_run(tmp_path / "run", facts, layers=48, model="m" * 80)
    taken = read_run(folder)
    records = pick_facts(taken, 5, [], known=False)
    for figure in (
        draw_facts(records, taken),
        draw_roles(taken),
        draw_relations(taken, 3),
        draw_profiles(taken),
        draw_comparison([taken] * 3, ["a", "b", "c" * 40]),
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


def test_writes_and_names_the_figures(tmp_path: Path):
    first, second = (
        write_run(tmp_path / "a" / "run", [ONE, TWO]),
        write_run(tmp_path / "b" / "run", [ONE], model="other"),
    )
    names = ["facts", "roles", "profiles", "relations"]
    expected = [first / "plots" / f"{name}.pdf" for name in names]
    assert [*write_figures([first])] == expected
    # Editable letters, not shapes: TrueType, embedded.
    assert b"/FontFile2" in expected[0].read_bytes()
    target = tmp_path / "figures"
    paths = [*write_figures([first, second], figures=target, format="svg", facts=0, relations=0)]
    assert sorted(paths) == sorted(target.rglob("*.svg"))
    assert sorted(str(path.relative_to(target)) for path in paths) == [
        *(f"{folder}/{name}.svg" for folder in ("1-run", "2-run") for name in ("profiles", "roles")),
        "comparison.svg",
    ]
    drawn_text = (target / "comparison.svg").read_text()
    assert "tiny mlp (n = 2)</text>" in drawn_text and "other mlp (n = 1)</text>" in drawn_text


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_same_run_gives_the_same_files(run: Path, tmp_path: Path, ending: Any):
    one, two = (
        [*write_figures([run], figures=tmp_path / place, format=ending, facts=0, relations=0)]
        for place in ("one", "two")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_runs_of_one_model_are_named_by_their_folders(run: Path, tmp_path: Path):
    other = write_run(tmp_path / "other", [ONE, TWO])
    target = tmp_path / "figures"
    assert [*write_figures([run, other], figures=target, format="svg", facts=0, relations=0, known=True)]
    drawn_text = (target / "comparison.svg").read_text()
    assert "run (n = 1)</text>" in drawn_text and "other (n = 1)</text>" in drawn_text


def test_style_ends_with_each_figure(run: Path):
    with mpl.rc_context({"font.size": 11}):
        for _ in write_figures([run], facts=1):
            assert mpl.rcParams["font.size"] == 11


@pytest.mark.parametrize(
    "examples, settings, message",
    [
        (None, {}, "there is no folder {run}; check the path"),
        ([], {}, "there is no contrast of two different tokens in it; give another folder"),
        ([SAME], {}, "there is no contrast of two different tokens in it; give another folder"),
        ([ONE], {"ids": ["one", "12", "11"]}, "ids: {run} has no contrast of 11, 12"),
        ([TWO], {"known": True}, "known: {run} has no known fact; leave --known out"),
        (
            [ONE],
            {"figures": Path("{run}/manifest.json")},
            "{run}/manifest.json/facts.pdf: cannot be written (File exists); give another folder",
        ),
        ([ONE], {"facts": 25}, "facts: 25 is not from 0 to 24"),
        ([ONE], {"relations": -1}, "relations: -1 is not from 0 to 24"),
    ],
)
def test_errors_are_one_line(examples, settings: dict[str, Any], message: str, tmp_path: Path):
    folder = tmp_path / "run"
    if examples is not None:
        write_run(folder, examples)
    if "figures" in settings:
        settings = {"figures": Path(str(settings["figures"]).format(run=folder))}
    with pytest.raises(UserError) as error:
        [*write_figures([folder], **settings)]
    assert "\n" not in str(error.value)
    assert message.format(run=folder) in str(error.value)


def test_refuses_no_folders():
    with pytest.raises(UserError, match="folders: there is none"):
        [*write_figures([])]


def test_needs_neither_torch_nor_lightning(run: Path):
    code = (
        "import sys; from pathlib import Path; from lit_attr.views.paper.figures import write_figures; "
        f"paths = [*write_figures([Path({str(run)!r})])]; assert len(paths) == 4; "
        "assert not {'torch', 'lightning', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
