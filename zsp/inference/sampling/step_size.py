r"""Step sizes, adapted to a target acceptance rate by dual averaging.

.. math::
    \bar H_t = (1 - \eta_t) \bar H_{t-1} + \eta_t (\delta - \alpha_t), \quad \eta_t = 1 / (t + t_0), \quad
    \log \epsilon_t = \mu - \sqrt t \, \bar H_t / \gamma

with :math:`\mu = \log 10 \epsilon_0`, and :math:`\log \bar\epsilon_t` the average of :math:`\log \epsilon_t` with
weights :math:`t^{-\kappa}` (Hoffman and Gelman 2014, arXiv:1111.4246, section 3.2, equation 6).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from zsp.inference.compilation.tracing import is_traced
from zsp.inference.sampling.arrays import kinetic, library

__all__ = ["DualAveraging", "find_step_size"]

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75


class DualAveraging(NamedTuple):
    """Each chain's step size in its adaptation; fields of shape [chain], tensors or numpy arrays."""

    log_step_size: Any
    log_average: Any
    error: Any
    n_updates: Any
    mu: Any

    @classmethod
    def start(cls, step_size: Tensor) -> DualAveraging:
        """The adaptation from first step sizes."""
        log = step_size.log()
        return cls(log, log.clone(), log * 0, log * 0, log + math.log(10))

    def value(self, xp: Any) -> Any:
        """The step sizes to use now."""
        return xp.exp(self.log_step_size)

    def update(self, acceptance_rate: Any, target: Any, where: Any, is_adapting: Any, xp: Any) -> DualAveraging:
        """The adaptation after transitions of the chains in ``where``."""
        if not is_traced() and not is_adapting:
            return self
        where = where & (is_adapting > 0)
        count = self.n_updates + 1
        eta = 1 / (count + T0)
        error = (1 - eta) * self.error + eta * (target - acceptance_rate)
        log_step_size = self.mu - xp.sqrt(count) / GAMMA * error
        weight = count**-KAPPA
        log_average = weight * log_step_size + (1 - weight) * self.log_average
        new = (log_step_size, log_average, error, count)
        return DualAveraging(*[xp.where(where, a, b) for a, b in zip((*new, self.mu), self, strict=True)])

    def finish(self) -> DualAveraging:
        """Step sizes as they stay after the adaptation: the averages."""
        return DualAveraging.start(self.log_average.exp())

    def carry_on(self, used: DualAveraging) -> DualAveraging:
        """This adaptation after transitions outside of it, which have led from its end to ``used``."""
        return self


def find_step_size(density: Any, position: Any, metric: Any, first: Any, momentum: Any) -> Any:
    """First step sizes [chain]: doubled or halved until one leapfrog step's acceptance probability crosses 0.8.

    Hoffman and Gelman 2014, arXiv:1111.4246, algorithm 4; every chain has its own, and 0.8 instead of 1/2 as in Stan.

    Args:
        density: from positions [chain, D] to log densities and gradients.
        position: where the chains begin, [chain, D].
        metric: the mass matrix.
        first: where the search begins, [chain].
        momentum: standard normal, [chain, D].
    """
    xp = library(position)
    log_density, gradient = density(position)
    force = metric.pull(gradient)
    threshold = math.log(0.8)

    def log_acceptance(step_size: Any) -> Any:
        step = step_size[:, None]
        half = momentum + 0.5 * step * force
        new_log_density, new_gradient = density(position + step * metric.push(half))
        end = half + 0.5 * step * metric.pull(new_gradient)
        change = new_log_density - log_density + kinetic(momentum) - kinetic(end)
        return xp.where(xp.isnan(change), -math.inf, change)

    step_size = first
    doubles = log_acceptance(step_size) > threshold
    is_searching = xp.ones_like(doubles)
    for _ in range(60):
        new = xp.where(is_searching, xp.where(doubles, 2 * step_size, 0.5 * step_size), step_size)
        is_searching = is_searching & ((log_acceptance(new) > threshold) == doubles)
        # a step that is too long is not taken
        step_size = xp.where(is_searching | ~doubles, new, step_size)
        if not is_searching.any():
            break
    return step_size
