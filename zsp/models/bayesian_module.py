r"""Any torch module as a Bayesian model: priors on its weights, a likelihood on its output.

.. math:: w \sim p(w), \quad y \mid x, w \sim p(y \mid f_w(x))
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

import zsp
from zsp.checks.wording import quoted, suggestion
from zsp.inference.chains import over_chains
from zsp.models.likelihoods import Likelihood
from zsp.models.weight_priors import EmpiricalPrior, GaussianPrior, WeightPrior

__all__ = ["bayesian"]


def bayesian(
    module: nn.Module,
    *,
    prior: WeightPrior | None = None,
    likelihood: Likelihood,
    latents: Iterable[str] | None = None,
    total_size: int | None = None,
) -> zsp.MetaBayesianNet:
    r"""A torch module as a model with priors on its weights.

    .. math:: w \sim p(w), \quad y \mid x, w \sim p(y \mid f_w(x))

    ::

        net = nn.Sequential(nn.Linear(13, 50), nn.ReLU(), nn.Linear(50, 1), nn.Flatten(0))
        model = zsp.models.bayesian(net, likelihood=zsp.models.GammaNoiseLikelihood())
        draws = zsp.mcmc(model, {"x": x, "y": y}, kernel=zsp.NUTS())
        new = zsp.predict(model, draws, {"x": x_test})           # new["output"]: f(x), new["y"]: with noise

    The model has the input ``x`` (a tensor, or a tuple for a module of several arguments), latents under the names of
    the module's parameters ("0.weight") and those of the prior and the likelihood, the deterministic node ``output``,
    and the data ``y``. All data are one event. Latents may carry any number of sample or chain axes in front,
    over which the module runs under ``vmap`` (in a loop where that cannot follow it, as in recurrent layers).

    The module is copied, with its buffers; the copy stays in the mode, training or not, in which the module is.
    Parameters that are no latents keep their values, unless ``model.parameters()`` are trained. So a Laplace
    approximation of the last layer is ::

        model = zsp.models.bayesian(trained, likelihood=likelihood, latents=["2"])
        start = {name: value for name, value in trained.named_parameters() if name.startswith("2.")}
        q, log_evidence, mode = zsp.laplace(model, {"x": x, "y": y}, init=start)

    Args:
        module: the network; its first axis of output is that of the data.
        prior: of the weights, default :class:`zsp.models.GaussianPrior` of standard deviation 1; or any function
            ``(bn, like) -> weights``, see :class:`zsp.models.WeightPrior`.
        likelihood: declares ``y`` given the output, for example :class:`zsp.models.NormalLikelihood`; or any function,
            see :class:`zsp.models.Likelihood`.
        latents: names of parameters, or of submodules whose parameters are all meant; default all parameters.
        total_size: N, when ``y`` holds a mini-batch of N data: its term in the log joint is scaled. It is an input of
            the model too.

    Returns:
        The model. Its weights have no values of their own: where a routine has to begin somewhere (``init``), a
        network's random initial weights, ``dict(module.named_parameters())``, are better than zeros, which are a
        saddle point.

    Raises:
        ValueError: if the module has layers in training mode whose output is random or depends on the whole batch,
            has no parameters, or ``latents`` names something that it lacks.
        TypeError: if the module, the prior or the likelihood is not what it should be.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"bayesian needs a torch.nn.Module, but got {type(module).__name__}.")
    for what, function in (("prior", prior), ("likelihood", likelihood)):
        if isinstance(function, type) or not (function is None or callable(function)):
            shown = f"the class {function.__name__}" if isinstance(function, type) else repr(function)
            raise TypeError(
                f"{what} must be an object such as zsp.models.{_EXAMPLES[what]} or a function, but got {shown}."
            )
    _require_fixed_function(module)
    names = _latent_names(module, latents)
    network = _Network(module, names)
    chosen = GaussianPrior() if prior is None else prior
    if isinstance(chosen, EmpiricalPrior):
        chosen = chosen.prepared(network.like())
    return _bayesian_module(network=network, prior=chosen, likelihood=likelihood, total_size=total_size)


_EXAMPLES = {"prior": "GaussianPrior(std=1.0)", "likelihood": "NormalLikelihood(std=0.1)"}


