"""The metrics M of metric attention: one class for each family of matrices, one matrix for each head.

Letters: b batch, h head, t position, k head width, p packed entry of a triangle, r rank.

Each module maps a projection p_bhtk (or p_b1tk, shared by the heads) to p M as (b, h, t, k). `matrix()` returns M
itself. Matrices are computed in float32 from parameters without weight decay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init


class Metric(nn.Module):
    """The base class: it applies a metric, and maps packed entries to a triangle."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.heads, self.width = heads, width

    def matrix(self) -> Tensor:
        """Return M (h, k, k), float32."""
        raise NotImplementedError

    def forward(self, p_bhtk: Tensor) -> Tensor:
        return p_bhtk @ self.matrix().to(p_bhtk.dtype)

    def initialise(self) -> None:
        """Fill parameters, and buffers that no checkpoint holds; transformers' `_init_weights` calls this."""
        raise NotImplementedError


class IdentityMetric(Metric):
    """M = I: queries are the keys (shared-QK, Reformer, arXiv 2001.04451). No parameters."""

    def matrix(self) -> Tensor:
        return torch.eye(self.width).expand(self.heads, -1, -1)

    def forward(self, p_bhtk: Tensor) -> Tensor:
        return p_bhtk.expand(-1, self.heads, -1, -1)

    def initialise(self) -> None:
        pass


class SymmetricMetric(Metric):
    """Any symmetric M, also indefinite: k(k+1)/2 parameters per head.

    M is symmetric by construction, because both triangles read the same entry. The entries start at about 1/sqrt(k)
    with mixed signs, so that no token attends to itself at the start.
    """

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.triangle_hp = nn.Parameter(torch.empty(heads, width * (width + 1) // 2))
        self.register_buffer("entry_kk", triangle_entries(width), persistent=False)

    def matrix(self) -> Tensor:
        return self.triangle_hp.float()[:, self.entry_kk]

    def initialise(self) -> None:
        init.normal_(self.triangle_hp, std=self.width**-0.5)
        init.copy_(self.entry_kk, triangle_entries(self.width))


class SignedDiagonalMetric(Metric):
    """M = diag(m), m of either sign: k parameters per head.

    With one projection per head and tied values, it can express any symmetric M: the eigenvectors and the sizes of the
    eigenvalues move into P and O, and the signs remain. It starts as a balanced ±1.
    """

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.diagonal_hk = nn.Parameter(torch.empty(heads, width))

    def matrix(self) -> Tensor:
        return torch.diag_embed(self.diagonal_hk.float())

    def forward(self, p_bhtk: Tensor) -> Tensor:
        return p_bhtk * self.diagonal_hk[:, None, :].to(p_bhtk.dtype)

    def initialise(self) -> None:
        init.copy_(self.diagonal_hk, alternating_signs(self.width).expand(self.heads, -1))


class PositiveDefiniteMetric(Metric):
    """M = L Lᵀ with a positive diagonal in L: a true inner product, k(k+1)/2 parameters per head. It starts as I."""

    LEAST_DIAGONAL = 1e-3

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.triangle_hp = nn.Parameter(torch.empty(heads, width * (width + 1) // 2))
        self.register_buffer("entry_kk", triangle_entries(width), persistent=False)

    def matrix(self) -> Tensor:
        raw_hkk = self.triangle_hp.float()[:, self.entry_kk]
        diagonal_hk = F.softplus(raw_hkk.diagonal(dim1=-2, dim2=-1)) + self.LEAST_DIAGONAL
        factor_hkk = raw_hkk.tril(-1) + torch.diag_embed(diagonal_hk)
        return factor_hkk @ factor_hkk.mT

    def initialise(self) -> None:
        entries_kk = triangle_entries(self.width)
        raw_p = torch.zeros(self.triangle_hp.shape[-1])
        raw_p[entries_kk.diagonal()] = torch.tensor(1 - self.LEAST_DIAGONAL).expm1().log()  # softplus gives 1 - least
        init.copy_(self.triangle_hp, raw_p.expand(self.heads, -1))
        init.copy_(self.entry_kk, entries_kk)


class GeneralMetric(Metric):
    """M = S + A, a symmetric and an antisymmetric part: any matrix, k² parameters per head."""

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.symmetric = SymmetricMetric(heads, width)
        self.antisymmetric_hp = nn.Parameter(torch.empty(heads, width * (width - 1) // 2))

    def matrix(self) -> Tensor:
        rows, columns = torch.tril_indices(self.width, self.width, -1)
        antisymmetric_hkk = torch.zeros(self.heads, self.width, self.width, device=self.antisymmetric_hp.device)
        antisymmetric_hkk[:, rows, columns] = self.antisymmetric_hp.float()
        return self.symmetric.matrix() + antisymmetric_hkk - antisymmetric_hkk.mT

    def initialise(self) -> None:
        init.normal_(self.antisymmetric_hp, std=(2 * self.width) ** -0.5)


class LowRankMetric(Metric):
    """M = diag(m) + U diag(s) Uᵀ, m and s of either sign: k + (k + 1) r parameters per head."""

    RANK = 4

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.diagonal_hk = nn.Parameter(torch.empty(heads, width))
        self.factor_hkr = nn.Parameter(torch.empty(heads, width, self.RANK))
        self.signs_hr = nn.Parameter(torch.empty(heads, self.RANK))

    def matrix(self) -> Tensor:
        factor_hkr = self.factor_hkr.float()
        low_rank_hkk = (factor_hkr * self.signs_hr.float()[:, None, :]) @ factor_hkr.mT
        return torch.diag_embed(self.diagonal_hk.float()) + low_rank_hkk

    def initialise(self) -> None:
        init.copy_(self.diagonal_hk, alternating_signs(self.width).expand(self.heads, -1))
        init.normal_(self.factor_hkr, std=self.width**-0.5)
        init.copy_(self.signs_hr, alternating_signs(self.RANK).expand(self.heads, -1))


def triangle_entries(width: int) -> Tensor:
    """Return (k, k): the index of the packed entry at each place of a symmetric matrix."""
    rows, columns = torch.tril_indices(width, width)
    entry_kk = torch.empty(width, width, dtype=torch.long)
    entry_kk[rows, columns] = entry_kk[columns, rows] = torch.arange(len(rows))
    return entry_kk


def alternating_signs(width: int) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(width) % 2)


METRICS: dict[str, type[Metric]] = {
    "identity": IdentityMetric,
    "symmetric": SymmetricMetric,
    "signed_diagonal": SignedDiagonalMetric,
    "positive_definite": PositiveDefiniteMetric,
    "general": GeneralMetric,
    "low_rank": LowRankMetric,
}
