"""Makes a run folder of made-up facts in the real format: what the Attributions tab is timed with.

    python scripts/make_large_run.py OUT --facts 21919 --layers 48 --verify 64

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.contrasts import order_key
from lit_attr.facts.roles import roles_of
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import (
    BATCH_FORMAT,
    EXACT_FORMAT,
    FORMAT_VERSION,
    BatchRecord,
    ComponentScores,
    ExactRecord,
    Example,
)

BATCH = 64
SEED = 0
RELATIONS = ("P36", "P17", "P19", "P27", "P37", "P103", "P127", "P138", "P176", "P495")
WORDS = ("river", "tower", "song", "club", "bridge", "novel", "island", "engine", "opera", "harbour")
ANSWERS = (" Spain", " France", " Italy", " Japan", " Peru", " Chile", " Norway", " Ghana", " Nepal", " Cuba")
HARDLY = 1e-3  # logits: smaller effects are rounding noise


def make_run(path: Path, facts: int, layers: int, verify: int = 0, *, component: str = "mlp") -> None:
    """Writes a run of made-up facts.

    Args:
        path: The run's folder.
        facts: Their number.
        layers: The number of layers.
        verify: How many of them have exact effects.
        component: The component that the scores are of.
    """
    folder = RunFolder(path)
    settings = {
        "model": {
            "model_name": "made-up",
            "layers": [*range(layers)],
            "component": component,
            "rule": "gradient",
            "sample_seed": SEED,
        },
        "data": {"step": "divergence", "source": "made-up", "limit": facts, "contrasts": facts},
    }
    places = sorted(range(facts), key=lambda identity: order_key((identity, 0), SEED))[:verify]
    place_of = {identity: place for place, identity in enumerate(places)}
    folder.lock()
    try:
        folder.open(settings, [])
        generator = np.random.default_rng(SEED)
        for start in range(0, facts, BATCH):
            examples = [
                _example(identity, layers, component, generator)
                for identity in range(start, min(start + BATCH, facts))
            ]
            for example in examples:
                if example.id in place_of:
                    folder.write_exact(_exact(example, layers, component, place_of[example.id], generator))
            folder.write_batch(
                BatchRecord(
                    format=BATCH_FORMAT,
                    version=FORMAT_VERSION,
                    layers=[*range(layers)],
                    rule="gradient",
                    examples=examples,
                )
            )
    finally:
        folder.unlock()


def _example(identity: int, layers: int, component: str, generator: np.random.Generator) -> Example:
    subject = [f" {WORDS[identity // 10**place % 10]}" for place in range(int(generator.integers(1, 5)))]
    tokens = ["<s>", "The", *subject, f" {identity}", " lies", " in", " the", " country", " of"]
    span = 2, 3 + len(subject)
    true, false = (ANSWERS[place] for place in generator.choice(len(ANSWERS), 2, replace=False))
    scores_LT = _scores_LT(layers, len(tokens), generator)
    logits = generator.normal(8, 3, 2).tolist()
    shares = generator.dirichlet([1, 1, 1]).tolist()
    return Example(
        id=identity,
        relation_id=RELATIONS[identity % len(RELATIONS)],
        prompt="".join(tokens[1:]),
        subject="".join(tokens[slice(*span)]).strip(),
        target_true=true,
        target_false=false,
        step=0,
        tokens=tokens,
        roles=list(roles_of(len(tokens), span)),
        subject_span=list(span),
        true_token=true,
        false_token=false,
        true_token_id=ANSWERS.index(true),
        false_token_id=ANSWERS.index(false),
        logit_true=logits[0],
        logit_false=logits[1],
        logit_diff=logits[0] - logits[1],
        prob_true=shares[0],
        prob_false=shares[1],
        rank_true=int(generator.geometric(0.3)) - 1,
        scores={component: ComponentScores(scores_LT, np.abs(scores_LT) * np.float32(1.5))},
    )


def _scores_LT(layers: int, tokens: int, generator: np.random.Generator) -> NDArray[Any]:
    """Scores as float32, whose digits in JSON are those of a real run."""
    scores_LT = generator.normal(0, 0.1, (layers, tokens))
    # Most at the last subject token in the middle and at the last token above, as CounterFact shows; and a sink.
    middle_L = np.exp(-(((np.arange(layers) - layers / 2) / (layers / 8)) ** 2))
    scores_LT[:, -7] += middle_L
    scores_LT[:, -1] += 1.5 * middle_L[::-1].cumsum()[::-1] / middle_L.sum()
    scores_LT[:, 0] *= 20
    return scores_LT.astype(np.float32)


def _exact(
    example: Example, layers: int, component: str, place: int, generator: np.random.Generator
) -> ExactRecord:
    scores_LT = example.scores[component].sum
    effects_LT = 0.9 * scores_LT + generator.normal(0, 0.05, scores_LT.shape)
    return ExactRecord(
        format=EXACT_FORMAT,
        version=FORMAT_VERSION,
        layers=[*range(layers)],
        rule="gradient",
        ablation="zero",
        id=example.id,
        step=example.step,
        place=place,
        effects={component: effects_LT.astype(np.float32)},
        resolution=HARDLY,
        curves=None,
        refused=None,
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Makes a run folder of made-up facts in the real format.")
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--facts", type=int, default=21_919)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--verify", type=int, default=64, help="how many have exact effects")
    given = parser.parse_args()
    make_run(given.folder, given.facts, given.layers, given.verify)


if __name__ == "__main__":
    main()
