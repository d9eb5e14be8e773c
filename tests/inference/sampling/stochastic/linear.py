"""The kernels on Gaussians written out as linear recursions, by hand from their equations: their exact stationary laws.

With the gradient :math:`-P q + \\sigma \\xi` a step of SGLD, SGHMC, or SGNHT whose thermostat is held, is
:math:`s' = A s + B n` with standard normal n, s = q or (q, v); the covariance C that solves :math:`C = A C A' + B B'` is
that of the draws, at this step size and not only for small ones.
"""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
import scipy.linalg
import torch

from tests.monte_carlo import assert_mean
from zsp.inference.sampling.stochastic.sghmc import SGHMC
from zsp.inference.sampling.stochastic.sgld import SGLD

PRECISION = np.array([[2.0, 0.6], [0.6, 1.0]])


def recursion(kernel, precision=PRECISION, sigma=0.0):
    """A and B B' of a kernel."""
    eye, eta = np.eye(len(precision)), kernel.learning_rate
    if isinstance(kernel, SGLD):
        return eye - eta / 2 * precision, (eta + (eta / 2 * sigma) ** 2) * eye
    if isinstance(kernel, SGHMC):
        alpha, added = kernel.friction, kernel.friction - kernel.variance_estimate
    else:
        alpha = added = kernel.variance_extra
    variance = 2 * added * eta + (eta * sigma) ** 2
    if kernel.second_order:  # q + v / 2, then the velocity, then q + v / 2
        half = exp(-alpha / 2)
        drift = np.block([[eye, eye / 2], [0 * eye, eye]])
        kick = np.block([[eye, 0 * eye], [-half * eta * precision, half**2 * eye]])
        noise = np.vstack([0 * eye, half * sqrt(variance) * eye])
        noise = drift @ noise
        return drift @ kick @ drift, noise @ noise.T
    drift = np.block([[eye, eye], [0 * eye, eye]])
    kick = np.block([[eye, 0 * eye], [-eta * precision, (1 - alpha) * eye]])
    noise = drift @ np.vstack([0 * eye, sqrt(variance) * eye])
    return drift @ kick, noise @ noise.T


def stationary(kernel, precision=PRECISION, sigma=0.0):
    """The covariance of (q, v) in the long run."""
    a, b = recursion(kernel, precision, sigma)
    return scipy.linalg.solve_discrete_lyapunov(a, b)


def n_steps_to_forget(kernel, precision=PRECISION):
    """Steps after which 1e-4 of the beginning is left, and 1e-8 in the covariance."""
    radius = np.abs(np.linalg.eigvals(recursion(kernel, precision)[0])).max()
    return int(np.ceil(np.log(1e-4) / np.log(radius)))


def log_density(position, precision=PRECISION, sigma=0.0, generator=None):
    """log N(q; 0, P^-1) but for its constant, with noise of standard deviation sigma on every gradient."""
    value = -0.5 * ((position @ torch.as_tensor(precision).to(position)) * position).sum(-1)
    if sigma:
        xi = torch.randn(position.shape, dtype=position.dtype, generator=generator)
        value = value + sigma * (xi * position).sum(-1)
    return value


def run(kernel, n_chains=(80, 100), n_steps=None, sigma=0.0, dtype=torch.float64):
    """The last state of chains that began at 0."""
    n_steps = n_steps_to_forget(kernel) if n_steps is None else n_steps
    generator = torch.Generator().manual_seed(1)
    state = kernel.init(log_density, torch.zeros(*n_chains, len(PRECISION), dtype=dtype), seed=2)
    info = None
    for _ in range(n_steps):
        noise = None if not sigma else torch.randn(*n_chains, len(PRECISION), dtype=dtype, generator=generator)

        def noisy(position, noise=noise):
            value = log_density(position)
            return value if noise is None else value + sigma * (noise * position).sum(-1)

        state, info = kernel.step(noisy, state)
    return state, info


def assert_covariance(draws, expected):
    """Independent draws [n, D] have mean zero and this covariance, at a false alarm rate of 1e-7 each."""
    assert_mean(draws, 0.0)
    assert_mean(draws[:, :, None] * draws[:, None], torch.as_tensor(expected).to(draws))
