r"""One step size and one trajectory length for all chains, adapted from what all of them do.

The Change in the Estimator of the Expected Square (ChEES) of trajectories from :math:`z` to :math:`z'` is

.. math:: \tfrac14 \mathrm E \big[(\|z' - \mathrm E z'\|^2 - \|z - \mathrm E z\|^2)^2\big].

A trajectory has the fraction h of the longest length T. With the velocity :math:`v'` at its end, the derivative of
ChEES by :math:`\log T` is

.. math:: \mathrm E \big[(\|z' - \mathrm E z'\|^2 - \|z - \mathrm E z\|^2) \, (z' - \mathrm E z')^\top v' \, h T \big],

estimated by a mean over chains with their acceptance probabilities as weights, and followed upwards by Adam. The step
size follows the harmonic mean of the acceptance probabilities, which the chains that are worst off rule, by dual
averaging (Hoffman, Radul and Sountsov 2021, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
Monte Carlo", AISTATS, section 3 and algorithm 1).

Expectations over chains need chains: the estimate is good from some dozens of them on. Positions z are those in which
the mass matrix is the identity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.arrays import Array, library
from zsp.inference.sampling.step_size import DualAveraging

__all__ = ["LengthAdaptation", "Outcome", "chees_gradient", "leading_scale", "shared", "spread", "van_der_corput"]

BETA, EPSILON = 0.95, 1e-8
"""Adam's for the squares of the gradients; it has no momentum."""

MAX_LOG_CHANGE = 0.35
"""The trajectory length changes by at most this at once, in logarithms."""

AVERAGE = 0.5
"""The t-th trajectory length has weight t ** -AVERAGE in the average that stays."""

PERIOD = 2**20
"""Trajectories after which their fractions repeat."""


class Outcome(NamedTuple):
    """What the trajectories of all chains came to."""

    start: Array  # [chain, D]
    end: Array  # [chain, D], also where it is rejected
    velocity: Array  # [chain, D], at the end
    acceptance_rate: Array  # [chain]
    fraction: Array  # [chain], of the longest length


class LengthAdaptation(NamedTuple):
    """The adaptation of a step size and a trajectory length; fields of shape [chain], the same for all chains."""

    dual: DualAveraging
    log_length: Array
    log_average_length: Array
    square: Array  # Adam's running mean of squared gradients
    count: Array  # of gradients
    index: Array  # of the next trajectory

    @classmethod
    def start(cls, step_size: Tensor, length: float | None) -> LengthAdaptation:
        """The adaptation from first step sizes [chain] and a first length, one step if none is given."""
        dual = DualAveraging.start(shared(step_size))
        log_length = dual.log_step_size if length is None else torch.full_like(step_size, length).log()
        zero = torch.zeros_like(step_size)
        return cls(dual, log_length, log_length, zero, zero, zero + 1)

    def restart(self, step_size: Tensor, stretch: Tensor) -> LengthAdaptation:
        """The adaptation after a change of the mass matrix which has multiplied distances by ``stretch`` []."""
        log_length = self.log_average_length + stretch.log()
        zero = torch.zeros_like(step_size)
        return LengthAdaptation(DualAveraging.start(shared(step_size)), log_length, log_length, zero, zero, self.index)

    @property
    def log_step_size(self) -> Array:
        """As :class:`DualAveraging`'s."""
        return self.dual.log_step_size

    @property
    def log_average(self) -> Array:
        """As :class:`DualAveraging`'s: of the step sizes."""
        return self.dual.log_average

    def finish(self) -> LengthAdaptation:
        """Both as they stay after the adaptation: the averages."""
        return self._replace(dual=self.dual.finish(), log_length=self.log_average_length)

    def carry_on(self, used: LengthAdaptation) -> LengthAdaptation:
        """As :class:`DualAveraging`'s; the sequence of fractions goes on."""
        return self._replace(index=used.index)

    def plan(self, jitter: float, max_leapfrogs: int) -> tuple[Array, Array]:
        """The next trajectories' fraction of the longest length, and their number of leapfrog steps; each [chain]."""
        xp = library(self.log_length)
        fraction = 1 - jitter + jitter * van_der_corput(self.index)
        ratio = fraction * xp.exp(self.log_length - self.dual.log_step_size)
        return fraction, xp.clip(xp.ceil(ratio), 1.0, float(max_leapfrogs))

    def next(self, where: Array) -> LengthAdaptation:
        """The chains in ``where`` go on to the next trajectory."""
        xp = library(where)
        return self._replace(index=xp.where(where, (self.index + 1) % PERIOD, self.index))

    def update_step_size(self, outcome: Outcome, target: Array, where: Array, is_adapting: Array) -> LengthAdaptation:
        """The adaptation after trajectories that ended in ``where`` (all chains, or none)."""
        rate = outcome.acceptance_rate
        xp = library(rate)
        harmonic = 1 / (1 / xp.clip(rate, 1e-30, 1.0)).mean()
        dual = self.dual.update(xp.zeros_like(rate) + harmonic, target, where, is_adapting, xp)
        return self._replace(dual=dual)

    def update_length(
        self, outcome: Outcome, where: Array, is_adapting: Array, learning_rate: float, max_leapfrogs: int
    ) -> LengthAdaptation:
        """The adaptation after trajectories that ended in ``where`` (all chains, or none)."""
        xp = library(self.count)
        gradient = chees_gradient(outcome, xp.exp(self.log_length))
        count = self.count + 1
        square = BETA * self.square + (1 - BETA) * gradient**2
        change = learning_rate * gradient / (xp.sqrt(square / (1 - BETA**count)) + EPSILON)
        log_length = self.log_length + xp.clip(change, -MAX_LOG_CHANGE, MAX_LOG_CHANGE)
        log_length = xp.minimum(log_length, self.dual.log_average + math.log(max_leapfrogs))
        weight = count**-AVERAGE
        log_average_length = weight * log_length + (1 - weight) * self.log_average_length
        new = (log_length, log_average_length, square, count)
        where = where & (is_adapting > 0)
        updated = [xp.where(where, a, b) for a, b in zip(new, self[1:5], strict=True)]
        return LengthAdaptation(*[self.dual, *updated, self.index])


