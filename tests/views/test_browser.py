"""What a browser shows of a run in TensorBoard: run by `scripts/test.sh --browser`, where there is Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import finish, predict, start, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A page without content is the orange bar, the grey ground and some words.
LEAST_COLOURS = {"images": 900, "text": 600, "hparams": 650}

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard over a demo run."""
    folder = tmp_path_factory.mktemp("run")
    assert finish(start(predict(folder / "out", "--data.limit", 60), folder / "log")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--logdir", str(folder / "out"), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        address = f"http://127.0.0.1:{port}/"

        def has_loaded() -> bool:
            try:
                with urllib.request.urlopen(f"{address}data/plugin/images/tags", timeout=5) as answer:
                    return b"role_by_layer" in answer.read()
            except OSError:
                return False

        wait_until(has_loaded)
        yield address
        server.terminate()


@pytest.mark.parametrize("tab", LEAST_COLOURS)
def test_each_tab_has_something_to_show(tab: str, address: str, tmp_path: Path):
    """SCREENSHOTS in the environment is a folder that keeps the pictures, to be looked at."""
    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{tab}.png"
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1300", "--hide-scrollbars"]
    options += [
        "--virtual-time-budget=20000",
        f"--screenshot={picture}",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    subprocess.run([CHROMIUM, *options, f"{address}#{tab}"], capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > LEAST_COLOURS[tab]
