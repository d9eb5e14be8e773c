"""What the stochastic-gradient kernels share: their state in a loop of the user's own, and the two public functions.

A kernel is a value that holds options. Its ``begin``, ``refresh`` and ``advance`` are pure functions of packed tensors,
chains in one axis, which the run loop of :func:`zsp.mcmc` runs eagerly or compiles, several steps in a call. There is
no Metropolis test: what the draws are off by falls with the learning rate only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.sampling.packing import Packing
from zsp.inference.sampling.stochastic.density import Derivatives, differentiate
from zsp.inference.sampling.stochastic.schedules import Schedule, Stage, stage_at

__all__ = [
    "Noise",
    "StochasticGradientKernel",
    "StochasticState",
    "require_positive",
    "require_rate",
    "require_resampling",
]

Number = Any
"""A number, or a tensor without axes in compiled code."""


class Noise(NamedTuple):
    """The random numbers of a step, or of several with a leading axis of steps."""

    normal: Tensor  # [chain, D], standard normal
    sign: Tensor | tuple[()] = ()  # [chain, D], -1 or 1, for kernels that probe the Hessian


class StochasticState(NamedTuple):
    """The state of a stochastic-gradient kernel in a loop of the user's own: a pytree of tensors.

    Attributes:
        position: as it was given to ``init``.
        log_density: [*chain], as the last step's log density, often a mini-batch's, estimated it before that step.
        inner: what the kernel keeps, packed as [chain, D]: position, velocity, thermostat.
        step: how many steps were made, which the schedule and the resampling of velocities go by.
        random: the state of the random number generator.
    """

    position: Any
    log_density: Tensor
    inner: Any
    step: Tensor
    random: Tensor


class StochasticGradientKernel(ABC):
    """A Markov kernel that follows estimates of a log density's gradient."""

    learning_rate: float
    schedule: Schedule | None
    n_iter_resample_v: int | None = None

    @property
    def probes_curvature(self) -> bool:
        """Whether a step needs the Hessian's product with a random probe."""
        return False

    @abstractmethod
    def coefficients(self, learning_rate: float, temperature: float) -> tuple[float, ...]:
        """The numbers that ``advance`` needs in a step with this learning rate and temperature; a named tuple."""

    @abstractmethod
    def begin(self, position: Tensor, generator: torch.Generator) -> Any:
        """The state of chains that begin at ``position`` [chain, D]; it has a field ``position``."""

    @abstractmethod
    def advance(self, derivatives: Derivatives, state: Any, noise: Noise, coefficients: Any) -> tuple[Any, Any]:
        """One step: the new state, and a named tuple of what the kernel reports, each [chain]."""

    def refresh(self, state: Any, learning_rate: float, generator: torch.Generator) -> Any:
        """The state before a step in which velocities are drawn anew."""
        return state

    def problems(self, info: dict[str, Tensor]) -> list[str]:
        """What makes draws unreliable, in plain words, from what was reported of them, each [chain, draw]."""
        return []

    # -- what is the same for all of them -----------------------------------------------------------------------------

    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Noise:
        """The random numbers of ``n_steps`` steps, each field with a leading axis of steps."""
        shape = (n_steps, *position.shape)
        normal = torch.randn(shape, dtype=position.dtype, device=position.device, generator=generator)
        if not self.probes_curvature:
            return Noise(normal)
        return Noise(normal, torch.empty_like(normal).bernoulli_(generator=generator).mul_(2).sub_(1))

    def stage(self, step: int) -> Stage:
        """What the schedule says of a step."""
        return stage_at(self.schedule, step)

    def resamples(self, step: int) -> bool:
        """Whether velocities are drawn anew before a step; in the first step they are new already."""
        period = self.n_iter_resample_v
        return bool(period) and step > 0 and step % (period or 1) == 0

    def enter(self, state: Any, step: int, generator: torch.Generator) -> Any:
        """The state before a step, with velocities drawn anew where it is their turn."""
        if not self.resamples(step):
            return state
        return self.refresh(state, self.learning_rate * self.stage(step).factor, generator)

    def coefficients_at(self, step: int) -> Any:
        """The numbers that ``advance`` needs in a step."""
        stage = self.stage(step)
        return self.coefficients(self.learning_rate * stage.factor, stage.temperature)

    # -- for loops of the user's own ----------------------------------------------------------------------------------

    def init(self, log_density: Callable[[Any], Tensor], position: Any, *, seed: int) -> StochasticState:
        """The state to begin with.

        Args:
            log_density: from a position to log densities of all data, or estimates of them; their shape is that of the
                chain axes. A mini-batch's log likelihood has to be scaled to all data.
            position: a tensor of shape [*chain, ...], or a dict of them.
            seed: of all random numbers of the chains.

        Returns:
            A pytree of tensors with ``.position``.

        Raises:
            ValueError: if the log density is not finite there, or shapes do not fit.
        """
        packing = Packing(position, log_density)
        packed = packing.pack(position)
        with torch.no_grad():
            value = packing.packed(log_density)(packed)
        n_bad = int((~value.isfinite()).sum())
        if n_bad:
            raise ValueError(
                f"the log density must be finite where the chains begin, but for {n_bad} of {value.numel()} chains it "
                f"is not: the first log densities are {', '.join(f'{v:g}' for v in value[:4].tolist())}. Begin "
                "elsewhere, or look for the node with zsp.checked()."
            )
        generator = torch.Generator(packed.device).manual_seed(seed)
        inner = self.begin(packed.detach(), generator)
        step = torch.zeros((), dtype=torch.int64)
        return StochasticState(position, packing.unflatten(value), inner, step, generator.get_state())

    def step(
        self, log_density: Callable[[Any], Tensor], state: StochasticState, *, adapt: bool = False
    ) -> tuple[StochasticState, Any]:
        """One step of every chain.

        Args:
            log_density: from a position to log densities, of the shape that it had in ``init``; that of another
                mini-batch each time.
            state: from ``init`` or an earlier step.
            adapt: for one signature with the other kernels; these have no adaptation that ends with a warm-up.

        Returns:
            The new state, and a named tuple of what the kernel reports, each of shape [*chain].
        """
        packing = Packing(state.position, lambda position: state.log_density)
        generator = torch.Generator(state.inner.position.device)
        generator.set_state(state.random)
        packed_density = packing.packed(log_density)
        number = int(state.step)
        with torch.no_grad():
            inner = self.enter(state.inner, number, generator)
            noise = tree_map(lambda leaf: leaf[0], self.draw_noise(1, inner.position, generator))
            inner, info = self.advance(
                lambda position, probe=None: differentiate(packed_density, position, probe),
                inner, noise, self.coefficients_at(number),
            )  # fmt: skip
        info = tree_map(packing.unflatten, info)
        position = packing.unpack(inner.position)
        return StochasticState(position, info.log_density, inner, state.step + 1, generator.get_state()), info


def require_positive(kernel: Any, *names: str) -> None:
    """Raise for options that must be positive and finite and are not."""
    for name in names:
        value = getattr(kernel, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def require_rate(kernel: Any) -> None:
    """Raise for a learning rate or a schedule that is none."""
    require_positive(kernel, "learning_rate")
    if kernel.schedule is not None and not callable(kernel.schedule):
        raise TypeError(
            "schedule must be a function from the number of a step to a factor of the learning rate, such as "
            f"zsp.PolynomialSchedule(1000) or lambda step: 1 / (1 + step), got {kernel.schedule!r}."
        )


def require_resampling(kernel: Any) -> None:
    """Raise for a number of steps between resamplings that is none."""
    n = kernel.n_iter_resample_v
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 0):
        raise ValueError(
            f"n_iter_resample_v must be a whole number of steps, or None (or 0) to keep the velocities, got {n!r}."
        )
