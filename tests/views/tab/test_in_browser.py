"""The tab in Chromium: what the page shows is what the records have."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import CHROMIUM, Tab, chromium, tensorboard
from playwright.sync_api import Browser, Frame
from runs import finish, predict, start
from tabs import add_batch, new_run
from tiny_runs import example

from lit_attr.cli import main
from lit_attr.records.folder import RunFolder
from lit_attr.records.reading import load_attributions

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

HOSTILE = [
    "<script>window.hacked=1</script> is in",
    '<img src=x onerror="window.hacked=1"> is in',
    "**bold** [link](javascript:window.hacked=1) is in",
    "&lt;b&gt; <b>x</b> $a$ %{y} is in",
    "\u05d9\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd \u202eis in",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demo runs, one of them adaptive, and one with hostile text."""
    top = tmp_path_factory.mktemp("browser") / "logs"
    top.mkdir()
    words = ["--data.limit", 60, "--model.verify", 12, "--trainer.logger", "false"]
    assert finish(start(predict(top / "plain", *words), top / "log")) == 0
    words += ["--model.rule", "frozen-norm"]
    assert finish(start(predict(top / "other", *words), top / "log")) == 0
    hostile = new_run(top / "hostile")
    for place, text in enumerate(HOSTILE):
        scores = [[1.0, 2, 3, 4], [5, 6, 7, 8]]
        tokens = [text, " B", " is", " in"]
        add_batch(
            hostile, example(place, scores, prompt=text, subject=text, target_true=f" {text}", tokens=tokens)
        )
    return top


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard(runs) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    yield tab
    tab.close()
    assert tab.complaints == []


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", "").replace(",", "").rstrip("%"))


def records_of(run: Path) -> dict[Any, dict[str, Any]]:
    return {record["id"]: record for record in load_attributions(run)}


def cells_of(frame: Frame, selector: str) -> list[list[str]]:
    return [row.locator("td, th").all_inner_texts() for row in frame.locator(f"{selector} tbody tr").all()]


def rows_saved(tab: Tab, frame: Frame, name: str, folder: Path) -> list[dict[str, str]]:
    """What the CSV button of a picture saves."""
    figure = frame.locator(f'figure[data-name="{name}"]')
    figure.hover()
    with tab.page.expect_download() as saved:
        figure.get_by_role("button", name="CSV").click()
    saved.value.save_as(folder / "saved.csv")
    with (folder / "saved.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "state",
    [
        {"view": "overview"},
        {"view": "overview", "facts": "known", "measure": "mean_score"},
        {"view": "facts", "sort": "logit_diff", "order": "desc"},
        {"view": "facts", "search": "nothing has this"},
        {"view": "fact", "checked": "yes"},
        {"view": "pair", "other": "other"},
        {"view": "pair"},
    ],
    ids=lambda state: "-".join(state.values()),
)
def test_no_view_complains(state: dict[str, str], theme: str, browser: Browser, address: str):
    tab = Tab(browser, address, theme)
    tab.open(run="plain", **state)
    frame = tab.drawn()
    assert frame.locator("html").get_attribute("data-theme") == theme
    assert frame.locator(".problem").count() == 0
    # Useful at 1,280 pixels: nothing beyond the edge.
    assert frame.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tab.keep_picture(f"tab-{'-'.join(state.values())}-{theme}")
    tab.close()
    assert tab.complaints == []


def test_the_table_shows_the_records(tab: Tab, runs: Path):
    frame = tab.open(run="plain", view="facts")
    records = records_of(runs / "plain")
    shown = cells_of(frame, "#facts")
    frame.locator('.pager [title^="Next page"]').click()
    frame.wait_for_selector("text=51–60 of 60")
    shown += cells_of(frame, "#facts")
    heads = [head.strip(" ▴") for head in frame.locator("#facts thead th").all_inner_texts()]
    assert [int(row[0]) for row in shown] == sorted(records)
    for cells in shown:
        row = dict(zip(heads, cells, strict=True))
        record = records[int(row["id"])]
        answers = " / ".join(record[name].strip() for name in ("target_true", "target_false"))
        assert row["prompt → true / false"] == f"{record['prompt']} → {answers}"
        assert number(row["logit diff."]) == pytest.approx(record["logit_diff"], abs=0.00501)
        assert number(row["p(true)"]) == pytest.approx(record["prob_true"], abs=0.000501)
        assert number(row["rank"]) == record["rank_true"]
        scores_LT = record["scores"]["mlp"]["sum"][:, 1:]
        largest, layer = row["largest score"].split(" L")
        assert abs(number(largest)) == pytest.approx(np.abs(scores_LT).max(), rel=0.006)
        assert int(layer) == record["layers"][np.abs(scores_LT).max(1).argmax()]


