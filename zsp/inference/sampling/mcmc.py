"""Markov chain Monte Carlo: the function, and what it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.distributions.constraints import Constraint

from zsp.inference.draws import Draws
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling.base_run import Plan, Saving
from zsp.inference.sampling.kernel import Kernel
from zsp.inference.sampling.run import Run
from zsp.inference.sampling.stochastic.kernel import StochasticGradientKernel
from zsp.inference.sampling.stochastic.run import sample_with_minibatches
from zsp.inference.sampling.stochastic.running import RunningPredictions
from zsp.inference.variational.objective import LogJoint

__all__ = ["mcmc"]


def mcmc(
    meta_bn: LogJoint,
    observed: Mapping[str, Any] | Iterable[Any],
    *,
    kernel: Kernel | StochasticGradientKernel,
    n_samples: int = 1000,
    n_warmup: int = 1000,
    n_chains: int = 4,
    seed: int = 0,
    init: Mapping[str, Any] | None = None,
    latents: Iterable[str] | Mapping[str, Tensor] | None = None,
    supports: Mapping[str, Constraint] | None = None,
    thin: int = 1,
    keep_warmup: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: bool = True,
    compile: bool | str = "auto",
    batch_size: int | None = None,
    predict: RunningPredictions | None = None,
    control_variates: Mapping[str, Any] | None = None,
) -> Draws:
    r"""Draws from a posterior by Markov chain Monte Carlo, all chains at once.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.NUTS())
        print(draws.summary())

    The chains are an axis that the model never sees. Latents are sampled in an unconstrained space, to which every
    node's support is mapped with the values that its parents have; the draws are in the constrained space.

    In the warm-up, step sizes are adapted for each chain and the mass matrix from the draws of all chains together, in
    windows (Stan's schedule); a chain that is faster than the others goes on meanwhile. Then both stay as they are.

    On a CPU, where a gradient of all chains takes long, torch's threads have chains of their own with NUTS and HMC, in
    equal parts of at least eight.

    The stochastic-gradient kernels (:class:`zsp.SGLD`, :class:`zsp.PSGLD`, :class:`zsp.SGHMC`, :class:`zsp.SGNHT`) take
    one mini-batch a step, all chains the same::

        draws = zsp.mcmc(model, {"x": x, "y": y}, batch_size=100, kernel=zsp.SGHMC(1e-6), n_chains=20)
        draws = zsp.mcmc(model, loader, kernel=zsp.SGHMC(1e-6), n_chains=20)

    The nodes that a mini-batch observes say with ``total_size`` how many data there are. The warm-up is then burn-in:
    nothing is adapted in it that would not be adapted after it. The draws are of the latents only, for other nodes
    depend on the mini-batch: see :func:`zsp.predict` and ``predict``.

    Args:
        meta_bn: the model, or a callable from one dict of values, latents and observed ones merged, to the log joint.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input. For the
            stochastic-gradient kernels also an iterable of such mappings, mini-batches, which is begun anew when it
            ends, a DataLoader for example. To resume, it must give the same mini-batches from the same state of torch's
            random numbers.
        kernel: what makes the transitions, for example ``zsp.NUTS()``.
        n_samples: draws that are kept of every chain.
        n_warmup: transitions of every chain before them, at least.
        n_chains: number of chains.
        seed: of all random numbers; the same seed gives the same draws on the same machine with as many threads.
        init: latent name -> where the chains begin, [chain, \*shape], constrained; default uniform(-2, 2) in the
            unconstrained space.
        latents: names to sample, default every unobserved stochastic node; for a callable a dict of example tensors,
            one chain's shape each.
        supports: for a callable, latent name -> constraint.
        thin: every thin-th transition is kept.
        keep_warmup: whether to keep the warm-up's draws, as ``draws.warmup``.
        checkpoint: a file to write the state of the run to, every ``checkpoint_every`` transitions of the slowest
            chain or a little later, for up to about 64 of them are made between two looks.
        checkpoint_every: see there.
        resume: whether to go on from ``checkpoint`` where that file exists; the result is that of a run that was not
            stopped, bit for bit.
        progress: whether to show a progress bar.
        compile: whether to compile the kernel's steps; "auto" does for runs of at least 1,000 transitions, or 50,000
            steps of a stochastic-gradient kernel. What cannot be compiled runs eagerly, with a warning that says why.
        batch_size: for the stochastic-gradient kernels, of the mini-batches of random rows of all tensors in
            ``observed``; default all of them in every step.
        predict: for the stochastic-gradient kernels, predictions to average over all draws; the last draw alone is then
            kept, for models whose draws would be too large.
        control_variates: for the stochastic-gradient kernels, latent name -> value, a point near the mode at which the
            gradient of all data is computed once, so that mini-batches have less noise near it; see
            :class:`zsp.ControlVariates`.

    Returns:
        The draws, and in ``draws.seconds`` how long warm-up, sampling and compiling took. After a KeyboardInterrupt
        the draws made so far, with a warning.

    Raises:
        ValueError: if a latent cannot be sampled, shapes or names do not fit, no beginning with a finite log density is
            found, or the checkpoint is another run's.
    """
    _require_numbers(
        n_samples=(n_samples, 1), n_warmup=(n_warmup, 0), n_chains=(n_chains, 1), thin=(thin, 1),
        checkpoint_every=(checkpoint_every, 1),
    )  # fmt: skip
    if not isinstance(kernel, Kernel | StochasticGradientKernel):
        raise TypeError(f"kernel must be a kernel such as zsp.NUTS(), got {kernel!r}.")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint file to go on from: checkpoint=path.")
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}.")
    plan = Plan(n_samples, n_warmup, n_chains, seed, init, thin, keep_warmup, compile)
    saving = Saving(checkpoint, checkpoint_every, resume)
    if isinstance(kernel, StochasticGradientKernel):
        return sample_with_minibatches(
            meta_bn, observed, kernel, plan, saving, batch_size=batch_size, predict=predict,
            control_variates=control_variates, latents=latents, supports=supports, progress=progress,
        )  # fmt: skip
    observed = _require_all_data(
        kernel, observed, batch_size=batch_size, predict=predict, control_variates=control_variates
    )
    log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
    run = Run(log_density.prepare(n_chains), kernel, plan)
    run.sample(saving, progress)
    draws = run.draws(observed)
    draws.warn(stacklevel=3)
    return draws


def _require_all_data(kernel: Kernel, observed: Any, **for_minibatches: Any) -> Mapping[str, Any]:
    """What was observed, all of it."""
    name = next((name for name, value in for_minibatches.items() if value is not None), None)
    if isinstance(observed, Mapping) and name is None:
        return observed
    what = f"{name}=" if name else "an iterable of mini-batches"
    raise TypeError(
        f"{type(kernel).__name__} needs the gradient of all data in every step, but got {what}. Give observed as one "
        "mapping of all data, or take a kernel for mini-batches: zsp.SGHMC(learning_rate), zsp.SGLD(learning_rate)."
    )


def _require_numbers(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}.")
