"""Distributions of the user's own."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import constraints
from typing_extensions import Unpack

import zsp
from zsp.distributions import ReparameterizedOptions


def register():
    @zsp.register_distribution(low=constraints.positive, high=constraints.positive, hint="It lives between low and high.")
    def log_uniform(low, high, **options: Unpack[ReparameterizedOptions]):
        """Log-uniform node."""
        base = torch.distributions.Uniform(torch.log(low), torch.log(high), validate_args=False)
        exp = torch.distributions.ExpTransform()
        return torch.distributions.TransformedDistribution(base, [exp], validate_args=False)


@pytest.fixture(autouse=True)
def log_uniform():
    register()
    yield
    register()  # a notebook cell may be run twice


def test_a_registered_distribution_is_a_node_method():
    low, high = torch.tensor([0.1, 1.0]), torch.tensor([10.0, 3.0])
    bn = zsp.BayesianNet({"x": torch.tensor([2.0, 2.0])})
    bn.log_uniform("x", low, high, group_ndims=1)
    expected = sum(-math.log(2.0 * math.log(b / a)) for a, b in [(0.1, 10.0), (1.0, 3.0)])
    np.testing.assert_allclose(bn.log_joint(), expected, atol=1e-12)
    assert zsp.BayesianNet().log_uniform("x", low, high, n_samples=5).shape == (5, 2)
    assert "Log-uniform node." in zsp.BayesianNet.log_uniform.__doc__ and "n_samples" in zsp.BayesianNet.log_uniform.__doc__


def test_it_is_checked_like_the_others():
    with pytest.raises(ValueError, match=r"node 'x' \(log_uniform\): low must be positive, but it is -1"):
        zsp.BayesianNet().log_uniform("x", torch.tensor(-1.0), torch.tensor(1.0))
    with pytest.raises(TypeError, match="has no argument 'hgih'.*Did you mean 'high'"):
        zsp.BayesianNet().log_uniform("x", torch.tensor(1.0), hgih=torch.tensor(2.0))


def test_what_zsp_has_is_not_replaced():
    with pytest.raises(ValueError, match="bn.normal exists already and is zsp's own"):

        @zsp.register_distribution()
        def normal(mean, **options: Unpack[ReparameterizedOptions]):
            return torch.distributions.Normal(mean, 1.0)

    with pytest.raises(ValueError, match="bn.log_joint exists already"):

        @zsp.register_distribution()
        def log_joint(**options: Unpack[ReparameterizedOptions]):
            return torch.distributions.Normal(0.0, 1.0)


def test_the_options_must_be_declared():
    with pytest.raises(TypeError, match="the last parameter of without must say which options the node has"):

        @zsp.register_distribution()
        def without(mean):
            return torch.distributions.Normal(mean, 1.0)

    with pytest.raises(TypeError, match="the last parameter of empty"):

        @zsp.register_distribution()
        def empty():
            return torch.distributions.Normal(0.0, 1.0)
