r"""Annealed importance sampling: the log evidence by a path of densities from the prior to the posterior.

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log\frac{f_1(z_{t-1})}{f_0(z_{t-1})}, \quad
    z_0 \sim f_0, \quad z_t \sim T_{\beta_t}(\cdot \mid z_{t-1}), \quad \mathbb{E}[w] = p(x)

where :math:`T_\beta` leaves :math:`f_0^{1 - \beta} f_1^\beta` invariant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils._pytree import tree_map

from zsp.inference.annealing import AnnealingPath, linear, sigmoidal
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling.kernel import Kernel
from zsp.inference.sampling.mclmc import MCLMC
from zsp.inference.sampling.metric import Diagonal
from zsp.inference.variational.objective import LogJoint, Variational

__all__ = ["AIS", "AISResult"]

Schedule = Literal["linear", "sigmoidal", "adaptive"] | Tensor

CONDITIONAL_ESS = 0.98
"""Of the steps of the run that finds adaptive temperatures, as a part of the number of chains."""

MIN_TUNING_TEMPERATURES = 100
MAX_TUNING_TEMPERATURES = 10_000

N_FIRST_STEPS = 50
"""Transitions at the first temperature of that run, until step sizes are of the right order."""

SMOOTHING = 5
"""What is adapted is averaged over so many temperatures on either side: dual averaging makes it jump."""

N_SHRINK = 5
"""Variances over n chains count n against so many of their mean over the dimensions."""


class AISResult(NamedTuple):
    """What a run of annealed importance sampling found.

    Attributes:
        log_evidence: the estimate of log p(x) in nats, of the evidence's batch shape: below it in the mean if the run
            was a forward one, above it if it was a reverse one.
        standard_error: of ``log_evidence``, by the delta method: the weights' relative standard deviation over the root
            of the number of chains; it says nothing of the bias.
        ess: effective sample size of the weights, at most the number of chains.
        log_weights: an estimate of the log evidence from each chain, [chain, *batch]. Those of a forward run have
            E[exp(log w)] = p(x), those of a reverse run E[exp(-log w)] = 1 / p(x).
        acceptance_rate: mean over the chains at each temperature where there were transitions, [temperature, *batch].
        temperatures: the inverse temperatures, from 0 to 1.
        values: the latents at the end of the run, name -> [chain, *shape]; after a forward run, draws from the
            posterior if weighted by exp(log w).
    """

    log_evidence: Tensor
    standard_error: Tensor
    ess: Tensor
    log_weights: Tensor
    acceptance_rate: Tensor
    temperatures: Tensor
    values: dict[str, Tensor]


class Tuning(NamedTuple):
    """What a run before the first one has found: step sizes and mass matrices along the path."""

    temperatures: Tensor  # at which they were found
    adaptation: list[Any]  # what the kernel adapted at each, means over the chains
    metrics: list[Any]


class AIS:
    r"""Annealed importance sampling of the log evidence, by any kernel, from the prior or from a given net.

    ::

        ais = zsp.AIS(model, {"x": x, "y": y}, kernel=zsp.HMC(n_leapfrogs=10), n_chains=64, n_temperatures=1000)
        below = ais.forward()                     # below.log_evidence, .standard_error, .ess

    On simulated data, whose latents are an exact draw from the posterior, a reverse run gives an upper bound, so that
    the two enclose the log evidence and tell how well it can be measured in such a model (bidirectional Monte Carlo)::

        bn = model.observe()
        ais = zsp.AIS(model, {"y": bn["y"].tensor}, kernel=zsp.HMC())
        below, above = ais.forward(), ais.reverse({"w": bn["w"].tensor})

    Where the model's log joint has a batch shape, as that of a variational autoencoder has, there are chains, weights
    and an evidence for each datum. Constrained latents move in the unconstrained space.

    Weights are exact in the mean only if the transitions do not depend on the chains' own past. What the kernel can
    adapt, and adaptive temperatures, are therefore found in a run before the first one, with other random numbers, and
    fixed after it, for forward and reverse runs alike.

    Args:
        meta_bn: the model, or a callable from one dict of values to a scalar log joint.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        kernel: a Metropolis kernel: ``zsp.HMC(n_leapfrogs=10, jitter=0.2)``. A jitter keeps trajectories from ending,
            at every temperature, near to where they began.
        n_chains: the number of chains.
        n_temperatures: T, the number of steps from the base to the posterior; one transition at each of the T - 1
            temperatures between.
        schedule: of the inverse temperatures: "sigmoidal" (close at both ends), "linear", "adaptive" (steps that lose
            the same part of the chains' effective sample size) or a tensor that grows from 0 to 1.
        proposal: the base, a variational net that draws all latents, to be executed; default the prior.
        log_prior: where the model is a callable without a proposal, the normalised log density of the prior, a callable
            on the same dict.
        draw_prior: goes with ``log_prior``: from n to n independent draws from it, name -> [n, *shape].
        latents: the names of the latents, as a check; for a callable a dict of example tensors of one chain's shape.
        supports: for a callable, name -> constraint of the latents that have one.
        seed: of the run that adapts.

    Raises:
        ValueError: if a latent cannot be sampled, the prior is not known apart from the likelihood, or an option does
            not fit.

    References: Neal 2001, arXiv:physics/9803008; Grosse, Ghahramani and Adams 2015, arXiv:1511.02543 (reverse runs); Wu
        et al. 2017, arXiv:1611.04273 (decoder-based models); Zhou, Johansen and Aston 2016, arXiv:1303.3123, section
        3.2 (adaptive temperatures).
    """

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        kernel: Kernel,
        n_chains: int = 16,
        n_temperatures: int = 1000,
        schedule: Schedule = "sigmoidal",
        proposal: Variational | None = None,
        log_prior: Callable[[dict[str, Tensor]], Tensor] | None = None,
        draw_prior: Callable[[int], Mapping[str, Any]] | None = None,
        latents: Iterable[str] | Mapping[str, Tensor] | None = None,
        supports: Mapping[str, Constraint] | None = None,
        seed: int = 0,
    ) -> None:
        _require_options(kernel, n_chains, n_temperatures, schedule)
        if proposal is not None and log_prior is not None:
            raise ValueError("proposal and log_prior are two ways to give the base: leave one of them out.")
        if (log_prior is None) != (draw_prior is None):
            raise ValueError("log_prior, a density, and draw_prior, draws from it, go together: give both or none.")
        self._kernel, self._n_chains, self._seed = kernel, n_chains, seed
        self._n_temperatures, self._schedule = n_temperatures, schedule
        log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
        prior = None if log_prior is None else LogDensity(log_prior, observed, latents=latents, supports=supports)
        self._path = AnnealingPath(log_density, proposal, prior, draw_prior)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def forward(self, *, seed: int = 0, progress: bool = True) -> AISResult:
        """Run from the base to the posterior: a lower bound of the log evidence in the mean.

        Args:
            seed: of the run's random numbers; the caller's random state is given back.
            progress: whether to show a progress bar.

        Returns:
            The estimate and what it was made of.

        Raises:
            ValueError: if the base cannot be drawn from, or a log density is not finite where a chain begins.
        """
        return self._run(1, seed, None, progress)

    def reverse(self, values: Mapping[str, Any], *, seed: int = 0, progress: bool = True) -> AISResult:
        """Run from exact draws of the posterior back to the base: an upper bound of the log evidence in the mean.

        Args:
            values: name -> exact draws, [chain, *shape], or one of shape [*shape] at which all chains begin, such as
                the latents that simulated data were made from.
            seed: of the run's random numbers; the caller's random state is given back.
            progress: whether to show a progress bar.

        Returns:
            The estimate and what it was made of. It is no bound if the draws are not exact.

        Raises:
            ValueError: if the values do not fit the latents.
        """
        return self._run(-1, seed, values, progress)

    def _run(self, direction: int, seed: int, values: Mapping[str, Any] | None, progress: bool) -> AISResult:
        path = self._path
        given = None if values is None else path.unconstrain(self._for_chains(values))
        with torch.no_grad(), _own_random_state(), _progress_bar(self._n_temperatures, progress) as bar:
            streams = _streams(seed)
            torch.manual_seed(streams[0])
            start = path.draw(self._n_chains) if given is None else given
            temperatures, tuning = self._temperatures, self._tuning
            walk = _Walk(path, self._kernel, start, streams[1 if direction > 0 else 2])
            steps = list(zip(temperatures[:-1].tolist(), temperatures[1:].tolist(), strict=True))
            log_weights = torch.zeros_like(walk.log_ratio)
            rates = []
            for before, after in steps if direction > 0 else reversed(steps):
                log_weights = log_weights + (after - before) * walk.log_ratio
                bar.update(1)
                beta = after if direction > 0 else before
                if 0 < beta < 1:
                    rates.append(walk.step(beta, tuning))
                    bar.set_postfix_str(f"acceptance {rates[-1].mean().item():.2f}", refresh=False)
            final = path.constrain(walk.position)
        if bool(log_weights.isnan().any()):
            raise ValueError(
                "a weight is NaN: the log likelihood is NaN or infinite somewhere along the path. Run inside "
                "zsp.checked() to find the node."
            )
        return _result(log_weights, direction, rates[::direction], temperatures, final)

    def _for_chains(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Given values with a chain axis: one of shape [*shape] is repeated."""
        shapes = self._path._log_density.shapes
        tensors = {name: torch.as_tensor(value) for name, value in values.items()}
        if all(tensors[name].shape == shape for name, shape in shapes.items() if name in tensors):
            return {name: value.expand(self._n_chains, *value.shape) for name, value in tensors.items()}
        wrong = [name for name in shapes if name in tensors and tensors[name].shape[:1] != (self._n_chains,)]
        if wrong:
            raise ValueError(
                f"the values given for {wrong[0]!r} have shape {list(tensors[wrong[0]].shape)}, but "
                f"{[self._n_chains, *shapes[wrong[0]]]} is expected, one for each of the {self._n_chains} chains, or "
                f"{list(shapes[wrong[0]])}, one for all."
            )
        return tensors

    # -- what is found before the first run ---------------------------------------------------------------------------

    @functools.cached_property
    def _temperatures(self) -> Tensor:
        schedule, n = self._schedule, self._n_temperatures
        if isinstance(schedule, Tensor):
            return schedule.detach().to("cpu", torch.float64)
        if schedule == "linear":
            return linear(n)
        if schedule == "sigmoidal":
            return sigmoidal(n)
        # the same course in more or fewer steps
        found = self._adapted[0].numpy()
        import numpy

        places = numpy.linspace(0, len(found) - 1, n + 1)
        temperatures = torch.from_numpy(numpy.interp(places, numpy.arange(len(found)), found))
        temperatures[-1] = 1.0
        return temperatures

    @property
    def _tuning(self) -> Tuning | None:
        is_needed = self._kernel.adapts or self._kernel.adapts_mass
        return self._adapted[1] if is_needed and self._n_temperatures > 1 else None

    @functools.cached_property
    def _adapted(self) -> tuple[Tensor, Tuning]:
        """The temperatures of a run in which the kernel adapts, and what it adapted at each."""
        is_adaptive = isinstance(self._schedule, str) and self._schedule == "adaptive"
        fixed = None if is_adaptive else self._coarse()
        with torch.no_grad(), _own_random_state():
            stream = _streams(self._seed)[3]
            torch.manual_seed(stream)
            walk = _Walk(self._path, self._kernel, self._path.draw(self._n_chains), stream)
            temperatures, adaptation = [0.0], []
            metrics: list[Any] = []
            while temperatures[-1] < 1:
                beta = temperatures[-1]
                after = _next_temperature(walk.log_ratio, beta) if fixed is None else fixed[len(temperatures)].item()
                for _ in range(1 if metrics else N_FIRST_STEPS):
                    walk.adapt(after)
                temperatures.append(after)
                adaptation.append(walk.mean_adaptation())
                metrics.append(walk.state.metric)
                if len(temperatures) > MAX_TUNING_TEMPERATURES:
                    raise ValueError(
                        f"adaptive temperatures came to {beta:.3g} only in {MAX_TUNING_TEMPERATURES} steps: the base "
                        "is too far from the posterior. Give a proposal that is nearer, or a fixed schedule."
                    )
        found = torch.tensor(temperatures, dtype=torch.float64)
        return found, Tuning(found[1:], _smoothed(adaptation), metrics)

    def _coarse(self) -> Tensor:
        """Every fourth temperature or so."""
        n = max(min(self._n_temperatures, MIN_TUNING_TEMPERATURES), self._n_temperatures // 4)
        places = torch.linspace(0, len(self._temperatures) - 1, n + 1).round().long()
        return self._temperatures[places].unique()


class _Walk:
    """Chains that go along the path.

    Attributes:
        position: where they are, [chain, *batch, n_dims].
        log_ratio: log f_1 - log f_0 there, [chain, *batch].
        state: the kernel's; None before the first transition.
    """

    def __init__(self, path: AnnealingPath, kernel: Kernel, start: Tensor, seed: int) -> None:
        self._path, self._kernel = path, kernel
        self.position = start
        _, self.log_ratio = path(start)
        self._seed = seed
        self._variance: Tensor | None = None
        self.state: Any = None

    def step(self, beta: float, tuning: Tuning | None) -> Tensor:
        """A transition of every chain at an inverse temperature; the mean acceptance rates, of the batch's shape."""
        log_density = self._begin(beta)
        if tuning is not None:
            place = int(torch.searchsorted(tuning.temperatures, beta).clamp(max=len(tuning.temperatures) - 1))
            self.state = self.state._replace(
                step_size=tree_map(self._for_slots, tuning.adaptation[place]), metric=tuning.metrics[place]
            )
        return self._move(log_density, adapt=False).acceptance_rate.mean(0)

    def adapt(self, beta: float) -> None:
        """A transition after which the kernel adapts.

        The mass matrix follows the variance over the chains where they are now, and not, as in a run at one
        temperature, that of all draws so far.
        """
        self._move(self._begin(beta), adapt=True)
        if self._kernel.adapts_mass and len(self.position) > 1:
            n = self.log_ratio.numel()
            variance = self.position.var(0).flatten(0, -2).mean(0) if self.position.dim() > 2 else self.position.var(0)
            shrunk = (n * variance + N_SHRINK * variance.mean()) / (n + N_SHRINK)
            self._variance = shrunk if self._variance is None else torch.lerp(self._variance, shrunk, 0.3)
            scale = self._variance.clamp(min=torch.finfo(shrunk.dtype).tiny ** 0.5).sqrt()
            self.state = self.state._replace(metric=Diagonal(scale))

    def _begin(self, beta: float) -> Callable[[Tensor], Tensor]:
        log_density = self._path.at(beta)
        if self.state is None:
            self.state = self._kernel.init(log_density, self.position, seed=self._seed)
        return log_density

    def _move(self, log_density: Callable[[Tensor], Tensor], adapt: bool) -> Any:
        self.state, info = self._kernel.step(log_density, self.state, adapt=adapt)
        self.position = self.state.position
        _, self.log_ratio = self._path(self.position)
        return info

    def mean_adaptation(self) -> Any:
        """What the kernel adapts, without the chain axis: means over the chains of a datum."""
        n_slots = self.log_ratio.numel()
        shape = self.log_ratio.shape
        return tree_map(
            lambda leaf: leaf.reshape(shape).mean(0) if leaf.shape == (n_slots,) else leaf, self.state.step_size
        )

    def _for_slots(self, leaf: Tensor) -> Tensor:
        return leaf.expand(self.log_ratio.shape).reshape(-1)


def _smoothed(found: list[Any]) -> list[Any]:
    """Running means over a list of trees of tensors."""
    return [
        tree_map(lambda *leaves: torch.stack(leaves).mean(0), *found[max(0, i - SMOOTHING) : i + SMOOTHING + 1])
        for i in range(len(found))
    ]


def _next_temperature(log_ratio: Tensor, beta: float) -> float:
    """The inverse temperature at which the effective sample size of equally weighted chains is CONDITIONAL_ESS."""

    def ess(step: float) -> float:
        log_weights = step * log_ratio
        log_ess = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
        return float(log_ess.exp().mean()) / len(log_ratio)

    if ess(1 - beta) >= CONDITIONAL_ESS:
        return 1.0
    low, high = 0.0, 1 - beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ess(middle) >= CONDITIONAL_ESS else (low, middle)
    return beta + high


def _result(
    log_weights: Tensor, direction: int, rates: list[Tensor], temperatures: Tensor, values: dict[str, Tensor]
) -> AISResult:
    n = len(log_weights)
    signed = direction * log_weights  # a reverse run's weights estimate 1 / p(x)
    log_sum, log_sum_of_squares = signed.logsumexp(0), (2 * signed).logsumexp(0)
    ess = (2 * log_sum - log_sum_of_squares).exp()
    # var(w) / mean(w)^2 = n / ess - 1, up to the n / (n - 1) of the unbiased variance
    relative_variance = (n / ess - 1).clamp_min(0) * (n / max(n - 1, 1))
    return AISResult(
        direction * (log_sum - math.log(n)),
        (relative_variance / n).sqrt(),
        ess,
        log_weights,
        torch.stack(rates) if rates else log_weights.new_zeros(0, *log_weights.shape[1:]),
        temperatures,
        values,
    )


def _streams(seed: int) -> list[int]:
    """Seeds of what must have random numbers of its own: the base's draws, forward, reverse, adapting."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (4,), generator=generator).tolist()


def _own_random_state() -> Any:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    return torch.random.fork_rng(devices)


def _progress_bar(total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="temperatures", disable=not progress)


def _require_options(kernel: Any, n_chains: int, n_temperatures: int, schedule: Any) -> None:
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as zsp.HMC(), but got {kernel!r}.")
    if isinstance(kernel, MCLMC):
        raise ValueError(
            "the transitions of AIS must leave the density invariant exactly, but MCLMC has no Metropolis test. Use "
            "zsp.HMC, zsp.NUTS or zsp.MAMS."
        )
    for name, number in (("n_chains", n_chains), ("n_temperatures", n_temperatures)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    if isinstance(schedule, Tensor):
        is_growing = schedule.dim() == 1 and len(schedule) == n_temperatures + 1 and bool((schedule.diff() > 0).all())
        if not (is_growing and schedule[0] == 0 and schedule[-1] == 1):
            raise ValueError(
                f"a schedule must grow from 0 to 1 in n_temperatures={n_temperatures} steps, with {n_temperatures + 1} "
                f"numbers, but got shape {list(schedule.shape)}: {schedule.flatten()[:5].tolist()}..."
            )
    elif schedule not in ("linear", "sigmoidal", "adaptive"):
        raise ValueError(f"schedule must be 'linear', 'sigmoidal', 'adaptive' or a tensor, got {schedule!r}.")