@zsp.meta_bayesian_net(scope="bayesian")
def _bayesian_module(
    x: Any, network: _Network, prior: WeightPrior, likelihood: Likelihood, total_size: int | None
) -> zsp.BayesianNet:
    """The net of :func:`bayesian`."""
    bn = zsp.BayesianNet()
    weights = prior(bn, network.like())
    output, n_sample_axes = network(weights, x if isinstance(x, tuple) else (x,))
    bn.deterministic("output", output)
    likelihood(bn, output, group_ndims=output.dim() - n_sample_axes, total_size=total_size)
    return bn


class _Network(nn.Module):
    """A copy of a module as a function of some of its parameters.

    Args:
        module: the module.
        names: of those parameters, in the module's order.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self._names = names
        for parameter in self.like().values():
            parameter.requires_grad_(False)  # its value is never used

    def like(self) -> dict[str, Tensor]:
        """name -> tensor of the shape, dtype and device of that parameter."""
        return {name: self.module.get_parameter(name) for name in self._names}

    def forward(self, weights: Mapping[str, Tensor], x: tuple[Any, ...]) -> tuple[Tensor, int]:
        """The module's output for weights with any sample axes in front, and how many of these there are."""
        like = self.like()
        axes = {name: weights[name].dim() - w.dim() for name, w in like.items()}
        n_axes = max(axes.values())
        if n_axes == 0:
            return self._run(dict(weights), x), 0
        mapped = {name: weights[name] for name, n in axes.items() if n == n_axes}
        fixed = {name: weights[name] for name, n in axes.items() if n < n_axes}
        run = functools.partial(self._run_one, fixed, x)
        return over_chains(run, mapped, n_axes, randomness="different"), n_axes

    def _run_one(self, fixed: dict[str, Tensor], x: tuple[Any, ...], weights: dict[str, Tensor]) -> Tensor:
        return self._run({**fixed, **weights}, x)

    def _run(self, weights: dict[str, Tensor], x: tuple[Any, ...]) -> Tensor:
        output = functional_call(self.module, weights, x)
        if not isinstance(output, Tensor) or output.dim() == 0:
            got = "a scalar" if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"the module must return one tensor whose first axis is that of the data, but it returned {got}. Wrap "
                "it in a module whose forward returns the tensor that the likelihood is about."
            )
        return output

    def train(self, mode: bool = True) -> _Network:
        """Nothing: the module stays in the mode that it was given in."""
        return self


def _latent_names(module: nn.Module, latents: Iterable[str] | None) -> list[str]:
    """The names of the parameters that are latents, in the module's order."""
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError(f"the module ({type(module).__name__}) has no parameters to put a prior on.")
    lazy = [name for name, p in parameters.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(f"the parameter {lazy[0]!r} has no shape yet: run the module once on data first.")
    if latents is None:
        return list(parameters)
    if isinstance(latents, str):
        raise TypeError(f"latents must be a list of names, but got the string {latents!r}; write [{latents!r}].")
    chosen: set[str] = set()
    for latent in latents:
        found = {name for name in parameters if name == latent or name.startswith(f"{latent}.")}
        if not found:
            raise ValueError(
                f"latents names {latent!r}, which is no parameter of the module and no submodule with parameters; it "
                f"has the parameters {quoted(parameters)}.{suggestion(latent, parameters)}"
            )
        chosen |= found
    if not chosen:
        raise ValueError("latents is empty: name parameters or submodules, or leave it out for all.")
    return [name for name in parameters if name in chosen]


def _require_fixed_function(module: nn.Module) -> None:
    """The output for one datum is a function of that datum and the parameters, and computing it changes nothing."""
    for name, part in module.named_modules():
        if not part.training:
            continue
        where = f"{name!r} ({type(part).__name__})" if name else type(part).__name__
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            raise ValueError(
                f"the layer {where} is in training mode, where its output for one datum depends on the whole batch and "
                "each evaluation changes its running statistics, so that there is no likelihood of single data. Call "
                "module.eval() to use the statistics that it has, or replace it by GroupNorm or LayerNorm."
            )
        rate = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ValueError(
                f"the layer {where} drops units at random, because it is in training mode, so that the log joint would "
                "be random. Call module.eval(): the posterior of the weights takes the place of dropout."
            )
