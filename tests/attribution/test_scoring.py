"""Windows of layers that a run computes effects of."""

from __future__ import annotations

import pytest
from transformers import GPT2LMHeadModel

from lit_attr.attribution.scoring import check_window
from lit_attr.errors import ArgumentError
from lit_attr.models.location import locate


@pytest.mark.parametrize("window", [-1, 0, 1, 4])
def test_a_window_has_two_layers_or_more_and_no_more_than_there_are(random_model: GPT2LMHeadModel, window: int):
    with pytest.raises(ArgumentError) as refused:
        check_window(locate(random_model), window)
    assert str(refused.value) == f"window: {window} is not from 2 to 3, the number of layers; give another"


def test_a_window_has_consecutive_layers(random_model: GPT2LMHeadModel):
    check_window(locate(random_model), 3)
    check_window(locate(random_model, layers=[0, 2]), None)
    with pytest.raises(
        ArgumentError, match="^window: its layers are replaced together; choose consecutive layers, or"
    ):
        check_window(locate(random_model, layers=[0, 2]), 2)
