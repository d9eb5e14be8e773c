"""The posteriors that are sampled, with their data; made without torch, which a process of a peer does not import."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Problem", "correlated_gaussian", "eight_schools", "logistic_regression"]


@dataclass(frozen=True)
class Problem:
    """A posterior.

    Attributes:
        kind: ``"logistic"``, ``"gaussian"`` or ``"schools"``: which model.
        name: as the table shows it.
        n_dims: of the unconstrained latents.
        data: name -> float32.
    """

    kind: str
    name: str
    n_dims: int
    data: dict[str, np.ndarray]


def logistic_regression(n: int = 1000, n_dims: int = 25, scale: float = 0.5) -> Problem:
    """w ~ N(0, I), y_i ~ Bernoulli(sigmoid(x_i w)), data drawn from it with w of standard deviation ``scale``."""
    random = np.random.default_rng(0)
    x = random.standard_normal((n, n_dims)).astype(np.float32)
    w = scale * random.standard_normal(n_dims)
    y = (random.random(n) < 1 / (1 + np.exp(-x @ w))).astype(np.float32)
    return Problem("logistic", f"logistic regression {n:,} x {n_dims}", n_dims, {"x": x, "y": y})


def correlated_gaussian(n_dims: int = 100) -> Problem:
    """N(0, C), C = A A' + I / 20 with A's entries from N(0, 1 / D); its density is given by the inverse of C."""
    random = np.random.default_rng(0)
    a = random.standard_normal((n_dims, n_dims)) / n_dims**0.5
    precision = np.linalg.inv(a @ a.T + 0.05 * np.eye(n_dims)).astype(np.float32)
    return Problem("gaussian", f"correlated Gaussian, {n_dims}-d", n_dims, {"precision": precision})


def eight_schools() -> Problem:
    """y_j ~ N(mu + tau z_j, s_j), mu ~ N(0, 5), tau ~ half-Cauchy(5), z_j ~ N(0, 1)."""
    y = np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32)
    s = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)
    return Problem("schools", "eight schools", 10, {"y": y, "s": s})
