"""Forward passes for the logit difference."""

from __future__ import annotations

import torch

from lit_attr.attribution.passes import _Unembed


def test_the_backward_of_the_unembedding_is_that_of_a_linear_layer():
    """Also where none of the answers' tokens has a gradient."""
    torch.manual_seed(0)
    weight_VH, bias_V = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    hidden_BTH = torch.randn(4, 1, 5, dtype=torch.float64, requires_grad=True)
    tokens_A = torch.tensor([0, 3, 7, 10])
    logits_BTV = _Unembed.apply(weight_VH, bias_V, tokens_A, hidden_BTH)
    torch.testing.assert_close(logits_BTV, torch.nn.functional.linear(hidden_BTH, weight_VH, bias_V))
    is_answer_V = torch.zeros(11).index_fill(0, tokens_A, 1)
    for weights_BTV in (is_answer_V.expand(4, 1, -1), is_answer_V * torch.randn(4, 1, 11), torch.zeros(4, 1, 11)):
        (found,) = torch.autograd.grad((logits_BTV * weights_BTV).sum(), hidden_BTH, retain_graph=True)
        torch.testing.assert_close(found, weights_BTV.double() @ weight_VH)
