"""Inference: objectives and their estimators, evaluation, and the training loop."""

from zsp.inference.elbo import ELBO, elbo
from zsp.inference.fit import History, fit
from zsp.inference.importance import is_loglikelihood

__all__ = ["ELBO", "History", "elbo", "fit", "is_loglikelihood"]
