"""Checks that teach: what was expected, what was got, how to mend it.

Nets call these at the first execution for given shapes and inside :func:`zsp.checked`; in a training loop they cost
nothing. Functions named after a mistake build its error; functions named ``check_...`` look for mistakes and raise.
"""

from zsp.checks.declarations import cannot_build, check_declaration, check_deterministic, check_fit, check_parameters
from zsp.checks.diagnosis import diagnose
from zsp.checks.names import (
    NodeError,
    duplicate_name,
    forgotten_latents,
    input_and_node,
    no_stochastic_nodes,
    unknown_argument,
    unknown_node,
    unknown_observations,
)
from zsp.checks.shapes import check_one_batch_shape
from zsp.checks.values import as_tensor, check_given, check_log_prob, check_support, feasible_value

__all__ = [
    "NodeError",
    "as_tensor",
    "cannot_build",
    "check_declaration",
    "check_deterministic",
    "check_fit",
    "check_given",
    "check_log_prob",
    "check_one_batch_shape",
    "check_parameters",
    "check_support",
    "diagnose",
    "duplicate_name",
    "feasible_value",
    "forgotten_latents",
    "input_and_node",
    "no_stochastic_nodes",
    "unknown_argument",
    "unknown_node",
    "unknown_observations",
]
