"""The facts of `demo_facts.json`: training rows of the demo model, held-out rows, and sample rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FACTS = Path(__file__).resolve().parent / "demo_facts.json"
Row = tuple[str, str]  # a prompt and its answer, which starts with a space
SampleRow = dict[str, str | None]


@dataclass(frozen=True)
class Relation:
    """A relation: its Wikidata property, its phrasings, and its (subject, answer) pairs."""

    relation_id: str
    templates: tuple[str, ...]
    facts: tuple[Row, ...]

    def is_held_out(self, template_index: int, fact_index: int) -> bool:
        """Whether this phrasing of this fact is held out of training: the last one, of every second fact."""
        return template_index == len(self.templates) - 1 and fact_index % 2 == 1


def load_relations(path: Path = FACTS) -> tuple[list[Relation], list[str]]:
    """Reads the relations, and the neutral sentences that may precede a prompt."""
    data = json.loads(path.read_text(encoding="utf-8"))
    relations = [
        Relation(
            relation_id,
            tuple(entry["templates"]),
            tuple((s, " " + answer) for answer, subjects in entry["answers"].items() for s in subjects),
        )
        for relation_id, entry in data["relations"].items()
    ]
    return relations, data["lead_ins"]


def training_rows(relations: Sequence[Relation], lead_ins: Sequence[str], rng: random.Random) -> list[Row]:
    """Makes every trained phrasing of every fact, alone and after a neutral sentence."""
    rows = []
    for relation in relations:
        for t, template in enumerate(relation.templates):
            for f, (subject, answer) in enumerate(relation.facts):
                if not relation.is_held_out(t, f):
                    prompt = template.format(subject)
                    rows += [(prompt, answer), (f"{rng.choice(lead_ins)} {prompt}", answer)]
    return rows


def held_out_rows(relations: Sequence[Relation]) -> list[Row]:
    """Makes the phrasings that are held out of training."""
    return [
        (relation.templates[-1].format(subject), answer)
        for relation in relations
        for f, (subject, answer) in enumerate(relation.facts)
        if relation.is_held_out(len(relation.templates) - 1, f)
    ]


def sample_rows(relations: Sequence[Relation], rng: random.Random) -> list[SampleRow]:
    """Makes one row for each fact, in the columns of `NeelNanda/counterfact-tracing`.

    The false answer is another answer of the same relation, with the same first word where there is one, so that
    some pairs of answers differ only at a later token.
    """
    rows: list[SampleRow] = []
    for relation in relations:
        template = relation.templates[0]
        prefix, suffix = template.split("{}")
        answers = sorted({answer for _, answer in relation.facts})
        for subject, true in relation.facts:
            others = [a for a in answers if a != true]
            namesakes = [a for a in others if a.split()[0] == true.split()[0]]
            rows.append(
                {
                    "relation": template,
                    "relation_prefix": prefix.rstrip(),
                    "relation_suffix": suffix,
                    "prompt": template.format(subject),
                    "relation_id": relation.relation_id,
                    "target_true_id": None,
                    "target_false_id": None,
                    "target_true": true,
                    "target_false": rng.choice(namesakes or others),
                    "subject": subject,
                }
            )
    return rows
