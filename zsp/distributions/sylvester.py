r"""The Sylvester flow's transform, :math:`f(z) = z + Q R \tanh(\tilde R Q^\top z + b)`, with its exact Jacobian.

(Pyro's has another map, whose log-Jacobian is not the one that it gives.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions.constraints import real_vector
from torch.distributions.transforms import Transform

__all__ = ["Sylvester"]


class Sylvester(Transform, nn.Module):
    r"""A residual layer whose Jacobian's determinant is cheap, by Sylvester's identity; a module, for ``bn.flow``.

    .. math:: f(z) = z + Q R \tanh(\tilde R Q^\top z + b), \quad
        \log\Bigl|\det\frac{\partial f}{\partial z}\Bigr| = \sum_i \log(1 + \tanh'_i R_{ii} \tilde R_{ii})

    Q is a product of Householder reflections, R and its companion are upper triangular with diagonals in (-1, 1), which
    makes the map one-to-one. Its inverse has no closed form. ::

        bn.flow("z", base, [zsp.module(f"layer{i}", zsp.distributions.Sylvester, 2) for i in range(4)])

    Args:
        dim: the length D of the vectors.
        n_reflections: how many reflections Q is made of; default D.

    Reference: van den Berg et al. 2018, arXiv:1803.05649, equations 13 to 15 and section 4.1.2.
    """

    domain = real_vector
    codomain = real_vector
    bijective = True

    def __init__(self, dim: int, n_reflections: int | None = None) -> None:
        nn.Module.__init__(self)
        Transform.__init__(self)
        n_reflections = dim if n_reflections is None else n_reflections
        if dim < 1 or n_reflections < 1:
            raise ValueError(f"Sylvester needs dim and n_reflections from 1 on, but got {dim} and {n_reflections}.")
        self.reflections = nn.Parameter(torch.randn(n_reflections, dim))
        self.first = nn.Parameter(0.01 * torch.randn(dim, dim))
        self.second = nn.Parameter(0.01 * torch.randn(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _orthogonal(self) -> Tensor:
        unit = torch.eye(self.bias.shape[0], dtype=self.bias.dtype, device=self.bias.device)
        matrix = unit
        for v in nn.functional.normalize(self.reflections, dim=-1):
            matrix = matrix - 2 * torch.outer(matrix @ v, v)
        return matrix

    def _hidden(self, x: Tensor, orthogonal: Tensor) -> Tensor:
        return (x @ orthogonal @ _triangle(self.second).mT + self.bias).tanh()

    def _call(self, x: Tensor) -> Tensor:
        orthogonal = self._orthogonal()
        return x + self._hidden(x, orthogonal) @ _triangle(self.first).mT @ orthogonal.mT

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError("the inverse of a Sylvester layer has no closed form")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the logarithms of the factors that are left of the determinant, of shape batch."""
        slope = 1 - self._hidden(x, self._orthogonal()).square()
        return (slope * self.first.diagonal().tanh() * self.second.diagonal().tanh()).log1p().sum(-1)


def _triangle(entries: Tensor) -> Tensor:
    """An upper triangular matrix with a diagonal in (-1, 1)."""
    return entries.triu(1) + torch.diag_embed(entries.diagonal().tanh())