def test_a_fact_shows_its_record(tab: Tab, runs: Path, tmp_path: Path):
    exact = {record.id: record for _, record in RunFolder(runs / "plain").read_exact()}
    identity = next(iter(exact))
    step = exact[identity].step
    record, effects_LT = records_of(runs / "plain")[identity], exact[identity].effects["mlp"]
    tab.open(run="plain", view="fact", id=identity, step=step)
    frame = tab.drawn()
    assert frame.locator("#prompt").inner_text().startswith(f"{record['prompt']} → ")
    assert number(frame.locator("#numbers dd").first.inner_text()) == pytest.approx(
        record["logit_diff"], abs=0.00501
    )
    rows = rows_saved(tab, frame, f"fact {identity}", tmp_path)
    assert len(rows) == effects_LT.size
    for row in rows:
        layer, token = record["layers"].index(int(row["layer"])), int(row["position"])
        score = record["scores"]["mlp"]["sum"][layer, token]
        assert float(row["score"]) == score and float(row["exact"]) == effects_LT[layer, token]
        assert float(row["difference"]) == pytest.approx(score - effects_LT[layer, token], abs=1e-12)
        assert (row["token"], row["role"]) == (record["tokens"][token], record["roles"][token])


def test_the_pointer_shows_a_cell(tab: Tab, runs: Path):
    identity, record = next(iter(records_of(runs / "plain").items()))
    tab.open(run="plain", view="fact", id=identity, step=record["step"])
    frame = tab.drawn()
    drag = frame.locator(".plot .nsewdrag").first.bounding_box()
    assert drag is not None
    layers, tokens = record["scores"]["mlp"]["sum"].shape
    # The last token in the first layer: the lower left corner.
    tab.page.mouse.move(drag["x"] + drag["width"] / layers / 2, drag["y"] + drag["height"] - 8)
    frame.wait_for_selector(".hoverlayer .hovertext text", timeout=10_000)
    text = frame.locator(".hoverlayer .hovertext").first.text_content() or ""
    assert f"token {tokens - 1}, {record['roles'][-1]}" in text and "layer 0" in text
    shown = re.search(r"score ([−+]?[0-9.]+)", text)
    assert shown is not None
    assert number(shown[1]) == pytest.approx(record["scores"]["mlp"]["sum"][0, -1], rel=0.006)


def test_the_overview_shows_the_summary(tab: Tab, runs: Path):
    summary = RunFolder(runs / "plain").read_summary()
    assert summary is not None
    tab.open(run="plain", view="overview")
    frame = tab.drawn()
    answers = frame.locator("#answers div dd:nth-of-type(1)").all_inner_texts()
    assert number(answers[0]) == summary["contrasts"] == 60
    assert number(answers[1]) == pytest.approx(100 * summary["contrast_accuracy"], abs=0.0501)
    assert number(answers[2]) == pytest.approx(100 * summary["known_share"], abs=0.0501)
    assert number(answers[3]) == pytest.approx(summary["median_logit_diff"], abs=0.00501)
    frame.get_by_text("The map as a table").click()
    profile = summary["profile"]
    for place, (role, *cells) in enumerate(cells_of(frame, "#map")):
        assert role == profile["roles"][place]
        for cell, means in zip(cells, profile["mean_effect"], strict=True):
            assert (cell == "–") == (means[place] is None)
            if means[place] is not None:
                assert number(cell) == pytest.approx(means[place], rel=0.006, abs=1e-12)
    (r, *_), *_ = [row[1:] for row in cells_of(frame, "#agreement")]
    assert number(r) == pytest.approx(summary["agreement"]["pearson"], abs=0.00501)


def test_a_click_on_a_cell_lists_its_facts(tab: Tab, runs: Path):
    tab.open(run="plain", view="overview", measure="mean_score")
    frame = tab.drawn()
    area = frame.locator(".plot .nsewdrag").first.bounding_box()
    assert area is not None
    tab.page.mouse.click(area["x"] + area["width"] - 5, area["y"] + area["height"] - 8)
    frame.wait_for_selector("#facts")
    layers = next(iter(records_of(runs / "plain").values()))["layers"]
    assert f"layer {layers[-1]}, last" in frame.locator(".chip").inner_text()
    expected = max(records_of(runs / "plain").values(), key=lambda each: abs(each["scores"]["mlp"]["sum"][-1, -1]))
    first = cells_of(frame, "#facts")[0]
    assert int(first[0]) == expected["id"]
    assert number(first[-1]) == pytest.approx(expected["scores"]["mlp"]["sum"][-1, -1], rel=0.006)


