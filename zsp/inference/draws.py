"""Draws from a posterior: the values by name, what the kernel reported, and what can be said of both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zsp.checks import NodeError
from zsp.checks.wording import quoted, suggestion
from zsp.inference import arviz, diagnostics
from zsp.inference.problems import describe_problems
from zsp.inference.summary import Summary
from zsp.inference.tensor_file import read_tensors, write_tensors

__all__ = ["Draws", "Info"]

KIND = "zsp.Draws"


class Info(Mapping[str, Tensor]):
    """What a kernel reported of every draw, as attributes, each of shape [chain, draw]: ``draws.info.is_divergent``.

    Which ones there are depends on the kernel: ``list(draws.info)`` names them.

    Args:
        values: name -> tensor.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(
                f"the kernel reported no {name!r}; it reported {quoted(self._values)}.{suggestion(name, self._values)}"
            )
        return self._values[name]

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self._values])

    def __repr__(self) -> str:
        return f"<Info of every draw: {', '.join(self._values) or 'nothing'}>"

    __eq__ = object.__eq__  # that of a mapping would compare tensors
    __hash__ = object.__hash__


class Deferred(Mapping[str, Tensor]):
    """Named tensors that are computed when one of them is first looked at, and kept.

    Args:
        compute: makes them.

    Attributes:
        is_computed: whether they have been.
    """

    def __init__(self, compute: Callable[[], Mapping[str, Tensor]]) -> None:
        self._compute = compute
        self._values: dict[str, Tensor] | None = None

    @property
    def is_computed(self) -> bool:
        """Whether the tensors are there."""
        return self._values is not None

    @property
    def _computed(self) -> dict[str, Tensor]:
        if self._values is None:
            self._values = _detached(self._compute())
        return self._values

    def __getitem__(self, name: str) -> Tensor:
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._computed)

    def __len__(self) -> int:
        return len(self._computed)

    __eq__ = object.__eq__  # that of a mapping would compare tensors
    __hash__ = object.__hash__


