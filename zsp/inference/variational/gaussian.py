r"""Gaussian variational nets over all latents of a model, in its unconstrained space: mean-field and full-rank.

.. math:: z = f(\mu + L \epsilon), \quad \epsilon \sim \mathcal{N}(0, I), \quad
    \log q(z) = \log \mathcal{N}(f^{-1}(z) \mid \mu, L L^\top) - \log\Bigl|\det\frac{\partial f}{\partial x}\Bigr|

f maps onto the supports that the model's nodes have, which may depend on other latents; L is diagonal or lower
triangular. The density of one latent given those before it is its part of the sum over the components of
:math:`\epsilon`, so that the net has one node for each latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from zsp.bayesian_net import BayesianNet
from zsp.inference.bijectors import Bijector
from zsp.inference.log_density import LogDensity, sum_from
from zsp.inference.variational.objective import LogJoint
from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = [
    "FullRankGaussian",
    "MeanFieldGaussian",
    "full_rank",
    "gaussian_variational_net",
    "mean_field",
    "starting_position",
]


def mean_field(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    latents: Iterable[str] | Mapping[str, Tensor] | None = None,
    supports: Mapping[str, Constraint] | None = None,
    init: Mapping[str, Any] | None = None,
    std: float = 0.1,
    n_samples: int | None = None,
    use_path_derivative: bool = False,
) -> MetaBayesianNet:
    r"""A variational net of independent Gaussians over all latents of a model, in its unconstrained space.

    .. math:: z_i = f_i(\mu_i + \sigma_i \epsilon_i)

    ::

        q = zsp.mean_field(model, {"x": x, "y": y}, n_samples=10)
        optimizer = torch.optim.Adam(q.parameters(), lr=0.01)
        loss = zsp.elbo(model, {"x": x, "y": y}, variational=q, axis=0).sgvb()
        draws = q.bind(n_samples=1000).observe()["w"]                  # [1000, *shape], on w's support

    Args:
        meta_bn: the model, or a callable from one dict of values to a scalar log joint.
        observed: node or input name -> value. Where a support depends on other values, the model is executed with these
            observed values to find it.
        latents: the names of all latents, as a check; for a callable a dict of example tensors.
        supports: for a callable, name -> constraint of the latents that have one.
        init: name -> value on the node's support at which the means begin; default where the unconstrained ones are 0.
        std: the standard deviation, in the unconstrained space, to begin with.
        n_samples: the size of the sample axis; None adds none.
        use_path_derivative: keep only the gradient's path through the draw (arXiv:1703.09194).

    Returns:
        The variational net, a module whose parameters are ``family.loc`` and ``family.logstd``.

    Raises:
        ValueError: if a latent cannot be mapped to the unconstrained space (it is discrete, say), or the log density is
            not finite where the means begin.

    Reference: Kucukelbir et al. 2017, JMLR 18(14), section 2.
    """
    log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
    family = MeanFieldGaussian(log_density, starting_position(log_density, init), std)
    return gaussian_variational_net(family, n_samples, use_path_derivative, "mean_field")


def full_rank(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    latents: Iterable[str] | Mapping[str, Tensor] | None = None,
    supports: Mapping[str, Constraint] | None = None,
    init: Mapping[str, Any] | None = None,
    std: float = 0.1,
    n_samples: int | None = None,
    use_path_derivative: bool = False,
) -> MetaBayesianNet:
    r"""A variational net that is one Gaussian with a full covariance over all latents, in the unconstrained space.

    .. math:: z = f(\mu + L \epsilon), \quad L \text{ lower triangular}

    Args:
        meta_bn: the model, or a callable from one dict of values to a scalar log joint.
        observed: as for :func:`mean_field`.
        latents: likewise.
        supports: likewise.
        init: likewise.
        std: likewise; the latents are independent to begin with.
        n_samples: likewise.
        use_path_derivative: likewise.

    Returns:
        The variational net, a module whose parameters are ``family.loc``, ``family.logstd`` and ``family.lower``.

    Raises:
        ValueError: as for :func:`mean_field`, and if the model's log joint has batch axes, over which a full covariance
            does not split.

    Reference: Kucukelbir et al. 2017, JMLR 18(14), section 2.
    """
    log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
    family = FullRankGaussian(log_density, starting_position(log_density, init), std)
    return gaussian_variational_net(family, n_samples, use_path_derivative, "full_rank")


def starting_position(log_density: LogDensity, init: Mapping[str, Any] | None) -> Tensor:
    """The position of the given values, or the origin, where the log density must be finite."""
    if init is None:
        position = torch.zeros(log_density.n_dims, dtype=log_density.dtype, device=log_density.device)
    else:
        position = log_density.unconstrain(init)
        if position.dim() > 1:
            raise ValueError(
                f"init gives one value for each latent, but these have the leading axes {list(position.shape[:-1])}."
            )
    with torch.no_grad():
        start = log_density(position)
    if not bool(start.isfinite()):
        where = "in the middle of the unconstrained space" if init is None else "at the values that init gives"
        raise ValueError(
            f"the log density of the latents is {start.item():g} {where}. Begin elsewhere, with values that are "
            "probable a priori: init={name: value} for all latents."
        )
    return position.detach()


class MeanFieldGaussian(nn.Module):
    """Independent Gaussians over an unconstrained vector.

    Args:
        log_density: knows the latents and their supports.
        loc: where the means begin, shape [D].
        std: the standard deviation to begin with.
    """

    def __init__(self, log_density: LogDensity, loc: Tensor, std: float) -> None:
        super().__init__()
        _require_std(std)
        self.log_density = log_density
        self.loc = nn.Parameter(loc.clone())
        self.logstd = nn.Parameter(torch.full_like(loc, math.log(std)))

    def draw(self, noise: Tensor) -> Tensor:
        """The unconstrained vectors of standard normal noise."""
        return self.loc + self.logstd.exp() * noise

    def whiten(self, difference: Tensor, part: slice) -> Tensor:
        """What a difference of some components of the vector, the others being equal, is in their noise."""
        return difference * (-self.logstd[part]).exp()


class FullRankGaussian(nn.Module):
    """A Gaussian with a full covariance over an unconstrained vector.

    Args:
        log_density: knows the latents and their supports.
        loc: where the mean begins, shape [D].
        std: the standard deviation to begin with.
    """

    def __init__(self, log_density: LogDensity, loc: Tensor, std: float) -> None:
        super().__init__()
        _require_std(std)
        if log_density.batch_shape:
            raise ValueError(
                f"the model's log joint has the batch shape {list(log_density.batch_shape)}, but a full covariance "
                "over all latents does not split into terms of that shape. Make the batch one event (group_ndims), or "
                "use zsp.mean_field."
            )
        self.log_density = log_density
        self.loc = nn.Parameter(loc.clone())
        self.logstd = nn.Parameter(torch.full_like(loc, math.log(std)))
        self.lower = nn.Parameter(loc.new_zeros(loc.shape[0], loc.shape[0]))

    @property
    def scale_tril(self) -> Tensor:
        """L, the Cholesky factor of the covariance: ``lower`` below the diagonal, which is the exp of ``logstd``."""
        return self.lower.tril(-1) + torch.diag_embed(self.logstd.exp())

    def draw(self, noise: Tensor) -> Tensor:
        """The unconstrained vectors of standard normal noise."""
        return self.loc + noise @ self.scale_tril.mT

    def whiten(self, difference: Tensor, part: slice) -> Tensor:
        """What a difference of some components of the vector, the others being equal, is in their noise."""
        columns = difference.reshape(-1, difference.shape[-1]).mT
        noise = torch.linalg.solve_triangular(self.scale_tril[part, part], columns, upper=False)
        return noise.mT.reshape(difference.shape)


def _require_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std, the standard deviation to begin with, must be positive, but got {std!r}.")


def gaussian_variational_net(
    family: MeanFieldGaussian | FullRankGaussian, n_samples: int | None, use_path_derivative: bool, scope: str
) -> MetaBayesianNet:
    return MetaBayesianNet(gaussian_net, (family, n_samples, use_path_derivative), scope=scope)


def gaussian_net(
    family: MeanFieldGaussian | FullRankGaussian, n_samples: int | None, use_path_derivative: bool
) -> BayesianNet:
    """The model function of the variational nets: one node for each latent of the family's log density."""
    bn = BayesianNet()
    log_density = family.log_density
    given = {name: value for name, value in bn._observed.items() if name in log_density.shapes}
    chain: tuple[int, ...] = ()
    own_noise = None
    if given:
        values, chain = log_density.layout.values(given)
        bijectors = log_density.bijectors_at(values, chain)
        parts = [b.unconstrain(value) for b, value in zip(bijectors, values.values(), strict=True)]
        position = log_density.layout.pack(parts)
    else:
        values = {}
        if n_samples is not None:
            chain = (n_samples,) if bn._sample_shape is None else bn._sample_shape
        own_noise = torch.randn((*chain, log_density.n_dims), dtype=family.loc.dtype, device=family.loc.device)
        position = family.draw(own_noise)
        bijectors = log_density.bijectors_at(position, chain)
    noise = family.whiten(position - family.loc, slice(None))
    start = 0
    for bijector, (name, x) in zip(bijectors, log_density.layout.unpack(position), strict=True):
        part = slice(start, start := start + log_density.sizes[name])
        n_batch = len(log_density.batch_shape)
        factor = _Factor(
            family, part, bijector, x, noise, own_noise, values.get(name), log_density.shapes[name], n_batch
        )
        bn.stochastic(name, factor, n_samples=n_samples, use_path_derivative=use_path_derivative)
    return bn