def test_two_runs_show_the_figures_of_the_command(tab: Tab, runs: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", str(runs / "plain"), str(runs / "other")])
    lines = capsys.readouterr().out.splitlines()
    expected = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    tab.open(run="plain", view="pair", other="other")
    frame = tab.drawn()
    shown = [[cell.replace("−", "-").replace("–", "-") for cell in row] for row in cells_of(frame, "#layers")]
    assert shown == expected[2:]
    figures = frame.locator("#comparison").inner_text().replace("−", "-")
    found = re.search(
        r"changed by (\S+) on average; preferred answer changed in (\d+), known answer in (\d+)", "\n".join(lines)
    )
    assert found is not None
    assert found[1] in figures and f"known in {found[3]}" in figures


def test_hostile_text_is_shown_as_it_is_written(tab: Tab):
    for place, text in enumerate(HOSTILE):
        for state in ({"view": "facts"}, {"view": "fact", "id": place}):
            frame = tab.open(run="hostile", **state)
            tab.drawn()
            prompts = frame.locator("#facts .prompt bdi:first-child, #prompt bdi:first-child").all_text_contents()
            assert text in prompts
            assert frame.evaluate("window.hacked") is None and tab.page.evaluate("window.hacked") is None
            assert frame.locator("img, main script, main b:has-text('x')").count() == 0
        label = frame.locator(".ytick text").first.text_content()
        visible = text.replace(" ", "␣")
        assert label == (visible if len(visible) <= 18 else f"{visible[:17]}…")


def test_a_link_opens_the_same(tab: Tab, browser: Browser, address: str):
    frame = tab.open(run="plain", view="facts")
    frame.locator('[data-sort="logit_diff"]').click()
    frame.wait_for_selector('th[aria-sort="descending"]')
    frame.get_by_label("known").select_option("no")
    frame.locator("#search").fill("the")
    tab.page.wait_for_url("**search=the**")
    tab.shown()
    before = cells_of(frame, "#facts")
    assert before
    other = Tab(browser, address)
    other.page.goto(tab.page.url)
    assert cells_of(other.shown(), "#facts") == before
    other.close()
    frame.locator("#facts tbody tr").first.click()
    frame.wait_for_selector("#prompt")
    assert "view=fact&" in tab.page.url
    tab.page.go_back()
    frame.wait_for_selector("#facts")
    assert cells_of(frame, "#facts") == before


def test_the_keyboard(tab: Tab, runs: Path):
    ids = sorted(records_of(runs / "plain"))
    frame = tab.open(run="plain", view="facts")
    keyboard = tab.page.keyboard
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        keyboard.press(key)
    frame.wait_for_selector(f"#numbers dd:text-is('{ids[1]}')")
    keyboard.press("ArrowRight")
    frame.wait_for_selector(f"#numbers dd:text-is('{ids[2]}')")
    keyboard.press("ArrowLeft")
    frame.wait_for_selector(f"#numbers dd:text-is('{ids[1]}')")
    keyboard.press("Escape")
    frame.wait_for_selector("#facts")
    keyboard.press("]")
    frame.wait_for_selector("text=51–60 of 60")
    keyboard.press("/")
    keyboard.type("zzz")
    frame.wait_for_selector("text=No fact matches")
    assert frame.locator("#search").input_value() == "zzz"
    keyboard.press("Escape")
    keyboard.press("1")
    frame.wait_for_selector("#answers")


@pytest.mark.parametrize("kind", ["PNG", "SVG"])
def test_pictures_are_saved(kind: str, tab: Tab, tmp_path: Path):
    tab.open(run="plain", view="overview")
    figure = tab.drawn().locator("figure").first
    figure.hover()
    with tab.page.expect_download() as saved:
        figure.get_by_role("button", name=kind).click()
    saved.value.save_as(tmp_path / "picture")
    content = (tmp_path / "picture").read_bytes()
    assert content.startswith(b"\x89PNG") if kind == "PNG" else b"<svg" in content[:200]
    assert len(content) > 5_000
