"""Every estimator inside torch.compile(fullgraph=True), make_fx and torch.func.grad, against eager."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import zsp
from tests.inference.variational.two_latents import PARAMETERS, copies, objective

PATHWISE, MIXED = ("pathwise", "pathwise"), ("pathwise", "bernoulli")
SCORED, DISCRETE = ("score", "bernoulli"), ("bernoulli", "bernoulli")
MOVING_MEAN = zsp.MovingMean().double()
MOVING_MEAN([torch.zeros(()), torch.zeros(())])  # it has room for two nodes

# name -> types, objective, its options, estimator
CASES = {
    "path derivative": (PATHWISE, zsp.elbo, {"path": True}, lambda bound: bound.sgvb()),
    "closed forms and weights": (
        PATHWISE, zsp.elbo, {"analytic_kl": True, "kl_weight": 0.5, "free_bits": 0.1}, lambda bound: bound.sgvb(),
    ),
    "leave-one-out": (SCORED, zsp.elbo, {}, lambda bound: bound.reinforce()),
    "mixed": (MIXED, zsp.elbo, {}, lambda bound: bound.reinforce()),
    "moving mean": (DISCRETE, zsp.elbo, {}, lambda bound: bound.reinforce(moving_mean=MOVING_MEAN)),
    "neural baseline": (DISCRETE, zsp.elbo, {}, lambda bound: sum(bound.reinforce(baseline=torch.ones(4)))),
    "iwae": (PATHWISE, zsp.iw_objective, {}, lambda bound: bound.sgvb()),
    "dreg": (PATHWISE, zsp.iw_objective, {}, lambda bound: bound.dreg()),
    "vimco": (SCORED, zsp.iw_objective, {}, lambda bound: bound.vimco()),
    "renyi": (PATHWISE, zsp.renyi, {"alpha": 0.5}, lambda bound: bound.dreg()),
    "wake-phi": (PATHWISE, zsp.klpq, {}, lambda bound: bound.importance()),
    "wake-sleep": (PATHWISE, zsp.iw_objective, {}, lambda bound: bound.wake_theta() + bound.klpq().importance()),
}  # fmt: skip


def loss_of(case):
    types, function, options, estimate = CASES[case]

    def loss(*values):
        parameters = dict(zip(PARAMETERS, values, strict=True))
        return estimate(objective(function, types, parameters, 3, **options)).sum()

    return loss


def start():
    """The same random numbers, and the same moving mean, for every way to run."""
    torch.manual_seed(0)
    with torch.no_grad():
        MOVING_MEAN.mean.fill_(-1.0)
        MOVING_MEAN.weight.fill_(0.5)


def value_and_gradients(loss, values):
    value = loss(*values)
    found = torch.autograd.grad(value, values, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True))]


@pytest.fixture
def values():
    return [value.detach().requires_grad_() for value in copies(4).values()]


def eagerly(case, values):
    """Twice: both nets are checked and their dependencies followed the first time."""
    for _ in range(2):
        start()
        found = value_and_gradients(loss_of(case), values)
    return found


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_compiled_in_one_graph(case, values):
    expected = eagerly(case, values)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of(case), fullgraph=True, backend="aot_eager")
    start()
    assert_same(value_and_gradients(compiled, values), expected)


@pytest.mark.parametrize("case", CASES)
def test_traced_with_its_gradient(case, values):
    expected = eagerly(case, values)

    def step(*given):
        return value_and_gradients(loss_of(case), given)

    start()
    graph = make_fx(step)(*values)
    start()
    assert_same(graph(*values), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "moving mean"])  # functorch changes no buffer
def test_under_a_functional_gradient(case, values):
    expected = eagerly(case, values)
    start()
    argnums = tuple(range(len(values)))
    assert_same(torch.func.grad(loss_of(case), argnums)(*(v.detach() for v in values)), expected[1:])


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case):
    torch.set_default_dtype(torch.float32)
    values = [value.detach().requires_grad_() for value in copies(4).values()]
    start()
    found = value_and_gradients(loss_of(case), values)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in found)
