r"""The path of densities from one that can be drawn from to the posterior, and the temperatures along it.

.. math:: \log f_\beta = (1 - \beta) \log f_0 + \beta \log f_1, \quad f_1 = p(x, z), \quad f_0 = p(z) \text{ or } q(z)

in the latents' unconstrained space, with the log-Jacobian in both. Where the model's log joint has a batch shape, the
data of the batch have latents of their own, and there is a density for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.inference.chains import Way, over_chains
from zsp.inference.log_density import LogDensity, sum_from
from zsp.inference.variational.objective import Variational, execute_variational, latent_values
from zsp.inference.variational.terms import is_sum_of_terms, scaled_terms
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import UnavailableError

__all__ = ["AnnealingPath", "linear", "sigmoidal"]


def linear(n_temperatures: int) -> Tensor:
    """Inverse temperatures from 0 to 1 at equal distances, [n_temperatures + 1], in float64."""
    return torch.linspace(0, 1, n_temperatures + 1, dtype=torch.float64)


def sigmoidal(n_temperatures: int, steepness: float = 4.0) -> Tensor:
    r"""Inverse temperatures from 0 to 1, close to one another at both ends, [n_temperatures + 1], in float64.

    .. math:: \beta_t = \frac{\tilde\beta_t - \tilde\beta_0}{\tilde\beta_T - \tilde\beta_0}, \quad
        \tilde\beta_t = \sigma\big(\delta (2 t / T - 1)\big)

    Args:
        n_temperatures: T.
        steepness: delta.

    Reference: Grosse et al. 2015, arXiv:1511.02543, section 2.1.
    """
    raw = torch.sigmoid(steepness * torch.linspace(-1, 1, n_temperatures + 1, dtype=torch.float64))
    scaled = (raw - raw[0]) / (raw[-1] - raw[0])
    scaled[-1] = 1.0
    return scaled


class AnnealingPath:
    """The densities between a base that can be drawn from and the model's posterior.

    Args:
        log_density: of the model given the data.
        proposal: the variational net that is the base; None for the prior, or for ``log_prior``.
        log_prior: the normalised log density of the base as a function of one dict of values, where the model is a
            callable and there is no proposal.
        draw_prior: from n to n draws from it.

    Attributes:
        batch_shape: of the evidence.
        n_dims: unconstrained numbers of one datum.

    Raises:
        ValueError: if the model's prior is not known apart from its likelihood, or the data of its batch depend on one
            another.
    """

    def __init__(
        self,
        log_density: LogDensity,
        proposal: Variational | None = None,
        log_prior: LogDensity | None = None,
        draw_prior: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        self._log_density, self._proposal = log_density, proposal
        self._log_prior, self._draw_prior = log_prior, draw_prior
        self.batch_shape = log_density.batch_shape
        self.n_dims = log_density.n_dims // max(1, self.batch_shape.numel())
        self._is_of_prior = proposal is None and log_prior is None
        self._require_known_base()
        self._require_batch()

    # -- densities ----------------------------------------------------------------------------------------------------

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The base's log density and what the posterior's has more, at a position.

        Args:
            position: [chain, *batch, n_dims].

        Returns:
            log f_0 and log f_1 - log f_0, each [chain, *batch].
        """
        packed = self.pack(position)
        shape = position.shape[:-1]
        log_density = self._log_density
        chain = packed.shape[:-1]
        if log_density._choose(chain) is Way.BROADCAST:
            of_latents, of_data, jacobian = self._parts(packed, chain)
        else:
            of_latents, of_data, jacobian = torch.func.vmap(lambda q: self._parts(q, ()))(packed)
        if self._is_of_prior:
            return (of_latents + jacobian).expand(shape), of_data.expand(shape)
        log_joint = of_latents + of_data
        if self._log_prior is not None:
            log_base = self._log_prior(packed)  # with the log-Jacobian
            return log_base, log_joint + jacobian - log_base
        log_q = self._log_q(log_density.constrain(packed), shape)
        return (log_q + jacobian).expand(shape), (log_joint - log_q).expand(shape)

    def at(self, beta: float) -> Callable[[Tensor], Tensor]:
        """The log density at an inverse temperature."""

        def log_density(position: Tensor) -> Tensor:
            log_base, log_ratio = self(position)
            return log_base + beta * log_ratio

        return log_density

    def _parts(self, packed: Tensor, chain: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of the latents, those of the data, and the log-Jacobian, by one execution.

        Where the log joint is no sum of terms, all of it counts as the latents'.
        """
        log_density = self._log_density
        log_joint, jacobians, bn = log_density._execute(packed, chain)
        n_axes = len(chain) + len(self.batch_shape)
        zero = log_joint.new_zeros(())
        jacobian = sum((sum_from(term, n_axes) for term in jacobians), zero)
        if not is_sum_of_terms(bn):
            return log_joint, zero, jacobian
        assert bn is not None
        of_latents, of_data = zero, zero
        for name, term in scaled_terms(bn).items():
            if name in log_density.shapes:
                of_latents = of_latents + term
            else:
                of_data = of_data + term
        return of_latents, of_data, jacobian

    def _log_q(self, values: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """The proposal's log density of given values."""
        chain = tuple(shape[: len(shape) - len(self.batch_shape)])
        assert self._proposal is not None
        bn = execute_variational(self._proposal, self._log_density._observed, chain, given=values)
        log_q = bn.log_joint()
        if log_q.shape != shape:
            raise ValueError(
                f"the proposal's log density has shape {list(log_q.shape)}, but that of the model has {list(shape)}: "
                "chains, then the batch. Declare n_samples on the proposal's nodes, and group its axes as the model's "
                "(group_ndims)."
            )
        return log_q

    # -- draws --------------------------------------------------------------------------------------------------------

    def draw(self, n_chains: int) -> Tensor:
        """Independent draws from the base, [chain, *batch, n_dims], with torch's default generator."""
        log_density = self._log_density
        values: Mapping[str, Any]
        if self._draw_prior is not None:
            values = self._draw_prior(n_chains)
        elif self._is_of_prior:
            chains = torch.empty(n_chains, device=log_density.device)
            values = over_chains(lambda _: self._draw_one(), chains, 1, randomness="different")
        else:
            assert self._proposal is not None
            bn = execute_variational(self._proposal, log_density._observed, (n_chains,))
            latents, sampled = latent_values(bn, log_density._observed, bn._sample_axes())
            if len(sampled) < len(latents) or bn._sample_axes() != (n_chains,):
                raise ValueError(
                    f"the proposal must draw every latent once for each of the {n_chains} chains: declare n_samples=1 "
                    "on all its nodes (zsp.mean_field(..., n_samples=1)), and give what executes it anew, not an "
                    "executed net."
                )
            values = latents
        return self.unconstrain(values)

    def _draw_one(self) -> dict[str, Tensor]:
        log_density = self._log_density
        try:
            assert isinstance(log_density._meta_bn, MetaBayesianNet)
            bn = log_density._meta_bn._execute(log_density._observed)
            return {name: bn[name].tensor for name in log_density.names}
        except UnavailableError as error:
            raise ValueError(
                f"the prior cannot be drawn from: {error} Or give a proposal to begin with, for example "
                "proposal=zsp.mean_field(...)."
            ) from error

    # -- positions ----------------------------------------------------------------------------------------------------

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """The position [chain, *batch, n_dims] at which the latents have given values [chain, *shape]."""
        packed = self._log_density.unconstrain(values)
        if packed.dim() != 2:
            shapes = {name: ["chain", *shape] for name, shape in self._log_density.shapes.items()}
            raise ValueError(f"the latents' values must have one chain axis in front: {shapes}.")
        parts = [part.reshape(*packed.shape[:1], *self.batch_shape, -1) for _, part in self._unpack(packed)]
        return torch.cat(parts, -1)

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """The latents' values [chain, *shape] at a position."""
        return self._log_density.constrain(self.pack(position))

    def pack(self, position: Tensor) -> Tensor:
        """[chain, *batch, n_dims] as the log density has it, [chain, D]."""
        if not self.batch_shape:
            return position
        layout = self._log_density.layout
        sizes = [latent.size // self.batch_shape.numel() for latent in layout.latents]
        parts = position.split(sizes, -1)
        n_chains = position.shape[0]
        return torch.cat([part.reshape(n_chains, -1) for part in parts], -1)

    def _unpack(self, packed: Tensor) -> list[tuple[str, Tensor]]:
        return list(self._log_density.layout.unpack(packed))

    # -- checks -------------------------------------------------------------------------------------------------------

    def _require_known_base(self) -> None:
        log_density = self._log_density
        if not self._is_of_prior:
            return
        if not isinstance(log_density._meta_bn, MetaBayesianNet):
            raise ValueError(
                "a callable does not tell its prior from its likelihood: give log_prior=..., the normalised log "
                "density of the latents as a function of the same dict, and draw_prior=...; or a net to begin with, "
                "proposal=..."
            )
        if log_density._meta_bn.log_joint is not None:
            raise ValueError(
                "the model has a log_joint of its own, which does not tell the prior from the likelihood: give a net "
                "to begin with, proposal=..., for example zsp.mean_field(model, observed, n_samples=1)."
            )

    def _require_batch(self) -> None:
        """Every latent has the batch's axes, and the density of a datum depends on its own latents only."""
        batch, log_density = self.batch_shape, self._log_density
        if not batch:
            return
        for latent in log_density.layout.latents:
            if latent.shape[: len(batch)] != batch or latent.unconstrained_shape[: len(batch)] != batch:
                raise ValueError(
                    f"the model's log joint has the batch shape {list(batch)}, for which there would be an evidence "
                    f"each, but the latent {latent.name!r} has shape {list(latent.shape)}. Make the batch one event "
                    "(group_ndims=1 on its nodes) if the data share the latents."
                )
        generator = torch.Generator().manual_seed(0)
        flat = torch.rand(2, log_density.n_dims, dtype=log_density.dtype, generator=generator).to(log_density.device)
        position = (flat - 0.5).reshape(2, *batch, -1)
        weights = torch.linspace(1, 2, batch.numel(), dtype=log_density.dtype, device=log_density.device).view(batch)
        with torch.inference_mode(False), torch.enable_grad():
            gradients = []
            for weight in (torch.ones_like(weights), weights):
                leaf = position.clone().requires_grad_()
                log_base, log_ratio = self(leaf)
                gradients.append(torch.autograd.grad(((log_base + log_ratio) * weight).sum(), leaf)[0])
        plain, weighted = gradients
        expected = plain * weights.unsqueeze(-1)
        tolerance = torch.finfo(plain.dtype).eps ** 0.5 * (1 + plain.abs().max())
        if not bool(((weighted - expected).abs() <= tolerance).all()):
            raise ValueError(
                f"the model's log joint has the batch shape {list(batch)}, for which there would be an evidence each, "
                "but the density of one datum depends on the latents of another. Make the batch one event: "
                "group_ndims=1 on all its nodes."
            )
