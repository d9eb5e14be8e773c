"""What the kernels share: a log density with its gradient, what a step is told and tells, and the two public functions.

A kernel is a value that holds options. Its ``begin`` and ``advance`` are pure functions of packed arrays, chains in one
axis, which the run loop compiles or runs eagerly; ``init`` and ``step`` are the same for people who write a loop of
their own.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.compilation.errors import CompileError
from zsp.inference.compilation.traced_function import TracedFunction
from zsp.inference.compilation.tracing import is_traced
from zsp.inference.sampling.arrays import Array, library, to_numpy, to_torch
from zsp.inference.sampling.factorizations import FailuresAreNaN
from zsp.inference.sampling.metric import MASS_ESTIMATES, MASS_MATRICES, Diagonal, Identity, Metric
from zsp.inference.sampling.packing import Packing
from zsp.inference.sampling.step_size import DualAveraging, find_step_size

__all__ = [
    "DIVERGENCE",
    "Density",
    "Kernel",
    "KernelState",
    "Rows",
    "Transitions",
    "Tuning",
    "require_mass_options",
    "require_options",
]

DIVERGENCE = 1000.0
"""A trajectory diverges when its energy error exceeds this (as in Stan)."""


class Density:
    """A log density with its gradient, for packed positions [chain, D].

    Args:
        log_density: from [chain, D] to [chain].
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        self._log_density = log_density
        self._traced: TracedFunction | None = None
        self._traced_gradient: TracedFunction | None = None

    def trace(self, position: Tensor) -> None:
        """From now on evaluate positions of this shape from a graph, without the Python of the model and of autograd.

        A log density that cannot be traced is evaluated as before.
        """
        with contextlib.suppress(CompileError):
            self._traced = TracedFunction(self, position)

    def __call__(self, position: Array) -> tuple[Array, Array]:
        """Log densities [chain] and gradients [chain, D], as arrays of the position's kind."""
        if library(position) is not torch:
            value, gradient = self(torch.from_numpy(position))
            return value.numpy(), gradient.numpy()
        if self._traced is not None and not is_traced():
            value, gradient = self._traced(position)
            return value, gradient
        position = position.detach().requires_grad_()
        with torch.enable_grad():
            value = self._value(position)
            (gradient,) = torch.autograd.grad(value.sum(), position)
        return value.detach(), gradient

    def gradient(self, position: Array) -> Array:
        """The gradients alone, for steps that do not look at the log densities."""
        if self._traced is None or is_traced():
            return self(position)[1]
        if library(position) is not torch:
            return self.gradient(torch.from_numpy(position)).numpy()
        if self._traced_gradient is None:
            self._traced_gradient = TracedFunction(lambda position: self(position)[1:], position)
        return self._traced_gradient(position)[0]

    def _value(self, position: Tensor) -> Tensor:
        if not is_traced():
            with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                return self._log_density(position)
        with FailuresAreNaN():  # it costs some time an operation, which a graph does not have
            return self._log_density(position)


class Momenta(NamedTuple):
    """Those of the trajectories that begin in a block."""

    values: Array  # [trajectory, chain, D]
    number: Array  # [], of the trajectories that a chain may begin

    @classmethod
    def of(cls, values: Tensor) -> Momenta:
        """All of these."""
        return cls(values, torch.tensor(len(values)))

    def suffice(self, n_begun: Array) -> Array:
        """Whether all chains, which have begun so many [chain], may begin one more."""
        return (n_begun < self.number).all()


class Tuning(NamedTuple):
    """What is the same in all steps of a block."""

    metric: Metric
    target: Array  # [], the acceptance rate that step sizes are adapted to
    is_adapting: Array  # [], whether they are, 0 or 1
    momenta: Momenta | tuple[()] = ()  # see Kernel.draw_momenta


class Transitions(NamedTuple):
    """What a step tells of the chains whose transition ended in it."""

    is_done: Array  # [chain], which these are
    position: Array  # [chain, D], the draw
    force: Array  # [chain, D], the gradient there, pulled by the metric
    info: Any  # the kernel's named tuple of what it reports, each [chain]

    def rows(self) -> Rows:
        """Of several steps, [step, chain, ...], those that ended."""
        made = self
        if library(self.is_done) is torch and self.is_done.device.type == "cpu":
            made = to_numpy(self)  # indexing a few numbers takes numpy a tenth of torch's time
        xp = library(made.is_done)
        step, chain = xp.where(made.is_done)
        number = xp.cumsum(made.is_done, 0)[step, chain] - 1
        position, force, info = tree_map(lambda leaf: leaf[step, chain], (made.position, made.force, made.info))
        rows: Rows = to_torch(Rows(chain, number, position, force, info))
        return rows


class Rows(NamedTuple):
    """Transitions of several steps, a row each; those of a chain in their order."""

    chain: Array  # [row]
    number: Array  # [row], of the chain's transitions among these, from 0
    position: Array  # [row, D]
    force: Array
    info: Any  # each [row]


