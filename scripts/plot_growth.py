"""Plots how facts are learnt, from the logs of `AttributionMonitor`: `python scripts/plot_growth.py LOGS`.

The upper panels show, over training steps, how strongly the true answers are preferred, and for each token role
the mean score in its strongest layer. The lower panels show the mean scores by layer and role at a few steps.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from jsonargparse import auto_cli
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

GROUP = "attribution"
MAPS = 4


def plot(logs: str, out: str = "growth.png", dpi: int = 110) -> None:
    """Draws the figure.

    Args:
        logs: Folder with the event file of one training run, at any depth.
        out: File for the figure: .png, .pdf or .svg.
        dpi: Dots per inch of a .png file.
    """
    files = sorted(Path(logs).rglob("events.out.tfevents.*"))
    if len(files) != 1:
        raise SystemExit(
            f"plot_growth.py: error: {logs}: it has {len(files)} event files; give the folder of one run"
        )
    events = EventAccumulator(str(files[0]), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = {
        tag.partition("/")[2]: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith(GROUP)
    }
    if "logit_difference" not in scalars:
        raise SystemExit(f"plot_growth.py: error: {files[0]}: AttributionMonitor has logged nothing in it")

    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = above.subplots(1, 2)
    shares = left.twinx()
    lines = [
        axes.plot(*zip(*((point.step, point.value) for point in scalars[name]), strict=True), color, label=label)[
            0
        ]
        for axes, name, color, label in (
            (left, "logit_difference", "#1b3a6b", "logit difference, true − false"),
            (shares, "contrast_accuracy", "#c77d11", "true above false"),
            (shares, "known_share", "#2e8b57", "true above every token"),
        )
    ]
    left.legend(handles=lines, loc="center right", frameon=False)
    left.set(xlabel="training step", ylabel="logits", title="How strongly the true answers are preferred")
    shares.set(ylabel="share of facts", ylim=(0, 1.02))
    for name, points in scalars.items():
        kind, _, role = name.partition("/")
        if kind == "score":
            right.plot(
                [point.step for point in points], [point.value for point in points], label=role.replace("_", " ")
            )
    right.axhline(0, color="#bbbbbb", linewidth=0.8)
    right.legend(frameon=False, fontsize="small")
    right.set(
        xlabel="training step", ylabel="logits", title="Mean score at each token role, in its strongest layer"
    )

    maps = events.Images(f"{GROUP}/role_by_layer")
    count = min(MAPS, len(maps))
    for place, axes in enumerate(below.subplots(1, count, squeeze=False)[0]):
        shown = maps[place * (len(maps) - 1) // max(1, count - 1)]
        axes.imshow(Image.open(io.BytesIO(shown.encoded_image_string)), interpolation="lanczos")
        axes.set_title(f"step {shown.step}")
        axes.axis("off")
    figure.savefig(out, dpi=dpi)
    print(out)


if __name__ == "__main__":
    sys.exit(auto_cli(plot))
