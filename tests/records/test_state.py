"""The state of a run: contrasts to do, and spares for the sample."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast, digest_contrast
from lit_attr.records.scored import Entry, Scored
from lit_attr.records.state import RunState


def on_disk(*contrasts: Contrast) -> Scored:
    return Scored(Entry(contrast.key, digest_contrast(contrast), "a.json") for contrast in contrasts)


def test_rows_to_do_leaves_out_done_and_refused_ones(sample_contrasts: list[Contrast]):
    first, second, third = sample_contrasts[:3]
    state = RunState(done=on_disk(first), refused=frozenset([second.key]))
    assert state.rows_to_do([first, second, third]) == [2]


def test_another_fact_under_the_same_id_is_refused(sample_contrasts: list[Contrast], tmp_path: Path):
    first, second = sample_contrasts[:2]
    state = RunState(done=on_disk(first), folder=tmp_path)
    assert state.rows_to_do([first]) == []
    other = second._replace(fact=second.fact._replace(id=first.fact.id))
    with pytest.raises(UserError, match=rf"^source: id 0 was another fact in the run that wrote {tmp_path}"):
        state.rows_to_do([other])


def test_processes_never_claim_the_same_spare(sample_contrasts: list[Contrast], tmp_path: Path):
    (tmp_path / "exact").mkdir()
    spares = [*enumerate(sample_contrasts[:6], start=4)]
    done, refused = sample_contrasts[1], sample_contrasts[3]
    state = RunState(exact={done.key: True}, refused=frozenset([refused.key]), folder=tmp_path, spares=spares)
    # A copy, as another process of the run has it.
    states = state, pickle.loads(pickle.dumps(state))
    claimed = [states[turn].next_spare() for turn in (0, 1, 1, 0, 0, 1)]
    # One that an interrupted run has computed is claimed by whoever comes to it, and not computed again.
    assert claimed == [spares[0], None, spares[2], spares[4], spares[5], None]


def test_without_a_folder_there_is_nothing_to_claim(sample_contrasts: list[Contrast]):
    state = RunState(spares=[(2, sample_contrasts[0])])
    assert [state.next_spare(), state.next_spare()] == [(2, sample_contrasts[0]), None]


def test_says_in_one_line_that_a_spare_cannot_be_claimed(sample_contrasts: list[Contrast], tmp_path: Path):
    state = RunState(folder=tmp_path / "gone", spares=[(2, sample_contrasts[0])])
    with pytest.raises(UserError, match=r"^output_dir: .*gone cannot be written to \(No such file or directory\)"):
        state.next_spare()