class Moments(NamedTuple):
    """Exponentially weighted means and variances, pooled over chains; [D] and the number of updates []."""

    mean: Tensor
    variance: Tensor
    n_updates: Tensor


class KernelState(NamedTuple):
    """The state of a kernel in a loop of the user's own: a pytree of tensors.

    Attributes:
        position: as it was given to ``init``.
        log_density: at the position, [*chain].
        step_size: the adaptation of the step sizes, and of what else the kernel adapts.
        metric: the mass matrix.
        moments: what the adaptation of the mass matrix has seen.
        random: the state of the random number generator.
    """

    position: Any
    log_density: Tensor
    step_size: Any
    metric: Metric
    moments: Moments
    random: Tensor


class Kernel(ABC):
    """A Markov kernel that leaves a density invariant; its subclasses are values that hold options."""

    step_size: float
    target_acceptance_rate: float
    mass_matrix: str
    mass_estimate: str
    adapt_step_size: bool = True
    mass_collect_iters: int = 10
    mass_decay: float = 0.99
    chain_axes: ClassVar[Mapping[str, int | None] | None] = None
    """The axis of the chains in those fields of the state where it is not the first, None where all chains have the
    same. None in place of the mapping: the chains see each other, and cannot be advanced apart."""

    @property
    def adapts_mass(self) -> bool:
        """Whether the warm-up adapts the mass matrix."""
        return self.mass_matrix != "identity"

    @property
    def adapts(self) -> bool:
        """Whether the warm-up adapts anything but the mass matrix."""
        return self.adapt_step_size

    def find_step_size(
        self, density: Density, position: Tensor, metric: Metric, first: Tensor, momentum: Tensor
    ) -> Tensor:
        """Step sizes [chain] to begin the adaptation with; see :func:`step_size.find_step_size`."""
        return find_step_size(density, position, metric, first, momentum)

    def start_adaptation(self, step_size: Tensor, position: Tensor) -> Any:
        """What the kernel adapts besides the mass matrix, from first step sizes [chain] at positions [chain, D].

        It becomes the field ``step_size`` of the kernel's state, and is a named tuple with the attributes
        ``log_step_size`` and ``log_average`` and the methods ``finish`` and ``carry_on`` of :class:`DualAveraging`.
        """
        return DualAveraging.start(step_size)

    def restart_adaptation(
        self, adaptation: Any, step_size: Tensor, position: Tensor, before: Metric, after: Metric
    ) -> Any:
        """The adaptation from new first step sizes, when the mass matrix has changed."""
        return DualAveraging.start(step_size)

    @abstractmethod
    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Any:
        """The random numbers of ``n_steps`` steps, each field with a leading axis of steps."""

    def draw_momenta(self, n_trajectories: int, position: Tensor, generator: torch.Generator) -> Momenta | tuple[()]:
        """Momenta for so many trajectories of each chain; nothing for kernels that take theirs from a step's noise.

        The state of the others has a field ``n_begun`` [chain], the trajectories that a chain has begun in the block.
        """
        return ()

    @abstractmethod
    def begin(
        self, density: Density, position: Array, metric: Metric, step_size: Any, generator: torch.Generator
    ) -> Any:
        """The state of chains that begin at ``position`` [chain, D]; it has a field ``step_size``."""

    @abstractmethod
    def advance(
        self, density: Density, state: Any, noise: Any, tuning: Tuning
    ) -> tuple[Any, Transitions | None]:
        """One step: the new state, and what ended in it; None, where values can be looked at, if nothing did."""

    # -- for loops of the user's own ----------------------------------------------------------------------------

    def init(self, log_density: Callable[[Any], Tensor], position: Any, *, seed: int) -> KernelState:
        """The state to begin with.

        Args:
            log_density: from a position to log densities; their shape is that of the chain axes.
            position: a tensor of shape [*chain, ...], or a dict of them.
            seed: of all random numbers of the chains.

        Returns:
            A pytree of tensors with ``.position`` and ``.log_density``.

        Raises:
            ValueError: if the log density or its gradient is not finite there, or shapes do not fit.
        """
        packing = Packing(position, log_density)
        packed = packing.pack(position)
        density = Density(packing.packed(log_density))
        generator = torch.Generator(packed.device).manual_seed(seed)
        value, gradient = density(packed)
        n_bad = int((~(value.isfinite() & gradient.isfinite().all(-1))).sum())
        if n_bad:
            raise ValueError(
                f"the log density and its gradient must be finite where the chains begin, but for {n_bad} of "
                f"{value.numel()} chains they are not: the first log densities are "
                f"{', '.join(f'{v:g}' for v in value[:4].tolist())}. Begin elsewhere, or look for the node with "
                "zsp.checked()."
            )
        metric = Identity()
        step_size = torch.full_like(value, self.step_size)
        if self.adapt_step_size:
            momentum = torch.randn(packed.shape, dtype=packed.dtype, device=packed.device, generator=generator)
            step_size = self.find_step_size(density, packed, metric, step_size, momentum)
        moments = Moments(torch.zeros_like(packed[0]), torch.zeros_like(packed[0]), torch.zeros_like(value[0]))
        adaptation = self.start_adaptation(step_size, packed)
        return KernelState(
            position, packing.unflatten(value), adaptation, metric, moments, generator.get_state()
        )

    def step(
        self, log_density: Callable[[Any], Tensor], state: KernelState, *, adapt: bool = False
    ) -> tuple[KernelState, Any]:
        """One transition of every chain.

        The log density may change between steps, as in Monte Carlo EM: it is evaluated anew.

        Args:
            log_density: from a position to log densities, of the shape that it had in ``init``.
            state: from ``init`` or an earlier step.
            adapt: whether to adapt step sizes (dual averaging) and the mass matrix (exponentially weighted variances of
                all chains together); the chains are Markov chains only without.

        Returns:
            The new state, and a named tuple of what the kernel reports, each of shape [*chain].
        """
        packing = Packing(state.position, log_density)
        packed = packing.pack(state.position)
        density = Density(packing.packed(log_density))
        generator = torch.Generator(packed.device)
        generator.set_state(state.random)
        tuning = Tuning(
            state.metric,
            packed.new_tensor(self.target_acceptance_rate),
            packed.new_tensor(float(adapt and self.adapts)),
        )
        # outside the adaptation, what it has found, and not the last of its attempts
        adaptation = state.step_size if adapt else state.step_size.finish()
        with torch.no_grad():
            inner = self.begin(density, packed, state.metric, adaptation, generator)
            draw, info, step_size = self._transition(density, inner, packed, tuning, generator)
            step_size = step_size if adapt else state.step_size.carry_on(step_size)
            metric, moments = state.metric, state.moments
            if adapt and self.adapts_mass:
                metric, moments = self._adapt_mass(draw, metric, moments)
        info = tree_map(packing.unflatten, info)
        new = KernelState(packing.unpack(draw), info.log_density, step_size, metric, moments, generator.get_state())
        return new, info

    def _transition(
        self, density: Density, inner: Any, packed: Tensor, tuning: Tuning, generator: torch.Generator
    ) -> tuple[Tensor, Any, Any]:
        """Steps until every chain has made one transition: the draws, what is reported, and the step sizes."""
        on_cpu = packed.device.type == "cpu"
        convert = to_numpy if on_cpu else lambda tree: tree
        inner, tuning = convert((inner, tuning))
        kept: Any = None
        waiting = None
        while waiting is None or waiting.any():
            noise = convert(tree_map(lambda leaf: leaf[0], self.draw_noise(1, packed, generator)))
            momenta = convert(self.draw_momenta(1, packed, generator))
            if momenta:
                inner = inner._replace(n_begun=0 * inner.n_begun)
                tuning = tuning._replace(momenta=momenta)
            with numpy.errstate(all="ignore"):  # a diverging trajectory overflows
                inner, ended = self.advance(density, inner, noise, tuning)
            if ended is None:
                continue
            new = (ended.position, ended.info, inner.step_size)
            # a chain that has made its transition goes on with the others, and what it does is not kept
            first = ended.is_done if waiting is None else ended.is_done & waiting
            kept = new if kept is None else _where_everywhere(first, new, kept)
            waiting = ~first if waiting is None else waiting & ~first
        return to_torch(tree_map(lambda leaf: leaf.copy() if on_cpu else leaf, kept))

    def _adapt_mass(self, draw: Tensor, metric: Metric, moments: Moments) -> tuple[Metric, Moments]:
        """The exponentially weighted variance of all draws so far, more weight on the later ones."""
        count = moments.n_updates + 1
        weight = (1 - self.mass_decay) / (1 - self.mass_decay**count)
        mean = moments.mean + weight * (draw.mean(0) - moments.mean)
        scatter = ((draw - moments.mean) * (draw - mean)).mean(0)
        variance = moments.variance + weight * (scatter - moments.variance)
        if int(count) >= self.mass_collect_iters:
            # what has not moved yet, by rejections, keeps its scale
            metric = Diagonal(torch.where(variance > 0, variance, 1.0).sqrt())
        return metric, Moments(mean, variance, count)


def _where_everywhere(condition: Array, new: Any, old: Any) -> Any:
    """Chain by chain, in every array of a pytree."""

    def where(new: Array, old: Array) -> Array:
        return library(new).where(condition.reshape(condition.shape + (1,) * (new.ndim - 1)), new, old)

    return tree_map(where, new, old)


def require_options(kernel: Any) -> None:
    """Raise for options that no kernel with a Metropolis test takes."""
    rate = kernel.target_acceptance_rate
    if not 0 < rate < 1:
        raise ValueError(f"target_acceptance_rate must be between 0 and 1, got {rate}.")
    if not kernel.step_size > 0:
        raise ValueError(f"step_size must be positive, got {kernel.step_size}.")
    require_mass_options(kernel)


def require_mass_options(kernel: Any) -> None:
    """Raise for mass matrices that there are not."""
    for name, allowed in (("mass_matrix", MASS_MATRICES), ("mass_estimate", MASS_ESTIMATES)):
        value = getattr(kernel, name)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
