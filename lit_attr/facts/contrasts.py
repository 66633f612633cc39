"""A contrast: a tokenised fact and the step at which its two answers are compared; and the random order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

from lit_attr.facts.roles import Role
from lit_attr.facts.rows import Fact

Step = Literal["divergence", "all"]
ContrastKey = tuple[int | str, int]


class Donor(NamedTuple):
    """What stands in the place of a contrast's context under resample ablation, token by token.

    Attributes:
        id: The id of the fact that gives the prompt.
        token_ids: That fact's prompt, then the answer tokens that the contrast's own context has after its prompt.
            As many as the contrast has.
    """

    id: int | str
    token_ids: tuple[int, ...]


class Contrast(NamedTuple):
    """A context, and the two tokens whose logits are compared after its last token.

    Attributes:
        fact: The fact it is made from.
        step: Which token of the answers is compared, from 0.
        token_ids: The context: the prompt, then the answer tokens before the step.
        tokens: The text of each context token. Joined, they give the context, except that special tokens put
            before it show their names. A token is empty if it only continues a character that the token before it
            begins, or if it is a space that the tokenizer puts before the text.
        roles: The role of each token. A token that is first and last of the subject is labelled `last subject`.
        subject_span: The subject's first token and the token after its last.
        true_token_id: The true answer's token at the step.
        false_token_id: The false answer's token at the step.
        true_token: Its text; its name in the vocabulary where the two tokens differ only within a character.
        false_token: Likewise.
        donor: The donor; None where the run needs none.
    """

    fact: Fact
    step: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    subject_span: tuple[int, int]
    true_token_id: int
    false_token_id: int
    true_token: str
    false_token: str
    donor: Donor | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt: the context without the answer tokens before the step."""
        return self.token_ids[: len(self.token_ids) - self.step]

    @property
    def is_contrastive(self) -> bool:
        """Whether the two tokens differ. With the step `all` they may be the same, and then every score is 0."""
        return self.true_token_id != self.false_token_id

    @property
    def key(self) -> ContrastKey:
        """The fact's id and the step, which identify a contrast within a run."""
        return self.fact.id, self.step


def digest_of(*words: str | int) -> int:
    """A hash of 64 bits of what a contrast asks: see :func:`digest_contrast`."""
    return int.from_bytes(hashlib.sha256(repr(words).encode("utf-8", "backslashreplace")).digest()[:8], "big")


def digest_contrast(contrast: Contrast) -> int:
    """A hash of the fact and the tokens that a contrast compares, whatever its id."""
    fact = contrast.fact
    texts = fact.prompt, fact.subject, fact.target_true, fact.target_false
    return digest_of(*texts, contrast.true_token_id, contrast.false_token_id, *contrast.tokens)


def order_key(key: ContrastKey, seed: int) -> bytes:
    """Hashes a seed and a contrast's key; sorting by the hash gives the random order of a run's contrasts.

    A contrast keeps its hash whatever other contrasts the run has, so two runs over overlapping facts order those
    that they share alike.
    """
    # JSON keeps the ids 1 and "1" apart.
    return hashlib.sha256(json.dumps([seed, *key]).encode()).digest()


def random_order(keys: Iterable[ContrastKey], seed: int) -> list[ContrastKey]:
    """Puts contrasts into a random order that is the same for the same keys, in whatever order they come."""
    return sorted(keys, key=lambda key: order_key(key, seed))