class _Factor(Distribution):
    """The distribution of one latent given those before it, at the point where the net was executed.

    Args:
        family: the Gaussian of the whole unconstrained vector.
        part: the latent's components of it.
        bijector: onto the latent's support at the point.
        x: the unconstrained value, shape [*sample, *unconstrained shape].
        noise: that of the whole vector, a function of it and of the family's parameters.
        own_noise: the noise that the vector was drawn with; None where the point is given.
        value: the latent's value at the point; None to compute it from ``x``.
        shape: of the value without sample axes.
        n_batch: how many of its first axes are batch axes.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(
        self,
        family: MeanFieldGaussian | FullRankGaussian,
        part: slice,
        bijector: Bijector,
        x: Tensor,
        noise: Tensor,
        own_noise: Tensor | None,
        value: Tensor | None,
        shape: torch.Size,
        n_batch: int,
    ) -> None:
        self._family, self._part, self._bijector, self._x = family, part, bijector, x
        self._noise = noise[..., part]
        self._own_noise = None if own_noise is None else own_noise[..., part]
        drawn, self._jacobian = bijector.constrain(x)
        self._value = drawn if value is None else value
        self._batch_shape, self._event_shape = shape[:n_batch], shape[n_batch:]
        self._n_own = x.dim() - (self._value.dim() - len(shape))  # axes of one unconstrained value
        self._validate_args = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the value."""
        return self._value.dtype

    @property
    def parameter(self) -> Tensor:
        """A tensor whose dtype and device the value follows."""
        return self._value

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The draw, which the latents of the net have made together."""
        return self._value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The draw, without gradient."""
        return self._value.detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at a value, the other latents being where they are."""
        if value is self._value:
            return self._log_prob(self._noise, self._x.shape, self._jacobian)
        x, own = torch.broadcast_tensors(self._bijector.unconstrain(value), self._x)
        _, jacobian = self._bijector.constrain(x)
        shape = x.shape
        difference = (x - own).reshape(*shape[: len(shape) - self._n_own], self._noise.shape[-1])
        return self._log_prob(self._noise + self._family.whiten(difference, self._part), shape, jacobian)

    def log_prob_of_draw(self, draw: Tensor, axes: tuple[int, ...]) -> Tensor | None:
        """``log_prob(draw).sum(axes)`` as a function of the noise behind the draw; None for any other value."""
        if draw is not self._value or self._own_noise is None:
            return None
        log_prob = self._log_prob(self._own_noise, self._x.shape, self._jacobian)
        return log_prob.sum(axes) if axes else log_prob

    def _log_prob(self, noise: Tensor, shape: torch.Size, jacobian: Tensor | None) -> Tensor:
        """Of the noise of unconstrained values of the given shape, with the log-Jacobian's terms there."""
        n_axes = len(shape) - self._n_own + len(self._batch_shape)
        terms = -0.5 * noise.square() - (self._family.logstd[self._part] + 0.5 * math.log(2 * math.pi))
        log_prob = sum_from(terms.reshape(shape), n_axes)
        return log_prob if jacobian is None else log_prob - sum_from(jacobian, n_axes)
