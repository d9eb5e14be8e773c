"""Inference: objectives and their estimators, evaluation, sampling, and the training loop.

A name's module is imported when the name is first used: a program uses few of them.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from zsp.inference.ais import AIS as AIS
    from zsp.inference.ais import AISResult as AISResult
    from zsp.inference.draws import Draws as Draws
    from zsp.inference.enumeration import EnumeratedNet as EnumeratedNet
    from zsp.inference.enumeration import enumerate_latents as enumerate_latents
    from zsp.inference.log_density import LogDensity as LogDensity
    from zsp.inference.predictions import predict as predict
    from zsp.inference.sampling.chees import ChEES as ChEES
    from zsp.inference.sampling.hmc import HMC as HMC
    from zsp.inference.sampling.mams import MAMS as MAMS
    from zsp.inference.sampling.mclmc import MCLMC as MCLMC
    from zsp.inference.sampling.mcmc import mcmc as mcmc
    from zsp.inference.sampling.nuts import NUTS as NUTS
    from zsp.inference.sampling.stochastic.control_variates import ControlVariates as ControlVariates
    from zsp.inference.sampling.stochastic.psgld import PSGLD as PSGLD
    from zsp.inference.sampling.stochastic.running import RunningPredictions as RunningPredictions
    from zsp.inference.sampling.stochastic.schedules import CyclicalSchedule as CyclicalSchedule
    from zsp.inference.sampling.stochastic.schedules import PolynomialSchedule as PolynomialSchedule
    from zsp.inference.sampling.stochastic.schedules import Stage as Stage
    from zsp.inference.sampling.stochastic.sghmc import SGHMC as SGHMC
    from zsp.inference.sampling.stochastic.sgld import SGLD as SGLD
    from zsp.inference.sampling.stochastic.sgnht import SGNHT as SGNHT
    from zsp.inference.training.fit import fit as fit
    from zsp.inference.training.history import History as History
    from zsp.inference.variational.elbo import ELBO as ELBO
    from zsp.inference.variational.elbo import elbo as elbo
    from zsp.inference.variational.gaussian import full_rank as full_rank
    from zsp.inference.variational.gaussian import mean_field as mean_field
    from zsp.inference.variational.importance import is_loglikelihood as is_loglikelihood
    from zsp.inference.variational.importance_weighted import (
        ImportanceWeightedObjective as ImportanceWeightedObjective,
    )
    from zsp.inference.variational.importance_weighted import (
        importance_weighted_objective as importance_weighted_objective,
    )
    from zsp.inference.variational.importance_weighted import iw_objective as iw_objective
    from zsp.inference.variational.importance_weighted import renyi as renyi
    from zsp.inference.variational.klpq import KLpq as KLpq
    from zsp.inference.variational.klpq import klpq as klpq
    from zsp.inference.variational.laplace import LaplaceApproximation as LaplaceApproximation
    from zsp.inference.variational.laplace import laplace as laplace
    from zsp.inference.variational.moving_mean import MovingMean as MovingMean
    from zsp.inference.variational.relaxation import Relaxation as Relaxation
    from zsp.inference.variational.wake_sleep import sleep_cost as sleep_cost

# what type checkers read above, for the interpreter; a test keeps the two in step
_NAMES = {
    "ais": ("AIS", "AISResult"),
    "draws": ("Draws",),
    "enumeration": ("EnumeratedNet", "enumerate_latents"),
    "log_density": ("LogDensity",),
    "predictions": ("predict",),
    "sampling.chees": ("ChEES",),
    "sampling.hmc": ("HMC",),
    "sampling.mams": ("MAMS",),
    "sampling.mclmc": ("MCLMC",),
    "sampling.mcmc": ("mcmc",),
    "sampling.nuts": ("NUTS",),
    "sampling.stochastic.control_variates": ("ControlVariates",),
    "sampling.stochastic.psgld": ("PSGLD",),
    "sampling.stochastic.running": ("RunningPredictions",),
    "sampling.stochastic.schedules": ("CyclicalSchedule", "PolynomialSchedule", "Stage"),
    "sampling.stochastic.sghmc": ("SGHMC",),
    "sampling.stochastic.sgld": ("SGLD",),
    "sampling.stochastic.sgnht": ("SGNHT",),
    "training.fit": ("fit",),
    "training.history": ("History",),
    "variational.elbo": ("ELBO", "elbo"),
    "variational.gaussian": ("full_rank", "mean_field"),
    "variational.importance": ("is_loglikelihood",),
    "variational.importance_weighted": (
        "ImportanceWeightedObjective",
        "importance_weighted_objective",
        "iw_objective",
        "renyi",
    ),
    "variational.klpq": ("KLpq", "klpq"),
    "variational.laplace": ("LaplaceApproximation", "laplace"),
    "variational.moving_mean": ("MovingMean",),
    "variational.relaxation": ("Relaxation",),
    "variational.wake_sleep": ("sleep_cost",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> _Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
