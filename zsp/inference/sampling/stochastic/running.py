"""Predictions that are averaged while the chains run, where the draws themselves would be too large to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RunningPredictions"]


class RunningPredictions:
    r"""Means and standard deviations of functions of the latents over all draws, with the memory of one draw.

    ::

        def test_probabilities(latents):                       # name -> [chain, *shape]
            return {"p": torch.softmax(network(latents, x_test), -1)}

        predictions = zsp.RunningPredictions(test_probabilities)
        zsp.mcmc(model, loader, kernel=zsp.SGHMC(1e-7), predict=predictions)
        predictions.mean["p"]                                  # of all draws of all chains

    For nodes of a model: ``lambda latents: zsp.predict(model, latents, {"x": x_test}, names=["probs"])``.

    Args:
        function: from the latents' values at one draw of every chain, name -> [chain, \*shape], to name ->
            [chain, ...]. It is called without gradients; what it draws from torch's default generator is reproducible.

    Attributes:
        n_draws: the draws of each chain seen so far.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
        if not callable(function):
            raise TypeError(
                f"RunningPredictions takes a function from the latents to predictions, got {type(function).__name__}."
            )
        self._function = function
        self.n_draws = 0
        self._mean: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}  # sums of squared deviations from the mean

    @torch.no_grad()
    def add(self, latents: dict[str, Tensor]) -> None:
        """Take one draw of every chain into account.

        Args:
            latents: name -> [chain, *shape].

        Raises:
            TypeError: if the function does not return a mapping of tensors.
            ValueError: if what it returns has no chain axis.
        """
        found = self._function(latents)
        if not isinstance(found, Mapping):
            raise TypeError(
                f"the function must return a mapping from names to tensors, got {type(found).__name__}: "
                "return {'mean': value}."
            )
        n_chains = len(next(iter(latents.values())))
        self.n_draws += 1
        for name, value in found.items():
            if not isinstance(value, Tensor) or value.shape[:1] != (n_chains,):
                got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"predictions must have the {n_chains} chains as their first axis, but {name!r} has {got}. The "
                    "latents have it too: name -> [chain, *shape]."
                )
            value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
            if name not in self._mean:
                self._mean[name], self._square[name] = torch.zeros_like(value), torch.zeros_like(value)
            before = value - self._mean[name]
            self._mean[name] = self._mean[name] + before / self.n_draws
            self._square[name] = self._square[name] + before * (value - self._mean[name])

    @property
    def chain_mean(self) -> dict[str, Tensor]:
        """name -> the mean over the draws of each chain, [chain, ...]."""
        return dict(self._require_draws(1))

    @property
    def mean(self) -> dict[str, Tensor]:
        """name -> the mean over all draws of all chains."""
        return {name: mean.mean(0) for name, mean in self._require_draws(1).items()}

    @property
    def sd(self) -> dict[str, Tensor]:
        """name -> the standard deviation over all draws of all chains."""
        self._require_draws(1)
        return {
            name: (square.mean(0) / self.n_draws + self._mean[name].var(0, correction=0)).sqrt()
            for name, square in self._square.items()
        }

    @property
    def r_hat(self) -> dict[str, Tensor]:
        r"""name -> :math:`\hat R` of several chains' predictions, not split: 1 where the chains agree.

        Reference: Gelman and Rubin 1992; Gelman et al. 2013, section 11.4.
        """
        found = {}
        for name, mean in self._require_draws(2).items():
            if len(mean) < 2:
                raise ValueError("r_hat compares chains, but there is one: run several, n_chains=4.")
            within = self._square[name].mean(0) / (self.n_draws - 1)
            between = mean.var(0)
            found[name] = ((self.n_draws - 1) / self.n_draws + between / within).sqrt()
        return found

    def _require_draws(self, n: int) -> dict[str, Tensor]:
        if self.n_draws < n:
            raise ValueError(
                f"predictions of {self.n_draws} draws were made, and this needs {n}: pass them to "
                "zsp.mcmc(..., predict=predictions)."
            )
        return self._mean

    def clear(self) -> None:
        """Forget all draws."""
        self.n_draws, self._mean, self._square = 0, {}, {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"n_draws": self.n_draws, "mean": self._mean, "square": self._square}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.n_draws, self._mean, self._square = state["n_draws"], dict(state["mean"]), dict(state["square"])

    def __repr__(self) -> str:
        return f"<zsp.RunningPredictions of {self.n_draws} draws: {', '.join(self._mean) or 'none yet'}>"
