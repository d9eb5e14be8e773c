"""Straight-through draws: discrete values with the gradient of the relaxed draw that has the same noise."""

import numpy as np
import pytest
import torch

import zsp
from tests.monte_carlo import assert_mean
from zsp.distributions import Bernoulli, BinConcrete, Concrete, OneHotCategorical

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, -0.5]], dtype=torch.float64)
PAIRS = {
    "bernoulli": (lambda logits, t: Bernoulli(logits=logits, straight_through=t), BinConcrete),
    "onehot": (lambda logits, t: OneHotCategorical(logits=logits, straight_through=t), Concrete),
}


@pytest.mark.parametrize("temperature", [0.4, torch.tensor(1.5)])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_value_is_discrete_and_the_gradient_that_of_the_relaxed_draw(kind, temperature):
    hard_of, relaxed_of = PAIRS[kind]
    weights = torch.randn(50, 2, 3)
    draws, gradients = [], []
    for build in (lambda leaf: hard_of(leaf, temperature), lambda leaf: relaxed_of(temperature, leaf)):
        logits = LOGITS.clone().requires_grad_()
        torch.manual_seed(1)
        draw = build(logits).rsample((50,))
        draws.append(draw.detach())
        gradients.append(torch.autograd.grad((weights * draw).sum(), logits)[0])
    hard, relaxed = draws
    assert hard_of(LOGITS, 1.0).support.check(hard).all() and set(hard.unique().tolist()) == {0.0, 1.0}
    chosen = relaxed > 0.5 if kind == "bernoulli" else relaxed == relaxed.max(-1, keepdim=True).values
    assert torch.equal(hard, chosen.to(hard))
    np.testing.assert_allclose(*gradients, rtol=1e-12)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_draws_have_the_distributions_probabilities(kind):
    dist = PAIRS[kind][0](LOGITS, 0.5)
    torch.manual_seed(2)
    assert_mean(dist.rsample((50_000,)), dist.mean)
    assert dist.expand((4, *dist.batch_shape)).rsample().shape == (4, 2, 3)
    vector = torch.tensor([0.5, 2.0]) if kind == "onehot" else torch.tensor([0.5, 2.0, 1.0])
    assert PAIRS[kind][0](LOGITS, vector).rsample((5,)).shape == (5, 2, 3)


def test_without_the_option_there_is_no_gradient():
    for dist in (Bernoulli(logits=LOGITS), OneHotCategorical(logits=LOGITS)):
        assert not dist.has_rsample
        with pytest.raises(NotImplementedError, match="straight_through=temperature gives it one"):
            dist.rsample()
    bn = zsp.BayesianNet()
    with pytest.raises(ValueError, match="straight_through must be positive, but it is -1"):
        bn.bernoulli("b", LOGITS, straight_through=-1.0)
    with pytest.raises(ValueError, match="node 'b' .bernoulli.: straight_through gives the draw a gradient, which a value of dtype int64 cannot"):
        bn.bernoulli("b", LOGITS, straight_through=1.0, dtype=torch.int64)
    with pytest.raises(TypeError, match="no argument 'straight_through'"):
        bn.categorical("k", LOGITS, straight_through=1.0)


def test_compiled():
    torch._dynamo.reset()

    def f(logits):
        bn = zsp.BayesianNet()
        b = bn.bernoulli("b", logits, straight_through=0.5, group_ndims=1)
        return bn.onehot_categorical("k", logits + b, straight_through=0.5)

    draws = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        logits = LOGITS.clone().requires_grad_()
        draw = function(logits)
        draws.append((draw.detach(), torch.autograd.grad((draw * torch.arange(3.0)).sum(), logits)[0]))
    for eager, compiled in zip(*draws, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-12)
