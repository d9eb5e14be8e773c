r"""Convergence of Markov chains: rank-normalised split R-hat, effective sample sizes and Monte Carlo standard errors.

.. math::
    \widehat R = \sqrt{\frac{\frac{n-1}{n} W + \frac1n B}{W}}, \qquad
    S_\mathrm{eff} = \frac{m n}{\hat\tau}, \qquad
    \hat\tau = -1 + 2 \sum_{t=0}^{K} \hat P_t

with m chains of n draws, B and W the variances between and within chains, and :math:`\hat P_t` the sums of neighbouring
autocorrelations, as far as Geyer's initial monotone sequence goes. Every function takes draws of shape
[chain, draw, *shape] and treats each element of ``shape`` on its own, all of them in one batch, in float64 whatever the
draws' dtype. An element with a NaN gives NaN, as do fewer than four draws a chain; the conventions are those of ArviZ.

Reference: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, arXiv:1903.08008.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "bfmi",
    "ess_bulk",
    "ess_mean",
    "ess_quantile",
    "ess_sd",
    "ess_tail",
    "mcse_mean",
    "mcse_sd",
    "normal_scores",
    "quantiles",
    "rhat",
    "statistics",
]

MIN_DRAWS = 4  # a chain; fewer give NaN
BLOCK = 2**20  # draws worked on at a time: some 100 MiB with all copies
TAIL = 0.05  # the tail is measured at this quantile and at 1 minus it


def rhat(draws: Tensor) -> Tensor:
    r"""Rank-normalised split R-hat, the larger one of the bulk's and the tails'.

    The chains are split in halves, the draws replaced by the normal scores of their ranks,
    :math:`z = \Phi^{-1}((r - 3/8) / (S + 1/4))`, and the same once more for their distances from the median. It is 1
    where the chains agree; above 1.01 do not trust the draws.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape]; NaN for a single chain, and for draws that are all equal.

    Reference: Vehtari et al. 2021, arXiv:1903.08008, equations 1 to 4, 14 and section 4.2.
    """
    return _each_element(draws, _rhat)


def ess_bulk(draws: Tensor) -> Tensor:
    r"""Effective sample size of the rank-normalised draws: how well the bulk of the distribution is known.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape]; at most :math:`S \log_{10} S` for S draws, since antithetic chains could claim any number.

    Reference: Vehtari et al. 2021, arXiv:1903.08008, equations 10 to 14.
    """
    return _each_element(draws, lambda x: _ess(normal_scores(_split(x))))


def ess_tail(draws: Tensor) -> Tensor:
    """The smaller one of the effective sample sizes of the 5% and the 95% quantile.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape].

    Reference: Vehtari et al. 2021, arXiv:1903.08008, section 4.3.
    """
    return _each_element(draws, _ess_tail)


def ess_mean(draws: Tensor) -> Tensor:
    """Effective sample size for the mean: that of the draws as they are, in split chains.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape]; meaningful where the variance is finite.

    Reference: Vehtari et al. 2021, arXiv:1903.08008, equations 10 to 13.
    """
    return _each_element(draws, lambda x: _ess(_split(x)))


def ess_sd(draws: Tensor) -> Tensor:
    """Effective sample size for the standard deviation: that of the squared distances from the mean.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape].
    """
    return _each_element(draws, lambda x: _ess(_split(_squares(x))))


def ess_quantile(draws: Tensor, prob: float) -> Tensor:
    """Effective sample size for a quantile: that of the indicator of being at most the quantile.

    Args:
        draws: shape [chain, draw, *shape].
        prob: the quantile's probability.

    Returns:
        Shape [*shape].

    Raises:
        ValueError: if ``prob`` is not between 0 and 1.

    Reference: Vehtari et al. 2021, arXiv:1903.08008, section 4.3.
    """
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie between 0 and 1, got {prob}.")
    return _each_element(draws, lambda x: _ess_below(x, _quantiles(x, (prob,))[0]))


def mcse_mean(draws: Tensor) -> Tensor:
    """Monte Carlo standard error of the mean: the standard deviation over the root of ``ess_mean``.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape].
    """
    return _each_element(draws, lambda x: _sd(x) / _ess(_split(x)).sqrt())


def mcse_sd(draws: Tensor) -> Tensor:
    r"""Monte Carlo standard error of the standard deviation, by the delta method from that of the variance.

    .. math:: \sqrt{\frac{\overline{c^4} - \overline{c^2}^2}{4\, \overline{c^2}\, S_\mathrm{eff}}}, \quad c = x - \bar x

    with the effective sample size of :math:`c^2`.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        Shape [*shape].
    """
    return _each_element(draws, _mcse_sd)


def quantiles(draws: Tensor, probs: Sequence[float]) -> Tensor:
    """Quantiles of all chains' draws together, by linear interpolation.

    Args:
        draws: shape [chain, draw, *shape].
        probs: probabilities between 0 and 1.

    Returns:
        Shape [prob, *shape].

    Raises:
        ValueError: for another probability.
    """
    if wrong := [prob for prob in probs if not 0 <= prob <= 1]:
        raise ValueError(f"the probabilities of quantiles must lie between 0 and 1, got {wrong[0]}.")
    return _each_element(draws, lambda x: _quantiles(x, probs), n_results=len(probs), min_draws=1)


def normal_scores(x: Tensor) -> Tensor:
    r"""Normal scores of ranks, :math:`\Phi^{-1}((r - 3/8) / (S + 1/4))`; equal numbers have their average rank.

    Args:
        x: shape [element, ...]; the numbers of each element are ranked among each other.

    Returns:
        The same shape.

    Reference: Vehtari et al. 2021, arXiv:1903.08008, equation 14.
    """
    flat = x.flatten(1)
    size = flat.shape[1]
    values, order = flat.sort(1)
    places = torch.arange(size, device=x.device).expand_as(values)
    starts = torch.ones_like(values, dtype=torch.bool)  # whether a draw is the first of those equal to it
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    first = torch.where(starts, places, 0).cummax(1).values
    last = torch.where(ends, places, size).flip(1).cummin(1).values.flip(1)
    ranks = (first + last).double() / 2 + 1
    scores = torch.special.ndtri((ranks - 0.375) / (size + 0.25))
    return torch.empty_like(flat).scatter_(1, order, scores).view_as(x)


def bfmi(energy: Tensor) -> Tensor:
    r"""Estimated Bayesian fraction of missing information of each chain.

    .. math:: \frac{\frac{1}{n-1}\sum_{i>1} (E_i - E_{i-1})^2}{\frac{1}{n-1}\sum_i (E_i - \bar E)^2}

    Below about 0.3 the momenta's fresh draws move the energy too little to reach all of the distribution.

    Args:
        energy: the Hamiltonian's value at each draw, shape [chain, draw].

    Returns:
        Shape [chain].

    Raises:
        ValueError: for another shape.

    Reference: Betancourt 2016, arXiv:1604.00695, equation 1.
    """
    if energy.dim() != 2:
        raise ValueError(f"bfmi needs energies of shape [chain, draw], but got {list(energy.shape)}.")
    energy = energy.detach().double()
    return energy.diff(dim=1).square().mean(1) / energy.var(1)


def statistics(draws: Tensor) -> dict[str, Tensor]:
    """All that a summary shows of convergence, in one pass that ranks and splits the draws once.

    Args:
        draws: shape [chain, draw, *shape].

    Returns:
        ``mean``, ``sd``, ``mcse_mean``, ``mcse_sd``, ``ess_bulk``, ``ess_tail``, ``r_hat``, each of shape [*shape].
    """
    names = ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")

    def compute(x: Tensor) -> Tensor:
        n_chains, n_draws = x.shape[1:]
        mean, sd = x.mean((1, 2)), _sd(x)
        if n_draws < MIN_DRAWS:
            return torch.stack([mean, sd, *[torch.full_like(mean, math.nan)] * 5])
        split = _split(x)
        scores = normal_scores(split)
        largest_rhat = _rhat(x, scores) if n_chains > 1 else torch.full_like(mean, math.nan)
        mcse = sd / _ess(split).sqrt()
        return torch.stack([mean, sd, mcse, _mcse_sd(x), _ess(scores), _ess_tail(x), largest_rhat])

    values = _each_element(draws, compute, n_results=len(names), min_draws=1)
    return dict(zip(names, values, strict=True))


# -- one block of elements, [element, chain, draw] in float64 ---------------------------------------------------------


def _each_element(
    draws: Tensor, function: Callable[[Tensor], Tensor], *, n_results: int | None = None, min_draws: int = MIN_DRAWS
) -> Tensor:
    """``function`` of every element's draws, in blocks: [chain, draw, *shape] -> [*shape] or [n_results, *shape]."""
    if draws.dim() < 2:
        raise ValueError(f"draws must have shape [chain, draw, *shape], but got {list(draws.shape)}.")
    if draws.is_complex():
        raise ValueError("draws must be real, but got complex numbers: diagnose their real and imaginary parts.")
    n_chains, n_draws, *shape = draws.shape
    results = () if n_results is None else (n_results,)
    n_elements = math.prod(shape)
    flat = draws.detach().reshape(n_chains, n_draws, n_elements)
    values = draws.new_full((*results, n_elements), math.nan, dtype=torch.float64)
    if n_chains and n_draws >= min_draws:
        size = max(1, BLOCK // (n_chains * n_draws))
        for start in range(0, n_elements, size):
            block = flat[..., start : start + size].double().permute(2, 0, 1).contiguous()
            value = function(block)
            values[..., start : start + size] = value.masked_fill(block.isnan().any(2).any(1), math.nan)
    return values.reshape((*results, *shape))


def _split(x: Tensor) -> Tensor:
    """Each chain in two halves, twice as many chains; of an odd number of draws the one in the middle is left out."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x[..., -half:]], -2)


def _rhat(x: Tensor, scores: Tensor | None = None) -> Tensor:
    if x.shape[1] < 2:
        return x.new_full(x.shape[:1], math.nan)
    split = _split(x)
    median = _quantiles(split, (0.5,))[0]
    bulk = _split_rhat(normal_scores(split) if scores is None else scores)
    tail = _split_rhat(normal_scores((split - median[:, None, None]).abs()))
    return torch.maximum(bulk, tail)


def _split_rhat(x: Tensor) -> Tensor:
    """R-hat of chains that are split already; infinite where each of them stands still, at different places."""
    n_draws = x.shape[-1]
    moves = (x != x[..., :1]).any(-1)
    within = torch.where(moves, x.var(-1), 0.0).mean(-1)
    between = n_draws * torch.where(moves.any(-1) | (x[..., 0] != x[:, :1, 0]).any(-1), x.mean(-1).var(-1), 0.0)
    return ((between / within + n_draws - 1) / n_draws).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size of chains that are split already, in the notation of section 3.2 of the paper."""
    n_chains, n_draws = x.shape[1:]
    size = n_chains * n_draws
    covariance = _mean_autocovariance(x)
    within = covariance[:, :1] * (n_draws / (n_draws - 1))
    var_plus = covariance[:, :1]
    if n_chains > 1:
        var_plus = var_plus + x.mean(-1).var(-1, keepdim=True)
    rho = 1 - (within - covariance) / var_plus
    rho[:, 0] = 1.0
    tau = _integrated_time(rho).clamp_min(1 / math.log10(size))
    ess = torch.where(rho[:, 1].isnan(), math.nan, size / tau)
    is_constant = x.amax((1, 2)) - x.amin((1, 2)) < torch.finfo(x.dtype).resolution
    return torch.where(is_constant, float(size), ess)


def _integrated_time(rho: Tensor) -> Tensor:
    """Geyer's estimate from autocorrelations [element, lag]: pairs of lags while they are positive, made monotone."""
    last_pair = max(0, (rho.shape[1] - 3) // 2)
    pairs = rho[:, : 2 * last_pair + 2].unflatten(1, (last_pair + 1, 2)).sum(-1)
    n_positive = (pairs > 0).long().cumprod(1).sum(1, keepdim=True)
    n_pairs = n_positive.clamp_max(last_pair)  # those that count whole; of the next one its even lag may
    counts = torch.arange(last_pair + 1, device=rho.device) < n_pairs
    total = torch.where(counts, pairs.cummin(1).values, 0.0).sum(1)
    even, pair = rho.gather(1, 2 * n_pairs)[:, 0], pairs.gather(1, n_pairs)[:, 0]
    return -1 + 2 * total + torch.where((pair >= 0) | (even > 0), even, 0.0)


def _mean_autocovariance(x: Tensor) -> Tensor:
    """Biased autocovariance at every lag, averaged over chains, [element, lag]; by FFT, a block of chains at a time."""
    n_chains, n_draws = x.shape[1:]
    padded = 1 << (2 * n_draws - 1).bit_length()
    power = x.new_zeros(x.shape[0], padded // 2 + 1)
    size = max(1, BLOCK // (x.shape[0] * padded))
    for start in range(0, n_chains, size):
        chains = x[:, start : start + size]
        spectrum = torch.fft.rfft(chains - chains.mean(-1, keepdim=True), n=padded)
        power += torch.view_as_real(spectrum).square().sum((1, 3))
    return torch.fft.irfft(power, n=padded)[:, :n_draws] / (n_chains * n_draws)


def _ess_tail(x: Tensor) -> Tensor:
    low, high = _quantiles(x, (TAIL, 1 - TAIL))
    return torch.minimum(_ess_below(x, low), _ess_below(x, high))


def _ess_below(x: Tensor, quantile: Tensor) -> Tensor:
    return _ess(_split((x <= quantile[:, None, None]).to(x.dtype)))


def _quantiles(x: Tensor, probs: Sequence[float]) -> Tensor:
    """Quantiles of all chains together by linear interpolation, [prob, element]."""
    values = x.flatten(1).sort(1).values
    size = values.shape[1]
    prob = torch.tensor(tuple(probs), dtype=x.dtype, device=x.device)
    places = size * prob + (1 - prob)  # counted from 1, rounded as ArviZ does: a draw may be the quantile itself
    below = places.floor().clamp(1, max(size - 1, 1))
    weight = places - below
    low, high = values[:, below.long() - 1], values[:, below.long().clamp_max(size - 1)]
    # between equal neighbours rounding must not give a number below both, of which no draw would be at most
    return torch.where((low == high) | (weight == 0), low, (1 - weight) * low + weight * high).T


def _squares(x: Tensor) -> Tensor:
    return (x - x.mean((1, 2), keepdim=True)).square()


def _sd(x: Tensor) -> Tensor:
    return x.flatten(1).std(1) if x[0].numel() > 1 else x.new_full(x.shape[:1], math.nan)


def _mcse_sd(x: Tensor) -> Tensor:
    squares = _squares(x)
    variance = squares.mean((1, 2))
    variance_of_variance = (squares.square().mean((1, 2)) - variance.square()) / _ess(_split(squares))
    return (variance_of_variance / variance / 4).sqrt()
