"""The tab in Chromium while a run goes on, is killed, or has a damaged file, and over 21,919 facts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM, Tab, chromium, tensorboard
from make_large_run import make_run
from playwright.sync_api import Browser
from runs import count_batches, predict, start, wait_until
from tabs import add_batch, new_run
from tiny_runs import example

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

SCORES = [[1.0, 2, 3, 4], [5, 6, 7, 8]]


def slack() -> float:
    """What the limits, which are for free cores, are multiplied with: other programs may run beside the tests."""
    return 2 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_new_facts_appear_after_a_refresh_and_damaged_ones_cost_a_line(browser: Browser, tmp_path: Path):
    run = new_run(tmp_path / "logs" / "run", contrasts=3)
    with tensorboard(run.parent) as address:
        tab = Tab(browser, address)
        frame = tab.open(view="facts")
        assert "No fact is done yet" in frame.locator(".empty").inner_text()
        add_batch(run, example(1, SCORES))
        frame.locator("#refresh").click()
        frame.wait_for_selector("text=1–1 of 1")
        add_batch(run, example(2, SCORES))
        # TensorBoard's own button.
        tab.page.locator(
            ".reload-button, [aria-label*=Reload], [title*=Reload], [aria-label*=reload]"
        ).first.click()
        frame.wait_for_selector("text=1–2 of 2")
        assert "2 of 3 contrasts, not finished" in frame.locator("#progress").inner_text()
        damaged = add_batch(run, example(3, SCORES))
        damaged.write_bytes(damaged.read_bytes()[:-30])
        frame.locator("#refresh").click()
        frame.wait_for_selector("#problems")
        assert "1 file is left out" in frame.locator("#problems").inner_text()
        assert damaged.name in frame.locator("#problems li").inner_text()
        assert frame.locator("#facts tbody tr").count() == 2
        tab.close()
        assert tab.complaints == []


def test_a_killed_run_leaves_the_tab_as_it_was(browser: Browser, tmp_path: Path):
    run = tmp_path / "logs" / "run"
    run.parent.mkdir()
    words = ["--data.batch_size", 1, "--model.verify", 4]
    process = start(predict(run, *words), tmp_path / "log")
    wait_until(lambda: count_batches(run) >= 5)
    with tensorboard(run.parent) as address:
        tab = Tab(browser, address)
        frame = tab.open(view="facts")
        before = frame.locator("#facts tbody tr").count()
        assert before >= 5
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        frame.locator("#refresh").click()
        frame.wait_for_selector("body[data-ready=yes]")
        found = count_batches(run)
        frame.wait_for_selector(f"text=of {found}")
        tab.open(view="overview")
        frame = tab.drawn()
        assert frame.locator("#answers dd").first.inner_text() == str(found)
        assert frame.locator(".problem").count() == 0
        tab.close()
        assert tab.complaints == []


def test_event_files_alone(browser: Browser, tmp_path: Path):
    run = new_run(tmp_path / "run")
    (run / "lightning_logs").mkdir()
    with tensorboard(run / "lightning_logs") as address:
        tab = Tab(browser, address)
        assert f"tensorboard --logdir {run}" in tab.open().locator(".empty").inner_text()
        tab.close()
        assert tab.complaints == []


@pytest.mark.slow
def test_twenty_thousand_facts(browser: Browser, tmp_path: Path):
    make_run(tmp_path / "logs" / "large", 21_919, 48, 64)
    with tensorboard(tmp_path / "logs") as address:
        tab = Tab(browser, address)
        begin = time.monotonic()
        frame = tab.open(view="facts")
        assert frame.locator("#facts tbody tr").count() == 50
        assert "of 21,919" in frame.locator("#rows").inner_text()
        assert time.monotonic() - begin < 7 * slack()

        def seconds(act: str, selector: str, shown: str) -> float:
            """From a click in the page until what it shows is there."""
            return float(
                frame.evaluate(
                    """async ([act, selector, shown]) => {
                        const begin = performance.now();
                        document.querySelector(act).click();
                        for (;;) {
                            const found = document.querySelector(selector);
                            if (found && found.textContent.includes(shown)) break;
                            await new Promise(requestAnimationFrame);
                        }
                        return (performance.now() - begin) / 1000;
                    }""",
                    [act, selector, shown],
                )
            )

        for page in (2, 3, 4):
            shown = f"{50 * page - 49}–{50 * page}"
            assert seconds('.pager [title^="Next page"]', "#rows", shown) < 0.3 * slack()
        assert seconds('.pager [title="Last page"]', "#rows", "21,901–21,919") < 0.3 * slack()
        assert seconds('[data-sort="logit_diff"]', "th[aria-sort=descending]", "logit diff.") < 0.3 * slack()
        first = frame.locator("#facts tbody tr").first
        prompt = first.locator("bdi").first.inner_text()
        # Plotly is loaded with the first picture.
        assert seconds("#facts tbody tr", "#prompt", prompt) < 0.2 * slack()
        tab.drawn()
        assert seconds("#next", ".fact .pager", "2 of 21,919") < 0.2 * slack()
        tab.page.keyboard.press("Escape")
        frame.wait_for_selector("#facts")
        frame.locator("#search").fill("bridge spain")
        frame.wait_for_function("() => !document.querySelector('#rows')?.textContent.includes('of 21,919')")
        prompts = frame.locator("#facts .prompt").all_inner_texts()
        assert prompts and all("bridge" in text and "Spain" in text for text in prompts)
        tab.keep_picture("tab-large")
        tab.close()
        assert tab.complaints == []
