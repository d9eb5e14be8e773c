r"""The step size and the decoherence length of microcanonical Langevin dynamics, adapted by many chains together.

The bias of a sampler without a Metropolis test is bounded by its step size :math:`\epsilon`, which is set by the
variance of the energy error of a step, per dimension. That variance goes with :math:`\epsilon^6`, so that an observed
:math:`v = \mathrm{mean}(\Delta E^2) / D` at :math:`\epsilon` suggests :math:`\epsilon (v^* / v)^{1/6}` for the wanted
:math:`v^*`; an average over the last steps, in logarithms, is taken of these suggestions, those far from the present
step size with less weight (Robnik, De Luca, Silverstein and Seljak 2023, arXiv:2212.08549, section 4.2).

The length L in which directions are forgotten begins at the chains' spread,
:math:`(\sum_d \mathrm{var}\, z_d)^{1/2}`, and follows

.. math:: L \leftarrow \sqrt{L \cdot 0.4 \, \epsilon \tau}

where :math:`\tau` is the integrated autocorrelation time in steps, averaged over dimensions (section 4.2 there, with
:math:`L = 0.4 \, \epsilon \tau` once). Autocorrelations are correlations over chains with the positions some steps
ago; a sum of them ends where they fall below 0.05, and the next one begins. On a standard normal distribution
:math:`\epsilon \tau = 2 D / L`: the geometric mean makes L the fixed point :math:`\sqrt{0.8 D}` at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.arrays import Array, Choice, library
from zsp.inference.sampling.trajectory_length import shared

__all__ = ["Memory"]

N_REMEMBERED = 150.0
"""Steps that the average of suggested step sizes goes back over, about."""

TRUST = 1.5
"""A suggestion that differs from the present step size by a factor of e ** TRUST has weight e ** -1/2."""

LARGEST = 1e6
"""A chain's squared energy error counts at most this many times the wanted one."""

UNCORRELATED = 0.05
LENGTH_FACTOR = 0.4


class Memory(NamedTuple):
    """What microcanonical dynamics carries on: directions, and the adaptation, the same for all chains."""

    momentum: Array  # [chain, D], of length 1; zero before the first step
    log_step_size: Array  # [chain]
    suggested: Array  # [chain]: weighted sum of suggested log step sizes
    weight: Array  # [chain]: its weights
    log_length: Array  # [chain]
    n_lengths: Array  # [chain], suggested so far
    reference: Array  # [chain, D]: positions some steps ago
    lag: Array  # [chain]: how many; -1 for no reference
    correlation: Array  # [chain]: sum since then

    @classmethod
    def start(cls, step_size: Tensor, length: Tensor, momentum: Tensor) -> Memory:
        """The adaptation from first step sizes [chain], a length [], and directions [chain, D]."""
        zero = torch.zeros_like(step_size)
        return cls(
            momentum, shared(step_size).log(), zero, zero, zero + length.log(), zero, torch.zeros_like(momentum),
            zero - 1, zero,
        )  # fmt: skip

    @property
    def log_average(self) -> Array:
        """The step size that stays after the adaptation; it is an average already."""
        return self.log_step_size

    def finish(self) -> Memory:
        """Step size and length as they stay after the adaptation."""
        return self

    def carry_on(self, used: Memory) -> Memory:
        """As :class:`DualAveraging`'s; the directions go on."""
        return self._replace(momentum=used.momentum)

    def update_step_size(self, energy_change: Array, n_dims: int, wanted: float, is_adapting: Array) -> Memory:
        """The adaptation after a step whose energy errors, not a number where it left the numbers, were these."""
        xp = library(energy_change)
        ratio = energy_change**2 / (n_dims * wanted)
        ratio = xp.where(ratio < LARGEST, ratio, LARGEST).mean()
        log_change = -xp.log(ratio + 1e-8) / 6
        new = xp.exp(-0.5 * (log_change / TRUST) ** 2)
        decay = (N_REMEMBERED - 1) / (N_REMEMBERED + 1)
        suggested = decay * self.suggested + new * (self.log_step_size + log_change)
        weight = decay * self.weight + new
        changed = (suggested / weight, suggested, weight)
        fields = (xp.where(is_adapting > 0, a, b) for a, b in zip(changed, self[1:4], strict=True))
        return Memory(*[self.momentum, *fields, *self[4:]])

    def update_length(self, position: Array, is_adapting: Array) -> Memory:
        """The adaptation after a step to these positions [chain, D]."""
        xp = library(position)
        correlation = _correlation(position, self.reference)
        is_first = self.lag < 0
        is_over = ~is_first & (correlation < UNCORRELATED)
        total = self.correlation + correlation
        log_time = xp.log(1 + 2 * xp.where(is_over, self.correlation, 0.0))
        log_suggested = math.log(LENGTH_FACTOR) + self.log_step_size + log_time
        n_lengths = self.n_lengths + is_over
        gain = 1 / (n_lengths + 1)
        log_length = self.log_length + gain * is_over * (log_suggested - self.log_length)
        is_new = is_first | is_over
        new = Choice(is_new)
        changed = (
            log_length, n_lengths, new(position, self.reference),
            xp.where(is_new, 0.0, self.lag + 1), xp.where(is_new, 0.0, total),
        )  # fmt: skip
        fields = (xp.where(is_adapting > 0, a, b) for a, b in zip(changed, self[4:], strict=True))
        return Memory(*self[:4], *fields)


def _correlation(position: Array, reference: Array) -> Array:
    """Correlations over chains, averaged over dimensions, the same for all chains [chain]."""
    xp = library(position)
    a, b = position - position.mean(0), reference - reference.mean(0)
    scale = xp.sqrt((a * a).sum(0) * (b * b).sum(0))
    return ((a * b).sum(0) / xp.clip(scale, 1e-30, None)).mean() + xp.zeros_like(position[:, 0])
