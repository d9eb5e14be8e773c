r"""Preconditioned stochastic gradient Langevin dynamics (Li et al. 2016, algorithm 1).

.. math::
    V \leftarrow \lambda V + (1 - \lambda) \hat g^2, \quad G = 1 / (\epsilon + \sqrt V), \quad
    q \leftarrow q + \frac{\eta}{2} \bigl(G \hat g + \Gamma\bigr) + N(0, \eta G), \quad
    \Gamma_i = \frac{\partial G_i}{\partial q_i}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.stochastic.density import Derivatives
from zsp.inference.sampling.stochastic.kernel import (
    Noise,
    Number,
    StochasticGradientKernel,
    require_positive,
    require_rate,
)
from zsp.inference.sampling.stochastic.schedules import Schedule

__all__ = ["PSGLD"]


class State(NamedTuple):
    """Where the chains are; each [chain, D]."""

    position: Tensor
    square: Tensor  # V, the moving average of squared gradients


class Coefficients(NamedTuple):
    """The numbers of a step."""

    drift: Number
    noise: Number


class Info(NamedTuple):
    """What PSGLD reports of a step; each [chain]."""

    log_density: Tensor  # the mini-batch's estimate, unconstrained, where its gradient was taken
    preconditioner: Tensor  # the mean of G over dimensions


@dataclass(frozen=True)
class PSGLD(StochasticGradientKernel):
    r"""Stochastic gradient Langevin dynamics with RMSprop's preconditioner.

    The convention is ZhuSuan's: the drift is learning_rate / 2 times G times the gradient of the log joint of all data,
    the noise has variance learning_rate times G, :math:`G = 1 / (\epsilon + \sqrt V)`.

    The preconditioner follows the gradients, so that without :math:`\Gamma` the chain samples another density: for
    ``decay=0`` the posterior over G. With ``decay`` near 1, G hardly depends on where the chain is and the error is
    small, but G lags behind by 1 / (1 - decay) steps. ``curvature=True`` adds

    .. math:: \Gamma_i = -G_i^2 (1 - \lambda) \hat g_i H_{ii} / \sqrt{V_i},

    with H the Hessian of the log density, whose diagonal is estimated without bias as :math:`z \odot H z` with random
    signs z (exact where the Hessian is diagonal); a step then costs a second derivative. The paper leaves
    :math:`\Gamma` out.

    What to look out for: a step moves by about learning_rate / 2 in each dimension *however large the gradient is*,
    since G is one over its size. Chains that begin at a distance d arrive after some 2 d / learning_rate steps, and
    until then look as if they stood still: R-hat between chains that began apart shows it, and :func:`zsp.mcmc` warns.
    Where gradients vanish, G is 1 / epsilon and the noise large.

    Args:
        learning_rate: :math:`\eta`.
        decay: :math:`\lambda`, from 0 to less than 1.
        epsilon: :math:`\epsilon`, which bounds G.
        curvature: whether to add :math:`\Gamma`.
        schedule: from the number of the step to a factor of the learning rate; default always 1.

    Reference: Li, Chen, Carlson and Carin 2016, arXiv:1512.07666, algorithm 1 and equation 4; ZhuSuan's
    ``zhusuan.PSGLD``, whose defaults these are.
    """

    learning_rate: float
    decay: float = 0.9
    epsilon: float = 1e-3
    curvature: bool = False
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        require_rate(self)
        require_positive(self, "epsilon")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, got {self.decay}.")

    @property
    def probes_curvature(self) -> bool:
        """Whether a step needs the Hessian's product with a random probe."""
        return self.curvature

    def coefficients(self, learning_rate: float, temperature: float) -> Coefficients:
        """The numbers of a step."""
        return Coefficients(learning_rate / 2, sqrt(temperature * learning_rate))

    def begin(self, position: Tensor, generator: torch.Generator) -> State:
        """Chains at ``position`` [chain, D]; the moving average begins at 0, as ZhuSuan's."""
        return State(position, torch.zeros_like(position))

    def advance(
        self, derivatives: Derivatives, state: State, noise: Noise, coefficients: Coefficients
    ) -> tuple[State, Info]:
        """One step of every chain."""
        c = coefficients
        probe = noise.sign if isinstance(noise.sign, Tensor) else None
        value, gradient, *product = derivatives(state.position, probe)
        square = self.decay * state.square + (1 - self.decay) * gradient * gradient
        root = square.sqrt()
        preconditioner = 1 / (self.epsilon + root)
        drift = preconditioner * gradient
        if probe is not None:
            diagonal = probe * product[0]
            # the gradient over its root mean square is 0 where both are
            ratio = torch.where(root > 0, gradient / torch.where(root > 0, root, 1.0), 0.0)
            drift = drift - preconditioner * preconditioner * (1 - self.decay) * ratio * diagonal
        position = state.position + c.drift * drift + c.noise * (preconditioner.sqrt() * noise.normal)
        info = Info(value, preconditioner.mean(-1))
        return State(position, square), info
