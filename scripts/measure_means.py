"""Measures the intervals of mean effects: `python scripts/measure_means.py RUN`.

RUN is the folder of a run whose contrasts have exact effects, such as that of
`lit-attr predict --data.limit 200 --model.verify 200`. Takes the means over all of them as the truth, draws random
samples, and prints in Markdown how often the 95% intervals cover the truth and how wide they are, beside plain t
intervals from the exact effects of the sample alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from lit_attr.evaluation.effects import MeanEffects, Sample, Sums, mean_effects
from lit_attr.evaluation.profile import contrast_means
from lit_attr.records.folder import RunFolder

HEADS = ("means", "contrasts", "cells", "coverage", "coverage, sample alone", "width / that of the sample alone")


def measure(run: str, sample: int = 32, samples: int = 200, seed: int = 0) -> None:
    """Prints the table.

    Args:
        run: The run's folder.
        sample: How many contrasts a sample has.
        samples: How many samples are drawn.
        seed: Seed of the draws.
    """
    everything = _read(RunFolder(Path(run)))
    scores_CKLR, effects_CKLR, counts_CR = everything
    truth_KLR = effects_CKLR.sum(0) / counts_CR.sum(0).clip(min=1)
    generator = np.random.default_rng(seed)
    # Two estimators, coverage and width, and one row for each cell of each sample.
    found_2KLRS: list[list[np.ndarray]] = [[], []]
    for _ in range(samples):
        chosen_C = generator.permutation(len(counts_CR)) < sample
        for place, estimates in enumerate((scores_CKLR, np.zeros_like(scores_CKLR))):
            drawn = Sample(estimates[chosen_C], effects_CKLR[chosen_C], counts_CR[chosen_C])
            means = _over_all(estimates, counts_CR, drawn)
            covers_KLR = (means.low_KLR <= truth_KLR) & (truth_KLR <= means.high_KLR)
            width_KLR = means.high_KLR - means.low_KLR
            found_2KLRS[place].append(np.where(np.isnan(width_KLR), np.nan, [covers_KLR, width_KLR]))
    found = np.stack([np.stack(each, -1) for each in found_2KLRS])
    rows: list[list[str]] = []
    for place, kind in enumerate(("signed", "magnitude")):
        (covers, width), (alone_covers, alone_width) = found[:, :, place]
        cells = np.isfinite(width).any(-1).sum()
        shares = (f"{np.nanmean(each):.3f}" for each in (covers, alone_covers))
        narrower = np.nanmedian(width) / np.nanmedian(alone_width)
        rows.append([kind, str(len(counts_CR)), str(cells), *shares, f"{narrower:.2f}"])
    print("\n".join(f"| {' | '.join(row)} |" for row in (HEADS, ["---"] * len(HEADS), *rows)))


def _read(run: RunFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means of each contrast with exact effects: of its scores, of its effects, and which roles it has."""
    exact = {(record.id, record.step): record for _, record in run.read_exact() if record.refused is None}
    found = []
    for _, batch in run.read_batches():
        for example in batch.examples:
            record = exact.get((example.id, example.step))
            if record is not None:
                where = example.roles, example.subject_span
                ((component, effects_LT),) = record.effects.items()
                scores_KLR, has_role_R = contrast_means(example.scores[component].sum, *where)
                found.append((scores_KLR, contrast_means(effects_LT, *where)[0], has_role_R.astype(np.int64)))
    scores_CKLR, effects_CKLR, counts_CR = map(np.stack, zip(*found, strict=True))
    return scores_CKLR, effects_CKLR, counts_CR


def _over_all(scores_CKLR: np.ndarray, counts_CR: np.ndarray, drawn: Sample) -> MeanEffects:
    scored = Sums(scores_CKLR.sum(0), counts_CR.sum(0))
    return mean_effects(scored, drawn, Sums(np.zeros_like(scored.totals_KLR), np.zeros_like(scored.counts_R)))


if __name__ == "__main__":
    auto_cli(measure, as_positional=True)
