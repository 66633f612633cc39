"""Counts the facts that have a donor for resample ablation: `python scripts/count_donors.py SOURCE TOKENIZER ...`.

SOURCE is a source of `CounterfactDataModule`; each TOKENIZER a name, a folder or a GGUF file. Prints in Markdown,
for each tokenizer, how many facts have a donor, for how many of these the donor's true answer is their false one,
how many facts serve as donors, and the seconds to read, tokenise and choose; then why the others have none.
"""

from __future__ import annotations

import re
import time
from collections import Counter

from jsonargparse import auto_cli

from lit_attr.datamodule import RESAMPLE, CounterfactDataModule, DataRequirements
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.models.loading import load_tokenizer

HEADS = ("tokenizer", "rows", "with a donor", "that has their false answer", "donors", "seconds")


def count(source: str, tokenizers: list[str], limit: int | None = None, seed: int = 0) -> None:
    """Prints the table.

    Args:
        source: The facts.
        tokenizers: The tokenizers.
        limit: Keep only the first so many rows. Their donors may be any row.
        seed: Seed of the choice of donors.
    """
    answers = {fact.id: fact.target_true.strip() for fact in read_facts(open_rows(source)).facts}
    print("\n".join(f"| {' | '.join(row)} |" for row in (HEADS, ["---"] * len(HEADS))))
    reasons: dict[str, Counter[str]] = {}
    for tokenizer in tokenizers:
        data = CounterfactDataModule(source, load_tokenizer(tokenizer), limit=limit)
        started = time.perf_counter()
        data.make_contrasts(DataRequirements(sample_seed=seed, ablation=RESAMPLE))
        seconds = time.perf_counter() - started
        donors = {each.fact.id: each.donor.id for each in data.contrasts if each.donor is not None}
        false = sum(
            answers[donors[each.fact.id]] == each.fact.target_false.strip()
            for each in data.contrasts
            if each.fact.id in donors
        )
        rows = len(donors) + len(data.rejected)
        found = [f"{number:,}" for number in (rows, len(donors), false, len({*donors.values()}))]
        print(f"| {' | '.join([tokenizer, *found, f'{seconds:.1f}'])} |")
        reasons[tokenizer] = Counter(re.sub(r"\d+", "n", each.reason) for each in data.rejected)
    for tokenizer, counts in reasons.items():
        print(f"\n{tokenizer}:\n")
        print("\n".join(f"- {number:,}: {reason}" for reason, number in counts.most_common()))


if __name__ == "__main__":
    auto_cli(count, as_positional=True)
