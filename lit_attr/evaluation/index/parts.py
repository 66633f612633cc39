"""What the index of a run keeps of one batch file.

Axes: L layers, T tokens of one contrast, R rows of means (in the order of `MEAN_ROLES`), F contrasts of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.evaluation.profile import role_means
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.roles import Role
from lit_attr.records.files import briefly, check_name, check_run, check_seal, read_content
from lit_attr.records.schema import BatchFormat, ExactRecord, FactId, Version

Values = NDArray[np.float64]
ExactOf = Callable[[ContrastKey], ExactRecord | None]


class Largest(NamedTuple):
    """The score of a contrast with the largest magnitude at any token but the first, and its cell."""

    score: float
    layer: int
    token: int


class Fact(NamedTuple):
    """What a list has of a contrast.

    Attributes:
        key: Its id and step.
        place: Its place in the batch file.
        is_trivial: Whether it compares a token with itself.
        tokens: A hash of its tokens, by which two runs in this process compare them.
        largest: By component.
        error: By component, how far the scores are from the exact effects, see :func:`relative_error`; NaN where
            there are none.
    """

    key: ContrastKey
    place: int
    prompt: str
    subject: str
    target_true: str
    target_false: str
    relation: str
    logit_diff: float
    prob_true: float
    rank_true: int
    is_trivial: bool
    tokens: int
    largest: dict[str, Largest]
    error: dict[str, float]


class Part(NamedTuple):
    """What is kept of a batch file.

    Attributes:
        facts: Its contrasts, in the file's order.
        means: By component, the mean score of each contrast in each layer at each role [F, L, R]; NaN where it
            has no token of the role.
        layers: The layers of the scores.
        rule: The rule that computed them.
    """

    facts: list[Fact]
    means: dict[str, NDArray[np.float32]]
    layers: tuple[int, ...]
    rule: str


class _Scores(msgspec.Struct):
    """The scores of one component; the norms, half of a file, are not parsed."""

    sum: msgspec.Raw


class _Example(msgspec.Struct):
    """The fields of an example that the index reads."""

    id: FactId
    relation_id: str
    prompt: str
    subject: str
    target_true: str
    target_false: str
    step: int
    tokens: list[str]
    roles: list[Role]
    subject_span: tuple[int, int]
    true_token_id: int
    false_token_id: int
    logit_diff: float
    prob_true: float
    rank_true: int
    scores: dict[str, _Scores]


class _Batch(msgspec.Struct):
    """The fields of a batch file that the index reads. Its seal vouches for the others."""

    format: BatchFormat
    version: Version
    layers: list[int]
    rule: str
    examples: list[_Example]
    run: str | None = None


_BATCH = msgspec.json.Decoder(_Batch)
_SCORES = msgspec.json.Decoder(list[list[float]])


def read_part(path: Path, manifest: Mapping[str, Any], exact_of: ExactOf) -> Part:
    """Reads what the index keeps of a batch file, several times as fast as the whole record.

    Args:
        path: The file.
        manifest: The run's manifest.
        exact_of: The exact effects of a contrast, None where there are none.

    Raises:
        UserError: The file cannot be read, is not whole, was changed, or is of another run.
    """
    content = read_content(path)
    try:
        batch = _BATCH.decode(content)
        check_seal(content, path)
        check_run(path, batch.run, manifest)
        check_name(path, batch.examples[0].id, batch.examples[0].step)
        parts = [_fact_of(batch, place, exact_of) for place in range(len(batch.examples))]
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a whole batch file ({error}); move it away and run again") from error
    facts = [fact for fact, _ in parts]
    components = list(facts[0].largest)
    return Part(
        facts,
        {name: np.stack([means[name] for _, means in parts]) for name in components},
        tuple(batch.layers),
        batch.rule,
    )


def relative_error(scores_LT: Values, effects_LT: Values) -> float:
    """‖score − exact effect‖ / ‖exact effect‖ over all cells but those of the first token.

    The first token, most often an attention sink, would decide it alone. NaN where the effects are 0.
    """
    effects_LT = effects_LT[:, 1:]
    size = float(np.linalg.norm(effects_LT))
    return float(np.linalg.norm(scores_LT[:, 1:] - effects_LT)) / size if size else float("nan")


def _fact_of(batch: _Batch, place: int, exact_of: ExactOf) -> tuple[Fact, dict[str, NDArray[np.float32]]]:
    example = batch.examples[place]
    key = example.id, example.step
    exact = exact_of(key)
    largest, error, means = {}, {}, {}
    for component, scores in example.scores.items():
        scores_LT = _scores_LT(scores, len(batch.layers), len(example.tokens), key)
        means_LR, has_role_R = role_means(scores_LT, example.roles, example.subject_span)
        means[component] = np.where(has_role_R, means_LR, np.nan).astype(np.float32)
        largest[component] = _largest(scores_LT, batch.layers)
        error[component] = float("nan")
        effects_LT = None if exact is None or exact.refused is not None else exact.effects.get(component)
        if effects_LT is not None and effects_LT.shape == scores_LT.shape:
            error[component] = relative_error(scores_LT, effects_LT)
    fact = Fact(
        key,
        place,
        example.prompt,
        example.subject,
        example.target_true,
        example.target_false,
        example.relation_id,
        example.logit_diff,
        example.prob_true,
        example.rank_true,
        example.true_token_id == example.false_token_id,
        hash(tuple(example.tokens)),
        largest,
        error,
    )
    return fact, means


def _scores_LT(scores: _Scores, layers: int, tokens: int, key: ContrastKey) -> Values:
    scores_LT: Values = np.array(_SCORES.decode(scores.sum), dtype=np.float64)
    if scores_LT.shape != (layers, tokens):
        raise ValueError(f"id {briefly(key[0])} has scores of shape {scores_LT.shape}, not {(layers, tokens)}")
    return scores_LT


def _largest(scores_LT: Values, layers: Sequence[int]) -> Largest:
    # With a single token there is no other.
    first = 1 if scores_LT.shape[1] > 1 else 0
    row, token = divmod(int(np.abs(scores_LT[:, first:]).argmax()), scores_LT.shape[1] - first)
    return Largest(float(scores_LT[row, token + first]), layers[row], token + first)
