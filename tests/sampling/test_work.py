"""The items of a run: the pilot first, whole again after any interruption, and apart from the judges."""

from __future__ import annotations

import pytest

from lit_attr.facts.contrasts import Contrast
from lit_attr.records.state import RunState
from lit_attr.sampling.work import comparisons_work, pilot_keys, pilot_work, scores_work


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    return sample_contrasts[:8]


def test_the_pilot_is_the_first_of_the_order_and_does_not_depend_on_what_is_refused(contrasts: list[Contrast]):
    order = [contrast.key for contrast in contrasts]
    assert pilot_keys(order, 3, RunState()) == order[:3]
    # Refused while the model ran, and killed before its exact effects were written.
    assert pilot_keys(order, 3, RunState(refused=frozenset(order[:1]))) == order[:3]
    assert pilot_keys(order, 20, RunState()) == order


def test_a_begun_pilot_is_kept_and_one_that_was_fitted_to_gets_no_others(contrasts: list[Contrast]):
    order = [contrast.key for contrast in contrasts]
    begun = frozenset([order[4], order[6]])
    assert pilot_keys(order, 4, RunState(pilots=begun)) == [order[4], order[6], order[0], order[1]]
    assert pilot_keys(order, 4, RunState(pilots=begun, has_error_model=True)) == [order[4], order[6]]


def test_the_pilots_contrasts_lack_scores_or_effects_until_both_are_there(contrasts: list[Contrast]):
    keys = [contrast.key for contrast in contrasts]
    state = RunState(
        # 0 is complete, 1 lacks scores, 2 lacks effects, 3 is refused with effects, 4 has those of a judge.
        done=frozenset([keys[0], keys[2], keys[4]]),
        refused=frozenset([keys[3]]),
        exact={keys[0]: True, keys[1]: True, keys[3]: False, keys[4]: True},
        pilots=frozenset([keys[0], keys[1], keys[2], keys[3]]),
    )
    work = pilot_work(contrasts[:6], state, 2)
    assert [item.contrasts for item in work] == [[contrasts[place]] for place in (1, 2, 4, 5)]
    assert all(item.is_pilot for item in work)
    # The first, third, ... are of the first process.
    assert [item.comparison for item in work] == [(1, 2), (1, 2), (2, 2), (2, 2)]


def test_batches_keep_their_width_and_the_pilots_contrasts(contrasts: list[Contrast]):
    longest = contrasts[0]._replace(token_ids=contrasts[0].token_ids * 2)
    done, pilot = {longest.key, contrasts[1].key, contrasts[3].key}, {contrasts[1].key, contrasts[4].key}
    (work,) = scores_work([[longest, *contrasts[1:3]], contrasts[3:4], contrasts[4:5]], done, pilot)
    assert work.contrasts == contrasts[1:3]
    assert work.width == len(longest.token_ids) > max(len(contrast.token_ids) for contrast in contrasts)


def test_the_pilot_never_judges(contrasts: list[Contrast]):
    order = [contrast.key for contrast in contrasts]
    # 2 is of an earlier pilot, 0 of this one.
    state = RunState(pilots=frozenset([order[2]]), exact={order[1]: True, order[3]: False})
    state.pilot = [contrasts[0]]
    work = comparisons_work(contrasts, order, 3, state, 1)
    assert [item.contrasts for item in work] == [[contrasts[4]], [contrasts[5]]]
    assert state.spares == [(6, contrasts[6]), (7, contrasts[7])]
    assert comparisons_work(contrasts, order, 0, state, 1) == []
