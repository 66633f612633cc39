"""Temporary changes to a model."""

from __future__ import annotations

import torch

from lit_attr.models.hooks import TANH_GELUS, fused_gelus


def test_fused_gelus_equal_the_functions_that_they_replace():
    values = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    for kind in TANH_GELUS:
        module = torch.nn.Sequential(kind())
        expected = module(values)
        with fused_gelus(module):
            assert "forward" in vars(module[0])
            torch.testing.assert_close(module(values), expected, rtol=0, atol=1e-11)
        assert "forward" not in vars(module[0])
