"""zsp: Bayesian nets, declared in plain PyTorch, and inference for them.

    model function --@meta_bayesian_net--> MetaBayesianNet --observe(x=...)--> BayesianNet --log_joint()--> Tensor
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from zsp import distributions, inference
from zsp.bayesian_net import BayesianNet
from zsp.checks import NodeError, diagnose
from zsp.execution import checked
from zsp.meta_bayesian_net import MetaBayesianNet, meta_bayesian_net
from zsp.node import StochasticTensor
from zsp.registration import register_distribution
from zsp.variables import ReusableFunction, module, parameter, reuse_variables

if _TYPE_CHECKING:
    from zsp.inference import (
        AIS,
        ELBO,
        HMC,
        MAMS,
        MCLMC,
        NUTS,
        PSGLD,
        SGHMC,
        SGLD,
        SGNHT,
        AISResult,
        ChEES,
        ControlVariates,
        CyclicalSchedule,
        Draws,
        EnumeratedNet,
        History,
        ImportanceWeightedObjective,
        KLpq,
        LaplaceApproximation,
        LogDensity,
        MovingMean,
        PolynomialSchedule,
        Relaxation,
        RunningPredictions,
        Stage,
        elbo,
        enumerate_latents,
        fit,
        full_rank,
        importance_weighted_objective,
        is_loglikelihood,
        iw_objective,
        klpq,
        laplace,
        mcmc,
        mean_field,
        predict,
        renyi,
        sleep_cost,
    )

__all__ = [
    "AIS",
    "ELBO",
    "HMC",
    "MAMS",
    "MCLMC",
    "NUTS",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "AISResult",
    "BayesianNet",
    "ChEES",
    "ControlVariates",
    "CyclicalSchedule",
    "Draws",
    "EnumeratedNet",
    "History",
    "ImportanceWeightedObjective",
    "KLpq",
    "LaplaceApproximation",
    "LogDensity",
    "MetaBayesianNet",
    "MovingMean",
    "NodeError",
    "PolynomialSchedule",
    "Relaxation",
    "ReusableFunction",
    "RunningPredictions",
    "Stage",
    "StochasticTensor",
    "checked",
    "diagnose",
    "distributions",
    "elbo",
    "enumerate_latents",
    "fit",
    "full_rank",
    "importance_weighted_objective",
    "inference",
    "is_loglikelihood",
    "iw_objective",
    "klpq",
    "laplace",
    "mcmc",
    "mean_field",
    "meta_bayesian_net",
    "module",
    "parameter",
    "predict",
    "register_distribution",
    "renyi",
    "reuse_variables",
    "sleep_cost",
]

__version__ = "0.1.0.dev0"

_ON_DEMAND = ("check", "datasets", "evaluation", "graph", "models", "plots")


def __getattr__(name: str) -> _Any:
    """What most programs do without is imported when it is first named: ``zsp.graph``, ``zsp.NUTS``."""
    if name in _ON_DEMAND:
        return _import_module(f"zsp.{name}")
    if name in inference.__all__:
        value = globals()[name] = getattr(inference, name)
        return value
    raise AttributeError(f"module 'zsp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ON_DEMAND})