def chees_gradient(outcome: Outcome, length: Array) -> Array:
    """An estimate of the derivative of ChEES by the logarithm of the length, the same for all chains [chain].

    Positions are divided by the chains' spread before, which changes its scale only, to which Adam is blind.
    """
    start, end, velocity, rate, fraction = outcome
    xp = library(start)
    # a trajectory that left the numbers has no end; its acceptance probability is zero
    is_finite = (xp.isfinite(end) & xp.isfinite(velocity)).all(-1)
    end = xp.where(is_finite[:, None], end, start)
    velocity = xp.where(is_finite[:, None], velocity, 0.0)
    weight = xp.where(is_finite, rate, 0.0)
    centre = (weight[:, None] * end).sum(0) / xp.clip(weight.sum(), 1e-30, None)

    scale = spread(start)
    before = (start - start.mean(0)) / scale
    after = (end - centre) / scale
    dot = xp.linalg.vecdot
    slope = dot(after, velocity) * (fraction * length / scale)
    # a mean over all chains: where nearly all reject, nearly nothing is known
    gradient = (weight * (dot(after, after) - dot(before, before)) * slope).mean()
    return xp.zeros_like(rate) + gradient


def spread(position: Array) -> Array:
    """The root mean square distance of the chains from their mean, over all dimensions: [] from [chain, D]."""
    xp = library(position)
    return xp.sqrt(((position - position.mean(0)) ** 2).mean()) + 1e-30


def leading_scale(position: Tensor) -> Tensor:
    r"""The scale of the dimensions that rule ChEES: :math:`(\sum_d \sigma_d^4 / \sum_d \sigma_d^2)^{1/2}`."""
    variance = position.var(0)
    return (variance.square().sum() / variance.sum()).sqrt()


def shared(step_size: Tensor) -> Tensor:
    """One step size for all chains: their geometric mean, [chain]."""
    return step_size.log().mean().exp().expand_as(step_size).clone()


def van_der_corput(index: Array) -> Array:
    """The numbers of van der Corput's sequence in base 2: the digits of the index, mirrored at the point.

    Args:
        index: whole numbers below 2 ** 24, in floating point, all the same; [chain].

    Returns:
        Numbers in [0, 1), evenly spread over any stretch of indices; [chain].
    """
    xp = library(index)
    first = index[:1]
    weights = 2.0 ** -xp.arange(1, 25, dtype=index.dtype, device=index.device)
    digits = xp.floor(2 * first[:, None] * weights) % 2
    return (digits * weights).sum(-1) + xp.zeros_like(index)
