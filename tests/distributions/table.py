"""One row a node method: parameters, a reference density from scipy or a closed form, and where it is delicate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special as sp
import scipy.stats as st
import torch
from torch import Tensor

import zsp.distributions
from zsp.distributions import NodeType

__all__ = ["CASES", "Case"]

Parameters = dict[str, Any]


def t(value: Any) -> Tensor:
    """A float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A row of the test table.

    Attributes:
        name: the node method.
        parameters: batch shape [3], in ZhuSuan's names; tensors without an axis are shared by the batch.
        reference: (parameters of one batch element as numpy, values [n, *event]) -> log density [n].
        event_shape: of one value.
        discrete: whether values are whole numbers.
        cdf: (parameters of one batch element, values) -> distribution function; for continuous scalars.
        cells: (parameters of one batch element) -> all likely values, for discrete variables.
        exact_path: a draw is a monotone function of one noise, so that its derivative is known draw by draw.
        scored: the support does not depend on the parameters, so that the score has mean zero.
        outside: a value outside the support.
        extremes: pairs (parameters, value) with finite log density and derivatives, also in float32.
        values: given values [n, 3, *event] where there are no draws.
        smooth_value: the log density is differentiable in the value.
        reparameterized: the draws of a continuous variable are differentiable in the parameters.
    """

    name: str
    parameters: Parameters
    reference: Callable[[Any, np.ndarray], np.ndarray]
    event_shape: tuple[int, ...] = ()
    discrete: bool = False
    cdf: Callable[[Any, np.ndarray], np.ndarray] | None = None
    cells: Callable[[Any], np.ndarray] | None = None
    exact_path: bool = True
    scored: bool = True
    outside: Any = None
    extremes: tuple[tuple[Parameters, Any], ...] = field(default=())
    values: Tensor | None = None
    smooth_value: bool = True
    reparameterized: bool = True

    @property
    def row(self) -> NodeType:
        """The row of zsp's table."""
        return getattr(zsp.distributions, f"{self.name}_node").node_type

    def build(self, dtype: torch.dtype = torch.float64, device: Any = None, **changed: Any) -> Any:
        """The distribution."""
        return self.row.build(**self.cast({**self.parameters, **changed}, dtype, device))

    @staticmethod
    def cast(parameters: Parameters, dtype: torch.dtype, device: Any = None) -> Parameters:
        """The floating-point parameters in another dtype."""

        def to(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            if isinstance(value, torch.distributions.Distribution):  # a parameter of mixtures and flows
                changed = copy.copy(value)
                changed.__dict__.update({key: to(part) for key, part in vars(value).items()})
                return changed
            return value

        return {name: to(value) for name, value in parameters.items()}

    def element(self, index: int) -> Parameters:
        """The parameters of one element of the batch, as numpy."""
        return {
            name: (value[index] if value.dim() else value).numpy() if isinstance(value, Tensor) else value
            for name, value in self.parameters.items()
        }

    def draws(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Values [n, 3, *event], drawn with a fixed seed."""
        if self.values is not None:
            return self.values[:n].to(dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(dtype).sample((n,))


def _norm(p: Any) -> Any:
    return st.norm(p["mean"], p["std"] if p.get("std") is not None else np.exp(p["logstd"]))


def _binary(n: int) -> Callable[[Any], np.ndarray]:
    return lambda p: np.arange(n)


def _bin_concrete(p: Any, x: np.ndarray) -> np.ndarray:
    # equation 24 of Maddison et al. 2017 as it is printed, with alpha = exp(logits)
    alpha, temperature = np.exp(p["logits"]), p["temperature"]
    density = temperature * alpha * x ** (-temperature - 1) * (1 - x) ** (-temperature - 1)
    return np.log(density / (alpha * x**-temperature + (1 - x) ** -temperature) ** 2)


def _concrete(p: Any, x: np.ndarray) -> np.ndarray:
    # equation 10 of Maddison et al. 2017 as it is printed, with alpha = exp(logits)
    alpha, temperature, n = np.exp(p["logits"]), p["temperature"], x.shape[-1]
    ratio = alpha * x ** (-temperature - 1) / (alpha * x**-temperature).sum(-1, keepdims=True)
    return sp.gammaln(n) + (n - 1) * np.log(temperature) + np.log(ratio).sum(-1)


def _inverse_gamma(p: Any) -> Any:
    return st.invgamma(p["alpha"], scale=p["beta"])


def _mvn(covariance: Callable[[Any], np.ndarray]) -> Callable[[Any, np.ndarray], np.ndarray]:
    return lambda p, x: np.atleast_1d(st.multivariate_normal(p["mean"], covariance(p)).logpdf(x))


def _multinomial_cells(n: int, k: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n + 1)] * k, indexing="ij"), -1).reshape(-1, k)
    return grid[grid.sum(-1) == n]


def _truncated(p: Any) -> Any:
    ends = ((p[end] - p["mean"]) / p["std"] for end in ("minval", "maxval"))
    return st.truncnorm(*ends, loc=p["mean"], scale=p["std"])


def _truncated_log_density(p: Any, x: np.ndarray) -> np.ndarray:
    # scipy's own takes differences of distribution functions: here the smaller tails
    low, high = (p["minval"] - p["mean"]) / p["std"], (p["maxval"] - p["mean"]) / p["std"]
    if low + high > 0:
        low, high = -high, -low
    mass = sp.log_ndtr(high) + np.log1p(-np.exp(sp.log_ndtr(low) - sp.log_ndtr(high)))
    return _norm(p).logpdf(x) - mass


def _continuous_bernoulli(p: Any, x: np.ndarray) -> np.ndarray:
    # equations 6 and 7 of Loaiza-Ganem & Cunningham 2019 as they are printed
    rate = sp.expit(p["logits"])
    constant = 2 * np.arctanh(1 - 2 * rate) / (1 - 2 * rate) if rate != 0.5 else 2.0
    return np.log(constant * rate**x * (1 - rate) ** (1 - x))


def _zero_inflated(base: Callable[[Any], Any]) -> Callable[[Any, np.ndarray], np.ndarray]:
    def log_probability(p: Any, x: np.ndarray) -> np.ndarray:
        gate = sp.expit(p["gate_logits"])
        return np.log(gate * (x == 0) + (1 - gate) * base(p).pmf(x))

    return log_probability


def _negative_binomial(p: Any) -> Any:
    return st.nbinom(p["total_count"], sp.expit(-p["logits"]))


def _ordered(p: Any, x: np.ndarray) -> np.ndarray:
    edges = sp.expit(np.concatenate([[-np.inf], p["cutpoints"] - p["predictor"], [np.inf]]))
    return np.log(np.diff(edges))[x.astype(int)]


def _discretized(p: Any, x: np.ndarray) -> np.ndarray:
    # equation 2 of Salimans et al. 2017 as it is printed, pixels 0 and 255 with infinite edges, scaled to [-1, 1]
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    cdf = sp.expit((edges[:, None] - p["loc"]) / np.exp(p["logscale"]))
    return np.log((np.diff(cdf, axis=0) * sp.softmax(p["logits"])).sum(-1))[x.astype(int)]


def _wrapped(p: Any) -> Any:
    return st.vonmises(p["concentration"], p["loc"])


def _lkj(p: Any, x: np.ndarray) -> np.ndarray:
    # equations 16 and 17 of Lewandowski et al. 2009 for the correlation matrix, and the Jacobian of L L^T
    d, eta = p["dim"], p["concentration"]
    k = np.arange(1, d)
    constant = ((2 * eta - 2 + d - k) * (d - k)).sum() * np.log(2)
    constant += ((d - k) * sp.betaln(eta + (d - k - 1) / 2, eta + (d - k - 1) / 2)).sum()
    diagonal = np.diagonal(x, axis1=-2, axis2=-1)
    return 2 * (eta - 1) * np.log(diagonal).sum(-1) - constant + (np.log(diagonal) * (d - np.arange(1, d + 1))).sum(-1)


def _mixture(p: Any) -> tuple[np.ndarray, Any]:
    c = p["components"]
    return sp.softmax(p["logits"]), st.norm(c.loc.double().cpu().numpy(), c.scale.double().cpu().numpy())


MEAN, STD = t([0.0, -1.5, 2.0]), t([1.0, 0.3, 2.5])
LOGITS = t([[0.0, 1.0, -1.0], [2.0, 0.0, -0.5], [-1.0, -1.0, 0.3]])
TRIL = t([[[1.0, 0.0], [0.5, 0.8]], [[0.4, 0.0], [-0.3, 1.5]], [[2.0, 0.0], [0.0, 0.7]]])
VECTOR = t([[0.0, 1.0], [-1.0, 0.5], [3.0, 0.0]])
COV = TRIL @ TRIL.mT
U_TRIL = t([[[1.0, 0.0], [0.5, 0.8]], [[0.7, 0.0], [-0.3, 1.5]], [[2.0, 0.0], [0.2, 0.7]]])
V_TRIL = t(np.tril(np.array([[1.0, 0, 0], [0.3, 0.5, 0], [-0.2, 0.1, 2.0]])) * np.array([1.0, 1.3, 0.6])[:, None, None])
MATRIX = t(np.linspace(-1, 1, 18).reshape(3, 2, 3))
POSITIVE, POSITIVE2 = t([0.6, 1.0, 4.0]), t([1.5, 0.4, 2.0])
BAGS = torch.randint(0, 4, (8, 3, 3), generator=torch.Generator().manual_seed(0)).double()
LAST = 1 - 2.0**-24
LOWS, HIGHS = t([-1.0, -1.0, 4.0]), t([0.5, 0.5, 6.0])
FACTOR = t([[[1.0], [0.5]], [[0.0], [-0.7]], [[2.0], [0.1]]])
COMPONENTS = zsp.distributions.Normal(t([-1.0, 0.5, 4.0]), t([0.5, 1.0, 2.0]))
CUTS = t([[-1.0, 0.2, 1.5], [-3.0, -1.0, 0.0], [0.5, 0.7, 4.0]])

CASES = (
    Case(
        "normal",
        {"mean": MEAN, "std": STD},
        lambda p, x: _norm(p).logpdf(x),
        cdf=lambda p, x: _norm(p).cdf(x),
        outside=float("nan"),
        extremes=(({"mean": t(0.0), "std": t(1.0)}, 1e15), ({"mean": t(0.0), "logstd": t(-30.0)}, 0.0)),
    ),
    Case(
        "fold_normal",
        {"mean": MEAN, "logstd": STD.log()},
        lambda p, x: np.logaddexp(_norm(p).logpdf(x), _norm(p).logpdf(-x)),
        cdf=lambda p, x: _norm(p).cdf(x) - _norm(p).cdf(-x),
        exact_path=False,
        outside=-0.1,
        extremes=(
            ({"mean": t(-1e3), "std": t(1.0)}, 1e3),
            ({"mean": t(1e3), "std": t(1.0)}, 0.0),
            ({"mean": t(0.0), "std": t(1.0)}, 0.0),
        ),
    ),
    Case(
        "half_normal",
        {"scale": STD},
        lambda p, x: st.halfnorm(scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.halfnorm(scale=p["scale"]).cdf(x),
        outside=-0.1,
        extremes=(({"scale": t(1.0)}, 0.0), ({"scale": t(1.0)}, 1e15)),
    ),
    Case(
        "log_normal",
        {"mean": MEAN, "std": t([1.0, 0.3, 0.5])},
        lambda p, x: st.lognorm(p["std"], scale=np.exp(p["mean"])).logpdf(x),
        cdf=lambda p, x: st.lognorm(p["std"], scale=np.exp(p["mean"])).cdf(x),
        outside=-0.1,
        extremes=(({"mean": t(0.0), "std": t(1.0)}, 1e-30), ({"mean": t(0.0), "std": t(1.0)}, 1e30)),
    ),
    Case(
        "uniform",
        {"minval": t([-1.0, 0.0, 2.0]), "maxval": t([1.0, 0.5, 30.0])},
        lambda p, x: st.uniform(p["minval"], p["maxval"] - p["minval"]).logpdf(x),
        cdf=lambda p, x: st.uniform(p["minval"], p["maxval"] - p["minval"]).cdf(x),
        scored=False,
        smooth_value=False,
        outside=31.0,
        extremes=(({"minval": t(0.0), "maxval": t(1.0)}, 1.0), ({"minval": t(0.0), "maxval": t(1.0)}, 0.0)),
    ),
    Case(
        "laplace",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.laplace(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.laplace(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=(({"loc": t(0.0), "scale": t(1.0)}, 1e30), ({"loc": t(0.0), "scale": t(1.0)}, 0.0)),
    ),
    Case(
        "logistic",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.logistic(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.logistic(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=(({"loc": t(0.0), "scale": t(1.0)}, 1e30), ({"loc": t(0.0), "scale": t(1.0)}, -1e30)),
    ),
    Case(
        "student_t",
        {"df": t([2.5, 45.0, 1000.0]), "loc": MEAN, "scale": STD},
        lambda p, x: st.t(p["df"], p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.t(p["df"], p["loc"], p["scale"]).cdf(x),
        exact_path=False,
        outside=float("nan"),
        extremes=(({"df": t(3.0)}, 1e15), ({"df": t(1e-3)}, 1.0), ({"df": t(1e7)}, 1.0)),
    ),
    Case(
        "half_cauchy",
        {"scale": STD},
        lambda p, x: st.halfcauchy(scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.halfcauchy(scale=p["scale"]).cdf(x),
        outside=-0.1,
        extremes=(({"scale": t(1.0)}, 0.0), ({"scale": t(1.0)}, 1e15)),
    ),
    Case(
        "exponential",
        {"rate": STD},
        lambda p, x: st.expon(scale=1 / p["rate"]).logpdf(x),
        cdf=lambda p, x: st.expon(scale=1 / p["rate"]).cdf(x),
        outside=-0.1,
        extremes=(({"rate": t(1.0)}, 0.0), ({"rate": t(1.0)}, 1e30)),
    ),
    Case(
        "weibull",
        {"scale": STD, "concentration": POSITIVE},
        lambda p, x: st.weibull_min(p["concentration"], scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.weibull_min(p["concentration"], scale=p["scale"]).cdf(x),
        outside=0.0,
        extremes=(
            ({"scale": t(1.0), "concentration": t(1.0)}, 1e-30),
            ({"scale": t(1.0), "concentration": t(1e-3)}, 1e-37),
            ({"scale": t(1e-3), "concentration": t(1.5)}, 1e10),
        ),
    ),
    Case(
        "gamma",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: st.gamma(p["alpha"], scale=1 / p["beta"]).logpdf(x),
        cdf=lambda p, x: st.gamma(p["alpha"], scale=1 / p["beta"]).cdf(x),
        outside=-0.5,
        extremes=(
            ({"alpha": t(1.0), "beta": t(2.0)}, 0.0),
            ({"alpha": t(1e-3), "beta": t(1.0)}, 1e-37),
            ({"alpha": t(3.0), "beta": t(1.0)}, 1e30),
        ),
    ),
    Case(
        "inverse_gamma",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: _inverse_gamma(p).logpdf(x),
        cdf=lambda p, x: _inverse_gamma(p).cdf(x),
        exact_path=False,
        outside=0.0,
        extremes=(({"alpha": t(1.0), "beta": t(2.0)}, 1e30), ({"alpha": t(1.0), "beta": t(2.0)}, 1e-15)),
    ),
    Case(
        "beta",
        {"alpha": POSITIVE, "beta": POSITIVE2},
        lambda p, x: st.beta(p["alpha"], p["beta"]).logpdf(x),
        cdf=lambda p, x: st.beta(p["alpha"], p["beta"]).cdf(x),
        exact_path=False,
        outside=1.1,
        extremes=(
            ({"alpha": t(1.0), "beta": t(1.0)}, 0.0),
            ({"alpha": t(1.0), "beta": t(1.0)}, 1.0),
            ({"alpha": t(1e-3), "beta": t(1e-3)}, 1e-37),
            ({"alpha": t(0.5), "beta": t(0.5)}, LAST),
        ),
    ),
    Case(
        "dirichlet",
        {"alpha": t([[0.6, 1.0, 4.0], [1.0, 1.0, 1.0], [2.0, 0.3, 0.7]])},
        lambda p, x: np.array([st.dirichlet(p["alpha"]).logpdf(v / v.sum()) for v in x]),
        event_shape=(3,),
        outside=[0.5, 0.4, 0.2],
        extremes=(({"alpha": t([1.0, 1.0, 1.0])}, [0.0, 0.0, 1.0]), ({"alpha": t([1e-3, 1.0])}, [1e-37, 1.0])),
    ),
    Case(
        "bernoulli",
        {"logits": t([0.0, -2.0, 1.5])},
        lambda p, x: st.bernoulli(sp.expit(p["logits"])).logpmf(x),
        discrete=True,
        cells=_binary(2),
        outside=0.5,
        extremes=tuple(({"logits": t(logit)}, x) for logit in (-1e3, 0.0, 1e3) for x in (0.0, 1.0)),
    ),
    Case(
        "categorical",
        {"logits": LOGITS},
        lambda p, x: sp.log_softmax(p["logits"])[x.astype(int)],
        discrete=True,
        cells=_binary(3),
        outside=3.0,
        extremes=(({"logits": t([0.0, 1e3])}, 0.0), ({"logits": t([0.0, -torch.inf])}, 0.0)),
    ),
    Case(
        "onehot_categorical",
        {"logits": LOGITS},
        lambda p, x: sp.log_softmax(p["logits"])[x.argmax(-1)],
        event_shape=(3,),
        discrete=True,
        cells=lambda p: np.eye(3),
        outside=[1.0, 1.0, 0.0],
        extremes=(({"logits": t([0.0, 1e3])}, [1.0, 0.0]), ({"logits": t([0.0, -torch.inf])}, [1.0, 0.0])),
    ),
    Case(
        "binomial",
        {"logits": t([0.0, -2.0, 1.5]), "n_experiments": torch.tensor([4, 10, 7])},
        lambda p, x: st.binom(int(p["n_experiments"]), sp.expit(p["logits"])).logpmf(x),
        discrete=True,
        cells=lambda p: np.arange(int(p["n_experiments"]) + 1),
        outside=11.0,
        extremes=(
            *tuple(({"logits": t(logit), "n_experiments": 5}, x) for logit in (-1000.0, 1000.0) for x in (0.0, 5.0)),
            ({"logits": t(-torch.inf), "n_experiments": 5}, 0.0),
        ),
    ),
    Case(
        "multinomial",
        {"logits": LOGITS, "n_experiments": 4},
        lambda p, x: np.array([st.multinomial(4, sp.softmax(p["logits"])).logpmf(v) for v in x]),
        event_shape=(3,),
        discrete=True,
        cells=lambda p: _multinomial_cells(4, 3),
        outside=[1.0, 1.0, 1.0],
        extremes=(
            ({"logits": t([0.0, 1e3]), "n_experiments": 2}, [0.0, 2.0]),
            ({"logits": t([0.0, -torch.inf]), "n_experiments": 2}, [2.0, 0.0]),
            ({"logits": t([0.0, 0.0]), "n_experiments": None}, [0.0, 0.0]),
        ),
    ),
    Case(
        "unnormalized_multinomial",
        {"logits": LOGITS},
        lambda p, x: (x * sp.log_softmax(p["logits"])).sum(-1),
        event_shape=(3,),
        discrete=True,
        values=BAGS,
        outside=[0.5, 1.0, 1.0],
        extremes=(({"logits": t([0.0, 1e3])}, [0.0, 2.0]), ({"logits": t([0.0, -torch.inf])}, [2.0, 0.0])),
    ),
    Case(
        "poisson",
        {"rate": t([0.5, 3.0, 12.0])},
        lambda p, x: st.poisson(p["rate"]).logpmf(x),
        discrete=True,
        cells=_binary(60),
        outside=1.5,
        extremes=(({"rate": t(0.0)}, 0.0), ({"rate": t(1e-30)}, 3.0), ({"rate": t(1e6)}, 0.0)),
    ),
    Case(
        "bin_concrete",
        {"temperature": t([0.7, 1.0, 1.5]), "logits": t([0.0, -2.0, 1.5])},
        _bin_concrete,
        cdf=lambda p, x: sp.expit(p["temperature"] * sp.logit(x) - p["logits"]),
        outside=0.0,
        extremes=(
            ({"temperature": t(0.1), "logits": t(0.0)}, 1e-37),
            ({"temperature": t(0.1), "logits": t(1e3)}, LAST),
        ),
    ),
    Case(
        "concrete",
        {"temperature": t(0.8), "logits": LOGITS},
        _concrete,
        event_shape=(3,),
        outside=[0.0, 0.5, 0.5],
        extremes=(({"temperature": t(0.1), "logits": t([0.0, 1e3])}, [1e-37, 1.0]),),
    ),
    Case(
        "exp_concrete",
        {"temperature": t([0.8, 1.0, 1.4]), "logits": LOGITS},
        lambda p, y: _concrete(p, np.exp(y)) + y.sum(-1),
        event_shape=(3,),
        outside=[0.0, -1.0, -1.0],
        extremes=(({"temperature": t(0.1), "logits": t([0.0, 1e3])}, [-1e4, 0.0]),),
    ),
    Case(
        "multivariate_normal",
        {"mean": VECTOR, "cov": COV},
        _mvn(lambda p: p["cov"]),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(({"mean": t([0.0, 0.0]), "precision": t([[1.0, 0.0], [0.0, 1e6]])}, [1e6, 0.0]),),
    ),
    Case(
        "multivariate_normal_cholesky",
        {"mean": VECTOR, "cov_tril": TRIL},
        _mvn(lambda p: p["cov_tril"] @ p["cov_tril"].T),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(({"mean": t([0.0, 0.0]), "cov_tril": t([[1e-6, 0.0], [0.0, 1e6]])}, [0.0, 1e15]),),
    ),
    Case(
        "matrix_variate_normal_cholesky",
        {"mean": MATRIX, "u_tril": U_TRIL, "v_tril": V_TRIL},
        lambda p, x: st.matrix_normal(p["mean"], p["u_tril"] @ p["u_tril"].T, p["v_tril"] @ p["v_tril"].T).logpdf(x),
        event_shape=(2, 3),
        outside=[[float("nan"), 0.0, 0.0], [0.0, 0.0, 0.0]],
        extremes=(({"mean": t([[0.0]]), "u_tril": t([[1e-6]]), "v_tril": t([[1.0]])}, [[1e6]]),),
    ),
    Case(
        "truncated_normal",
        {"mean": MEAN, "std": STD, "minval": LOWS, "maxval": HIGHS},
        _truncated_log_density,
        cdf=lambda p, x: _truncated(p).cdf(x),
        scored=False,
        outside=7.0,
        extremes=(
            ({"mean": t(0.0), "std": t(1.0), "minval": t(1e3), "maxval": t(1e4)}, 1000.5),
            ({"mean": t(0.0), "std": t(1.0), "minval": t(1e15)}, 1e15),
            ({"mean": t(1e6), "std": t(1.0), "maxval": t(0.0)}, -1e-3),
            ({"mean": t(0.0), "std": t(1.0), "minval": t(0.0), "maxval": t(1e-30)}, 1e-30),
            ({"mean": t(0.0), "logstd": t(0.0), "minval": t(-1e4), "maxval": t(1e4)}, -100.0),
            ({"mean": t(0.0), "std": t(1.0)}, 12.0),
        ),
    ),
    Case(
        "cauchy",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.cauchy(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.cauchy(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=tuple(({"loc": t(0.0), "scale": t(1.0)}, x) for x in (0.0, 1e-30, -1e15, 1e30)),
    ),
    Case(
        "gumbel",
        {"loc": MEAN, "scale": STD},
        lambda p, x: st.gumbel_r(p["loc"], p["scale"]).logpdf(x),
        cdf=lambda p, x: st.gumbel_r(p["loc"], p["scale"]).cdf(x),
        outside=float("nan"),
        extremes=tuple(({"loc": t(0.0), "scale": t(1.0)}, x) for x in (-70.0, 1e4, 1e30)),
    ),
    Case(
        "pareto",
        {"scale": STD, "alpha": POSITIVE},
        lambda p, x: st.pareto(p["alpha"], scale=p["scale"]).logpdf(x),
        cdf=lambda p, x: st.pareto(p["alpha"], scale=p["scale"]).cdf(x),
        scored=False,
        outside=0.2,
        extremes=(({"scale": t(1.0), "alpha": t(0.1)}, 1e30), ({"scale": t(1e-30), "alpha": t(2.0)}, 1e-30)),
    ),
    Case(
        "chi2",
        {"df": t([0.8, 2.0, 7.0])},
        lambda p, x: st.chi2(p["df"]).logpdf(x),
        cdf=lambda p, x: st.chi2(p["df"]).cdf(x),
        exact_path=False,
        outside=-0.5,
        extremes=(({"df": t(2.0)}, 0.0), ({"df": t(1e-3)}, 1e-37), ({"df": t(3.0)}, 1e30)),
    ),
    Case(
        "continuous_bernoulli",
        {"logits": t([0.01, -2.0, 5.0])},
        _continuous_bernoulli,
        cdf=lambda p, x: np.expm1(p["logits"] * x) / np.expm1(p["logits"]),
        outside=1.1,
        extremes=tuple(({"logits": t(logit)}, x) for logit in (-1e3, 0.0, 1e-8, 0.2, 1e3) for x in (0.0, 0.5, 1.0)),
    ),
    Case(
        "von_mises",
        {"loc": t([0.0, -1.5, 3.0]), "concentration": t([0.3, 2.0, 150.0])},
        lambda p, x: _wrapped(p).logpdf(x),
        cdf=lambda p, x: _wrapped(p).cdf(x) - _wrapped(p).cdf(-np.pi),
        reparameterized=False,
        outside=4.0,
        extremes=(
            ({"loc": t(0.0), "concentration": t(1e8)}, 1.0),
            ({"loc": t(0.0), "concentration": t(1e-30)}, 3.0),
            ({"loc": t(2.0), "concentration": t(1.0)}, 2.0),
        ),
    ),
    Case(
        "geometric",
        {"logits": t([0.0, -2.0, 1.5])},
        lambda p, x: st.geom(sp.expit(p["logits"]), loc=-1).logpmf(x),
        discrete=True,
        cells=_binary(200),
        outside=0.5,
        extremes=tuple(({"logits": t(logit)}, x) for logit in (-1e3, 0.0, 1e3) for x in (0.0, 5.0)),
    ),
    Case(
        "negative_binomial",
        {"logits": t([0.0, -2.0, 1.5]), "total_count": t([0.7, 150.0, 4.0])},
        lambda p, x: _negative_binomial(p).logpmf(x),
        discrete=True,
        cells=_binary(300),
        outside=1.5,
        extremes=(
            ({"logits": t(-1e3), "total_count": t(1.0)}, 2.0),
            ({"logits": t(1e3), "total_count": t(1.0)}, 0.0),
            ({"logits": t(-20.0), "total_count": t(1e8)}, 0.0),
            ({"logits": t(0.0), "total_count": t(1e-30)}, 4.0),
        ),
    ),
    Case(
        "zero_inflated_poisson",
        {"rate": t([0.5, 3.0, 12.0]), "gate_logits": t([0.0, -2.0, 1.0])},
        _zero_inflated(lambda p: st.poisson(p["rate"])),
        discrete=True,
        cells=_binary(60),
        outside=1.5,
        extremes=tuple(
            ({"rate": t(rate), "gate_logits": t(gate)}, x)
            for rate in (1e-30, 1.0, 1e6)
            for gate in (-1e3, 0.0, 1e3)
            for x in (0.0, 3.0)
        ),
    ),
    Case(
        "zero_inflated_negative_binomial",
        {"logits": t([0.0, -2.0, 1.5]), "total_count": t([0.7, 20.0, 4.0]), "gate_logits": t([0.0, -2.0, 1.0])},
        _zero_inflated(_negative_binomial),
        discrete=True,
        cells=_binary(300),
        outside=1.5,
        extremes=(
            ({"logits": t(-1e3), "total_count": t(1.0), "gate_logits": t(0.0)}, 2.0),
            ({"logits": t(1e3), "total_count": t(1.0), "gate_logits": t(-1e3)}, 0.0),
        ),
    ),
    Case(
        "ordered_logistic",
        {"predictor": t([0.0, -1.0, 2.0]), "cutpoints": CUTS},
        _ordered,
        discrete=True,
        cells=_binary(4),
        outside=4.0,
        extremes=tuple(
            ({"predictor": t(h), "cutpoints": t([-1.0, -1.0 + 1e-6, 2.0])}, x)
            for h in (-1e3, 0.0, 1e3)
            for x in (0.0, 1.0, 3.0)
        ),
    ),
    Case(
        "discretized_logistic_mixture",
        {
            "logits": LOGITS,
            "loc": t([[-1.0, 0.0, 1.0], [0.2, 0.3, -0.9], [1.2, -1.1, 0.5]]),
            "logscale": t([[-2.0, -3.0, -1.5], [-1.0, -4.0, -2.0], [-3.0, -2.5, -3.5]]),
        },
        _discretized,
        discrete=True,
        cells=_binary(256),
        outside=256.0,
        extremes=tuple(
            ({"logits": t([0.0, 1.0]), "loc": t([loc, 0.1]), "logscale": t([scale, scale])}, x)
            for loc in (-1.0, 1.0)
            for scale in (-12.0, 0.0, 30.0)
            for x in (0.0, 100.0, 255.0)
        ),
    ),
    Case(
        "low_rank_multivariate_normal",
        {"mean": VECTOR, "cov_factor": FACTOR, "cov_diag": t([[1.0, 0.5], [0.3, 0.3], [2.0, 0.1]])},
        _mvn(lambda p: p["cov_factor"] @ p["cov_factor"].T + np.diag(p["cov_diag"])),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(({"mean": t([0.0, 0.0]), "cov_factor": t([[1e-3], [0.0]]), "cov_diag": t([1e6, 1e-6])}, [1e6, 1.0]),),
    ),
    Case(
        "multivariate_student_t",
        {"df": t([2.5, 45.0, 1000.0]), "mean": VECTOR, "scale_tril": TRIL},
        lambda p, x: st.multivariate_t(p["mean"], p["scale_tril"] @ p["scale_tril"].T, p["df"]).logpdf(x),
        event_shape=(2,),
        outside=[float("nan"), 0.0],
        extremes=(
            ({"df": t(1e7), "mean": t([0.0, 0.0]), "scale_tril": t([[1.0, 0.0], [0.0, 1.0]])}, [1.0, 1.0]),
            ({"df": t(1e-3), "mean": t([0.0, 0.0]), "scale_tril": t([[1.0, 0.0], [0.0, 1e3]])}, [1e15, 1.0]),
        ),
    ),
    Case(
        "wishart",
        {"df": t([2.5, 4.0, 30.0]), "scale_tril": TRIL},
        lambda p, x: st.wishart(float(p["df"]), p["scale_tril"] @ p["scale_tril"].T).logpdf(np.moveaxis(x, 0, -1)),
        event_shape=(2, 2),
        outside=[[1.0, 2.0], [2.0, 1.0]],
        extremes=(
            ({"df": t(2.0), "cov": t([[1.0, 0.0], [0.0, 1.0]])}, [[1e-10, 0.0], [0.0, 1e10]]),
            ({"df": t(1e3), "precision": t([[1e6, 0.0], [0.0, 1.0]])}, [[1.0, 0.5], [0.5, 1.0]]),
        ),
    ),
    Case(
        "lkj_cholesky",
        {"dim": 3, "concentration": t([0.7, 1.0, 4.0])},
        _lkj,
        event_shape=(3, 3),
        outside=[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]],
        extremes=(
            ({"dim": 2, "concentration": t(1e-3)}, [[1.0, 0.0], [1.0, 1e-30]]),
            ({"dim": 2, "concentration": t(1e4)}, [[1.0, 0.0], [0.0, 1.0]]),
        ),
    ),
    Case(
        "mixture",
        {"logits": LOGITS, "components": COMPONENTS},
        lambda p, x: np.log((_mixture(p)[1].pdf(x[:, None]) * _mixture(p)[0]).sum(-1)),
        cdf=lambda p, x: (_mixture(p)[1].cdf(x[:, None]) * _mixture(p)[0]).sum(-1),
        reparameterized=False,
        outside=float("nan"),
        extremes=(
            ({"logits": t([0.0, 1e3, -1e3]), "components": COMPONENTS}, 1e3),
            ({"logits": t([0.0, 0.0, -torch.inf]), "components": COMPONENTS}, -1e6),
        ),
    ),
    Case(
        "flow",
        {
            "base": zsp.distributions.Normal(torch.zeros(3, dtype=torch.float64), t(1.0)),
            "transforms": [
                torch.distributions.transforms.AffineTransform(1.0, 0.5),
                torch.distributions.transforms.ExpTransform(),
            ],
        },
        lambda p, x: st.norm.logpdf(2 * (np.log(x) - 1)) + np.log(2 / x),
        outside=-1.0,
        extremes=(),
    ),
    Case(
        "empirical",
        {"batch_shape": (3,), "value_shape": (2,)},
        lambda p, x: np.zeros(len(x)),
        event_shape=(2,),
        values=torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(8, 3, 2),
        outside=[float("nan"), 0.0],
        smooth_value=False,
    ),
    Case(
        "delta",
        {"value": MEAN},
        lambda p, x: np.where(x == p["value"], 0.0, -np.inf),
        scored=False,
        outside=0.25,
        smooth_value=False,
    ),
    Case(
        "flat",
        {"shape": (3, 2), "support": torch.distributions.constraints.real_vector},
        lambda p, x: np.zeros(len(x)),
        event_shape=(2,),
        values=torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(8, 3, 2),
        outside=[float("nan"), 0.0],
        smooth_value=False,
    ),
)

SAMPLE_ONLY = frozenset({"implicit"})
"""Node methods without a density; they have tests of their own."""