class Draws(Mapping[str, Tensor]):
    """Draws of several chains, by the names of a model's nodes.

    ::

        draws["w"]                      # [chain, draw, *shape], in the constrained space
        draws.summary()                 # means, errors, effective sample sizes, R-hat, and warnings in plain words
        draws.info.is_divergent         # [chain, draw]
        draws.save("draws.npz"); zsp.Draws.load("draws.npz")

    A mapping from names to tensors: ``"w" in draws``, ``list(draws)``, ``dict(draws)``.

    Args:
        values: name -> draws, shape [chain, draw, *shape], latent and deterministic nodes alike.
        info: what the kernel reported, name -> tensor of shape [chain, draw].
        deterministic: which names in ``values`` are deterministic nodes.
        log_likelihood: observed node's name -> log probability of each datum, shape [chain, draw, *batch]; those of
            :func:`zsp.mcmc` are computed when they are first looked at, since they may be larger than the draws.
        observed: observed node's name -> its value.
        warmup: the draws made while the kernel adapted, if they were kept; of the same nodes and chains.
        seconds: part of the run -> how long it took; :func:`zsp.mcmc` tells of "warmup", "sampling" and "compile".

    Attributes:
        info: see :class:`Info`.
        deterministic: as given.
        log_likelihood: as given, {} where there is none.
        observed: as given, {} where there is none.
        warmup: as given.
        seconds: as given, {} where nothing was; of the whole run also in a part of its draws.
        n_chains: the number of chains.
        n_draws: the number of draws of each chain.

    Raises:
        ValueError: if the shapes do not fit together.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        info: Mapping[str, Tensor],
        deterministic: Iterable[str] = (),
        log_likelihood: Mapping[str, Tensor] | None = None,
        observed: Mapping[str, Tensor] | None = None,
        warmup: Draws | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self._values = _detached(values)
        self.info = Info(_detached(info))
        self.deterministic = tuple(deterministic)
        self.log_likelihood: Mapping[str, Tensor]
        if isinstance(log_likelihood, Deferred):
            self.log_likelihood = log_likelihood
        else:
            self.log_likelihood = _detached(log_likelihood or {})
        self.observed = _detached(observed or {})
        self.warmup = warmup
        self.seconds = dict(seconds or {})
        self.n_chains, self.n_draws = self._check()
        self._statistics: dict[str, tuple[Any, dict[str, Tensor]]] = {}

    def _check(self) -> tuple[int, int]:
        """The numbers of chains and draws, which all the shapes must agree upon."""
        if not self._values:
            raise ValueError("draws need at least one named tensor of shape [chain, draw, *shape], but got none.")
        first = next(iter(self._values))
        leading = tuple(self._values[first].shape[:2])
        groups = {"values": self._values, "info": self.info}
        if not isinstance(self.log_likelihood, Deferred):
            groups["log_likelihood"] = self.log_likelihood
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                is_wrong = tensor.dim() < 2 or tuple(tensor.shape[:2]) != leading
                if is_wrong or (group == "info" and tensor.dim() != 2):
                    of = f"{list(leading)} as for {first!r}" if len(leading) == 2 else "two axes"
                    raise ValueError(
                        f"{group} must have shape [chain, draw{'' if group == 'info' else ', *shape'}], {of}, but "
                        f"{name!r} has {list(tensor.shape)}."
                    )
        if unknown := [name for name in self.deterministic if name not in self._values]:
            raise ValueError(
                f"deterministic names {unknown[0]!r}, but values has {quoted(self._values)}."
                f"{suggestion(unknown[0], self._values)}"
            )
        if self.warmup is not None and (list(self.warmup) != list(self) or self.warmup.n_chains != leading[0]):
            raise ValueError(
                f"the warm-up must be of the same nodes and chains: it has {quoted(self.warmup)} in "
                f"{self.warmup.n_chains} chains, the draws {quoted(self)} in {leading[0]}."
            )
        return leading[0], leading[1]

    # -- a mapping --------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise NodeError(
                f"there are no draws of {name!r}, but of {quoted(self._values)}.{suggestion(str(name), self._values)}"
            )
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        """The number of nodes."""
        return len(self._values)

    __eq__ = object.__eq__  # that of a mapping would compare tensors
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        nodes = ", ".join(f"{name!r} {list(value.shape[2:])}" for name, value in self._values.items())
        warmup = f" after {self.warmup.n_draws} of warm-up" if self.warmup is not None else ""
        return f"<zsp.Draws, {_counted(self.n_chains, 'chain')} x {_counted(self.n_draws, 'draw')}{warmup}: {nodes}>"

    # -- what they say ----------------------------------------------------------------------------------------------

    def summary(
        self, names: Sequence[str] | str | None = None, *, quantiles: Sequence[float] = (0.05, 0.95)
    ) -> Summary:
        """Mean, sd, quantiles, Monte Carlo standard errors, effective sample sizes and R-hat of every quantity.

        Args:
            names: of nodes; default all of them.
            quantiles: probabilities of the quantiles to show.

        Returns:
            A table that shows itself, and below it what :meth:`problems` found.

        Raises:
            NodeError: for a name of which there are no draws.
        """
        chosen = self._chosen(names)
        tables = {}
        for name in chosen:
            table = dict(self._statistics_of(name))
            of_quantiles = diagnostics.quantiles(self[name], quantiles)
            shown = {f"{100 * prob:g}%": value for prob, value in zip(quantiles, of_quantiles, strict=True)}
            tables[name] = {"mean": table.pop("mean"), "sd": table.pop("sd"), **shown, **table}
        title = f"{_counted(self.n_chains, 'chain')} x {_counted(self.n_draws, 'draw')}"
        return Summary(tables, problems=self.problems(), title=title)

    def quantiles(
        self, probs: Sequence[float] = (0.05, 0.5, 0.95), names: Sequence[str] | str | None = None
    ) -> dict[str, Tensor]:
        """Quantiles of all chains together.

        Args:
            probs: probabilities.
            names: of nodes; default all of them.

        Returns:
            name -> shape [prob, *shape], float64.
        """
        return {name: diagnostics.quantiles(self[name], probs) for name in self._chosen(names)}

    def problems(self) -> list[str]:
        """What makes these draws unreliable, in plain words; empty where nothing was found.

        R-hat above 1.01, effective sample sizes below 400, divergences, BFMI below 0.3, chains that did not move, draws
        that are not finite, and too few chains or draws to tell.
        """
        tables = {name: self._statistics_of(name) for name in self}
        latents = [name for name in self if name not in self.deterministic]
        return describe_problems(self._values, tables, info=self.info, latents=latents)

    def warn(self, *, stacklevel: int = 2) -> None:
        """Emit what :meth:`problems` found as one ``UserWarning``; nothing where it found nothing.

        Args:
            stacklevel: as for ``warnings.warn``, 2 for the caller's line.
        """
        if problems := self.problems():
            warnings.warn("\n".join(problems), UserWarning, stacklevel=stacklevel)

    def _with_log_likelihood(self, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What is computed from the log likelihood, when that is there, or else when it is looked at."""
        return Deferred(compute) if isinstance(self.log_likelihood, Deferred) else compute()

    def _chosen(self, names: Sequence[str] | str | None) -> list[str]:
        if names is None:
            return list(self)
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            self[name]  # an unknown one is an error
        return chosen

    def _statistics_of(self, name: str) -> dict[str, Tensor]:
        """Kept, since a summary after a run asks again for what the warning at its end has computed."""
        value = self._values[name]
        version = None if value.is_inference() else value._version
        if name not in self._statistics or self._statistics[name][0] != version:
            self._statistics[name] = (version, diagnostics.statistics(value))
        return self._statistics[name][1]

    # -- parts ------------------------------------------------------------------------------------------------------

    def select(
        self, *, chains: slice | Sequence[int] | None = None, draws: slice | Sequence[int] | None = None
    ) -> Draws:
        """Some of the chains, or of the draws of each chain.

        Args:
            chains: which ones, by a slice or numbers from 0; default all. The warm-up is chosen alike.
            draws: likewise; the warm-up stays whole.

        Returns:
            New draws; with slices they share memory with these.

        Raises:
            IndexError: for a number that is not there.
        """
        index_of_chains = _index("chains", chains, self.n_chains)
        index_of_draws = _index("draws", draws, self.n_draws)

        def part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[index_of_chains][:, index_of_draws] for name, tensor in tensors.items()}

        return Draws(
            part(self),
            info=part(self.info),
            deterministic=self.deterministic,
            log_likelihood=self._with_log_likelihood(lambda: part(self.log_likelihood)),
            observed=self.observed,
            warmup=None if self.warmup is None else self.warmup.select(chains=chains),
            seconds=self.seconds,
        )

    def thin(self, step: int) -> Draws:
        """Every ``step``-th draw of each chain, from the first on.

        Args:
            step: at least 1.

        Returns:
            New draws that share memory with these.

        Raises:
            ValueError: for a smaller step.
        """
        if step < 1:
            raise ValueError(f"thin needs a step of at least 1, got {step}.")
        return self.select(draws=slice(None, None, step))

    @classmethod
    def concatenate(cls, parts: Sequence[Draws], *, along: Literal["draw", "chain"] = "draw") -> Draws:
        """Draws of the same nodes, put together.

        Args:
            parts: what to put together.
            along: ``"draw"`` where the parts continue the same chains: the warm-up is that of the first. ``"chain"``
                where they are other chains: the warm-up is kept where all parts have it.

        Returns:
            New draws. The observed values are those of the first part, the seconds those of all.

        Raises:
            ValueError: if the parts are not of the same nodes and reports, or their shapes do not fit.
        """
        if not parts or along not in ("draw", "chain"):
            raise ValueError(f"concatenate needs draws and along='draw' or 'chain', got {len(parts)} and {along!r}.")
        axis = ("chain", "draw").index(along)
        first = parts[0]

        def joined(what: str, tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            for other in tensors[1:]:
                shapes, other_shapes = ({n: _without(t, axis) for n, t in part.items()} for part in (tensors[0], other))
                if shapes != other_shapes:
                    raise ValueError(
                        f"the parts differ in their {what} (shapes without the {along} axis): {shapes} and "
                        f"{other_shapes}."
                    )
            return {name: torch.cat([part[name] for part in tensors], axis) for name in tensors[0]}

        seconds: dict[str, float] = {}
        for part in parts:
            for name, value in part.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        warmup = first.warmup
        if along == "chain":
            warmups = [part.warmup for part in parts if part.warmup is not None]
            warmup = cls.concatenate(warmups, along="chain") if len(warmups) == len(parts) else None
        return cls(
            joined("nodes", parts),
            info=joined("info", [part.info for part in parts]),
            deterministic=first.deterministic,
            log_likelihood=first._with_log_likelihood(
                lambda: joined("log_likelihood", [part.log_likelihood for part in parts])
            ),
            observed=first.observed,
            warmup=warmup,
            seconds=seconds,
        )

    # -- files and ArviZ --------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file, numpy's ``npz`` with a JSON header: no pickle, every dtype exact.

        A log likelihood that nobody has looked at is not computed for the file: look at it before
        (``draws.log_likelihood["y"]``) to have it there.

        Args:
            path: where. A file that is there is replaced when the new one is complete.
        """
        groups = self._groups("")
        deterministic = {"": self.deterministic}
        if self.warmup is not None:
            groups |= self.warmup._groups("warmup_")
            deterministic["warmup_"] = self.warmup.deterministic
        write_tensors(path, KIND, groups, {"deterministic": deterministic, "seconds": self.seconds})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Draws:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.

        Returns:
            The draws, on the CPU.

        Raises:
            ValueError: if it is no such file, or is damaged.
        """
        groups, facts = read_tensors(path, KIND)
        deterministic = facts["deterministic"]

        def part(prefix: str, warmup: Draws | None) -> Draws:
            values, *rest = (groups[prefix + key] for key in ("values", "info", "log_likelihood", "observed"))
            info, log_likelihood, observed = rest
            return cls(
                values,
                info=info,
                deterministic=deterministic[prefix],
                log_likelihood=log_likelihood,
                observed=observed,
                warmup=warmup,
                seconds=facts.get("seconds"),  # files of older versions have none
            )

        return part("", part("warmup_", None) if "warmup_" in deterministic else None)

    def _groups(self, prefix: str) -> dict[str, Mapping[str, Tensor]]:
        log_likelihood = self.log_likelihood
        is_absent = isinstance(log_likelihood, Deferred) and not log_likelihood.is_computed
        return {
            f"{prefix}values": self._values,
            f"{prefix}info": self.info,
            f"{prefix}log_likelihood": {} if is_absent else log_likelihood,
            f"{prefix}observed": self.observed,
        }

    def to_arviz(self, *, coords: arviz.Coords | None = None, dims: arviz.Dims | None = None) -> Any:
        """These draws for ArviZ: its InferenceData (ArviZ 0.x) or a DataTree (ArviZ 1.x), whichever is installed.

        ::

            draws.to_arviz(coords={"school": schools}, dims={"theta": ["school"], "y": ["school"]})

        Groups: ``posterior``, ``sample_stats`` (``diverging`` and ``n_steps`` for ``is_divergent`` and
        ``n_leapfrogs``), ``log_likelihood``, ``observed_data``, and ``warmup_posterior`` and the like where the warm-up
        was kept.

        Args:
            coords: axis name -> labels of its elements.
            dims: node name -> names of the axes of its shape, without chain and draw.

        Raises:
            ImportError: without ArviZ, the extra ``arviz``.
            ValueError: for a name that is not there, or a number of labels that does not fit.
        """
        return arviz.to_arviz(self, coords=coords, dims=dims)

    def loo(self, name: str | None = None, **options: Any) -> Any:
        r"""Expected log predictive density of a datum left out, by Pareto-smoothed importance sampling, from ArviZ.

        .. math:: \sum_i \log p(y_i \mid y_{-i})

        Args:
            name: the observed node, where there are several.
            **options: for ``arviz.loo``, ``pointwise=True`` for one.

        Raises:
            ImportError: without ArviZ, the extra ``arviz``.
            ValueError: if there is no log likelihood, or several and none is named.

        Reference: Vehtari, Gelman & Gabry 2017, arXiv:1507.04544.
        """
        return arviz.information_criterion(self, "loo", name, options)

    def waic(self, name: str | None = None, **options: Any) -> Any:
        """The widely applicable information criterion, from ArviZ 0.x; prefer :meth:`loo`, which knows when it fails.

        Args:
            name: the observed node, where there are several.
            **options: for ``arviz.waic``.

        Raises:
            ImportError: without ArviZ, the extra ``arviz``.
            NotImplementedError: with ArviZ 1.x, which has dropped it.
            ValueError: if there is no log likelihood, or several and none is named.

        Reference: Watanabe 2010, arXiv:1004.2316.
        """
        return arviz.information_criterion(self, "waic", name, options)


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name!r} must be a tensor, but got {type(tensor).__name__}.")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _index(what: str, chosen: slice | Sequence[int] | None, n: int) -> slice | list[int]:
    if chosen is None or isinstance(chosen, slice):
        return chosen or slice(None)
    if wrong := [i for i in chosen if not -n <= i < n]:
        raise IndexError(f"{what} has {wrong[0]}, but there are {n}, from 0 to {n - 1}.")
    return list(chosen)


def _without(tensor: Tensor, axis: int) -> list[int]:
    return [size for i, size in enumerate(tensor.shape) if i != axis]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
