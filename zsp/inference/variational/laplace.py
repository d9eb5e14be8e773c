r"""Laplace's approximation: a Gaussian at the mode of the log density, with its curvature there.

.. math:: q(x) = \mathcal{N}(x \mid \hat x, (-\nabla^2 f(\hat x))^{-1}), \quad
    \log p(y) \approx f(\hat x) + \tfrac D2 \log 2\pi - \tfrac12 \log|-\nabla^2 f(\hat x)|

f is the log density of all latents in the unconstrained space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from zsp.inference.log_density import LogDensity
from zsp.inference.variational.gaussian import FullRankGaussian, gaussian_variational_net, starting_position
from zsp.inference.variational.objective import LogJoint
from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = ["LaplaceApproximation", "laplace"]

_MAX_NEWTON_STEPS = 20


class LaplaceApproximation(NamedTuple):
    """Laplace's approximation of a posterior and of the evidence.

    Attributes:
        variational: the approximation as a variational net.
        log_evidence: the estimate of log p(y), in nats, a scalar.
        mode: name -> value at which the density in the unconstrained space is largest.
    """

    variational: MetaBayesianNet
    log_evidence: Tensor
    mode: dict[str, Tensor]


def laplace(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    latents: Iterable[str] | Mapping[str, Tensor] | None = None,
    supports: Mapping[str, Constraint] | None = None,
    init: Mapping[str, Any] | None = None,
    n_samples: int | None = None,
    max_iterations: int = 1000,
) -> LaplaceApproximation:
    r"""Laplace's approximation: a Gaussian at the posterior's mode in the unconstrained space, found by L-BFGS.

    Its covariance is the inverse of minus the Hessian at the mode, so that it is exact where the log density is
    quadratic. ::

        q, log_evidence, mode = zsp.laplace(model, {"x": x, "y": y}, n_samples=1000)
        zsp.is_loglikelihood(model, {"x": x, "y": y}, proposal=q)      # how far the estimate is off

    Args:
        meta_bn: the model, or a callable from one dict of values to a scalar log joint.
        observed: node or input name -> value.
        latents: the names of all latents, as a check; for a callable a dict of example tensors.
        supports: for a callable, name -> constraint of the latents that have one.
        init: name -> value from which the search starts; default where the unconstrained ones are 0.
        n_samples: the size of the variational net's sample axis; None adds none.
        max_iterations: of L-BFGS.

    Returns:
        The variational net (as :func:`zsp.full_rank` makes it, ready to be trained further), the estimate of the log
        evidence, and the mode.

    Raises:
        ValueError: if the search does not end at a strict maximum, and as for :func:`zsp.full_rank`.

    Reference: Tierney and Kadane 1986, JASA 81(393), equations 2.2 and 2.3.
    """
    log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
    family = FullRankGaussian(log_density, starting_position(log_density, init), std=1.0)
    mode, precision_tril = _polish(log_density, _climb(log_density, family.loc.detach(), max_iterations))
    with torch.no_grad():
        scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(precision_tril))
        family.loc.copy_(mode)
        family.logstd.copy_(scale_tril.diagonal().log())
        family.lower.copy_(scale_tril.tril(-1))
        half_log_determinant = precision_tril.diagonal().log().sum()
        log_evidence = log_density(mode) + 0.5 * mode.shape[0] * math.log(2 * math.pi) - half_log_determinant
        values = log_density.constrain(mode)
    return LaplaceApproximation(gaussian_variational_net(family, n_samples, False, "laplace"), log_evidence, values)


def _climb(log_density: LogDensity, start: Tensor, max_iterations: int) -> Tensor:
    """A position near a maximum, by L-BFGS."""
    position = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [position], max_iter=max_iterations, tolerance_change=1e-10, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = -log_density(position)
        (position.grad,) = torch.autograd.grad(loss, position)
        return loss.detach()

    optimizer.step(closure)  # type: ignore[arg-type]
    return position.detach()


def _polish(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum nearby, by Newton's method, and the Cholesky factor of minus the Hessian there.

    Half of the gradient's squared length in the metric of the Hessian is how much the log density lacks, in nats, to
    its maximum: a criterion without a scale.
    """
    gradient_of = torch.func.grad(log_density)
    lacks, is_near = math.inf, False
    for _ in range(_MAX_NEWTON_STEPS):
        gradient = gradient_of(position).detach()
        hessian = torch.func.jacrev(gradient_of)(position).detach()
        precision_tril, info = torch.linalg.cholesky_ex(-0.5 * (hessian + hessian.mT))
        if int(info) or not bool(gradient.isfinite().all()):
            raise ValueError(_no_maximum(gradient, hessian))
        step = torch.cholesky_solve(gradient.unsqueeze(-1), precision_tril).squeeze(-1)
        lacks = 0.5 * float(gradient @ step)
        if is_near:  # at the step before, and so to rounding now
            return position, precision_tril
        is_near = lacks <= torch.finfo(position.dtype).eps ** 0.75
        position = position + step
    raise ValueError(
        f"the search for the mode ended {lacks:.3g} nats below a maximum. Raise max_iterations, start nearer to the "
        "mode (init), or use float64."
    )


def _no_maximum(gradient: Tensor, hessian: Tensor) -> str:
    if not bool(gradient.isfinite().all() and hessian.isfinite().all()):
        return (
            "the derivatives of the log density are not finite where the search ended. Perhaps there is no mode, as "
            "where a group's standard deviation goes to 0 together with its members' differences: declare these in "
            "units of it instead. Or start elsewhere (init)."
        )
    largest = torch.linalg.eigvalsh(0.5 * (hessian + hessian.mT)).amax().item()
    return (
        f"the log density is no strict maximum where the search ended: its Hessian has the eigenvalue {largest:.3g}, "
        "and all should be negative. The posterior is improper or flat in a direction, or the search ended at a "
        "saddle point: check the priors, or start elsewhere (init)."
    )
