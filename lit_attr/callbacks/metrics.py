"""What a run's scores and answers come to, as metrics that processes share.

Axes: B contrasts, L layers, R roles (in the order of `ROLES`), T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_attr.facts.contrasts import ROLES


class RoleLayerProfile(Metric):
    """Mean score of each layer at each token role, as Meng et al. (2022, figure 2) average their causal traces.

    The tokens of one contrast that share a role are averaged first, so that a long subject counts once.

    Args:
        layers: How many layers the scores have.
    """

    full_state_update = False
    total_LR: Tensor
    square_LR: Tensor
    count_R: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__()
        # float64: the sums are over all rows of a data set.
        for name in ("total_LR", "square_LR"):
            self.add_state(name, torch.zeros(layers, len(ROLES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count_R", torch.zeros(len(ROLES), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores_BLT: Tensor, role_mask_BRT: Tensor) -> None:
        """Adds contrasts.

        Args:
            scores_BLT: Scores, in logits; padding is in no role.
            role_mask_BRT: bool, which tokens have which role.
        """
        mask_BRT = role_mask_BRT.double()
        tokens_BR = mask_BRT.sum(-1)
        means_BLR = torch.einsum("blt,brt->blr", scores_BLT.double(), mask_BRT) / tokens_BR.clamp(min=1)[:, None]
        self.total_LR += means_BLR.sum(0)
        self.square_LR += means_BLR.square().sum(0)
        self.count_R += (tokens_BR > 0).sum(0)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and their standard errors, float64 [L, R]; and the contrasts behind each role, [R].

        A mean is NaN where no contrast has the role, a standard error where fewer than two have.
        """
        mean_LR = self.total_LR / self.count_R
        variance_LR = (self.square_LR / self.count_R - mean_LR.square()).clamp(min=0)
        return mean_LR, (variance_LR / (self.count_R - 1)).sqrt().where(self.count_R > 1, torch.nan), self.count_R


class AnswerCounts(Metric):
    """How many contrasts there are, in how many the true answer is preferred, and in how many it is known.

    Preferred: logit_true > logit_false. Known: no token is more likely than the true one.
    """

    full_state_update = False
    total: Tensor
    preferred: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "preferred", "known"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logit_diff_B: Tensor, rank_true_B: Tensor) -> None:
        """Adds contrasts.

        Args:
            logit_diff_B: logit_true − logit_false.
            rank_true_B: How many tokens are more likely than the true one.
        """
        self.total += len(logit_diff_B)
        self.preferred += (logit_diff_B > 0).sum()
        self.known += (rank_true_B == 0).sum()

    def compute(self) -> tuple[int, int, int]:
        """Contrasts in all, those with the true answer preferred, those with it known."""
        return int(self.total), int(self.preferred), int(self.known)
