r"""Bayesian dark knowledge: the posterior predictive of a chain, distilled into one network while the chain runs.

.. math:: \min_\phi \; \mathbb{E}_{x'} \, \mathbb{E}_{z \sim p(z \mid \mathcal D)} \,
    \mathbb{E}_{y \sim p(y \mid x', z)} [-\log s_\phi(y \mid x')]

The student s sees the predictions of the draws, the teachers, and not the labels; at the minimum it is the posterior
predictive distribution itself, or what is nearest to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import zsp
from zsp.models.likelihoods import Likelihood

__all__ = ["DarkKnowledge"]


class DarkKnowledge:
    r"""A student that is trained on the predictions of draws as they come.

    Each call takes one draw of every chain, and a step of the optimizer for the student's mean cost over the chains, on
    new inputs. It goes where :func:`zsp.mcmc` takes predictions, so that no draw is kept::

        student = nn.Sequential(nn.Linear(13, 50), nn.ReLU(), nn.Linear(50, 3))
        distil = zsp.models.DarkKnowledge(
            model, student, likelihood=zsp.models.CategoricalLikelihood(),
            inputs=lambda: x[torch.randint(len(x), (100,))] + 0.1 * torch.randn(100, 13),
            optimizer=torch.optim.Adam(student.parameters(), lr=1e-3),
        )
        zsp.mcmc(model, loader, kernel=kernel, predict=zsp.RunningPredictions(distil))

    Args:
        model: the teachers' model, with the input ``x`` and the node ``y``; see :func:`zsp.models.bayesian`.
        student: from inputs to the output that ``likelihood`` takes.
        likelihood: of the student, :class:`zsp.models.CategoricalLikelihood` for one; the labels that teachers draw
            are observed under it. For a mean and a log standard deviation of its own, any function (see
            :class:`zsp.models.Likelihood`).
        inputs: draws the next inputs x', [n, ...]: training inputs with noise, or others near which it is to predict.
        optimizer: of the student's parameters.

    Attributes:
        n_steps: of the optimizer so far.

    Reference: Korattikara et al. 2015, arXiv:1506.04416, algorithm 1. There the mean over y is taken in closed form;
        here labels are drawn, which has the same mean for any likelihood.
    """

    def __init__(
        self,
        model: zsp.MetaBayesianNet,
        student: nn.Module,
        *,
        likelihood: Likelihood,
        inputs: Callable[[], Any],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if not isinstance(model, zsp.MetaBayesianNet):
            raise TypeError(f"model must be a MetaBayesianNet, but got {type(model).__name__}.")
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        forgotten = [name for name, parameter in student.named_parameters() if parameter not in trained]
        if forgotten:
            raise ValueError(
                f"the optimizer does not have the student's parameter {forgotten[0]!r}: make it of "
                "student.parameters()."
            )
        self._model, self._student, self._likelihood = model, student, likelihood
        self._inputs, self._optimizer = inputs, optimizer
        self.n_steps = 0

    def __call__(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of the student.

        Args:
            latents: name -> a draw of every chain, [chain, *shape].

        Returns:
            ``{"cost": [chain]}``, the student's mean -log s(y | x') under each chain's labels before the step, in nats.
        """
        x = self._inputs()
        seed = int(torch.randint(2**31, ()))
        labels = zsp.predict(self._model, latents, {"x": x}, names=["y"], seed=seed)["y"]
        with torch.enable_grad():
            cost = torch.stack([self._cost(x, y) for y in labels])
            self._optimizer.zero_grad()
            cost.mean().backward()
            self._optimizer.step()
        self.n_steps += 1
        return {"cost": cost.detach()}

    def _cost(self, x: Any, y: Tensor) -> Tensor:
        """The student's -log s(y | x), the mean over the data."""
        bn = zsp.BayesianNet({"y": y})
        output = self._student(*x) if isinstance(x, tuple) else self._student(x)
        self._likelihood(bn, output, group_ndims=output.dim(), total_size=None)
        return -bn.cond_log_prob("y") / len(y)
