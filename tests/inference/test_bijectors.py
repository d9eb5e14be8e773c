import math

import pytest
import torch
from torch.distributions import constraints

from zsp.distributions import Normal, Uniform, mixture_node
from zsp.distributions.supports import (
    OpenUnitInterval,
    log_simplex,
    open_simplex,
    open_unit_interval,
    ordered,
    positive_ordered,
    simplex,
)
from zsp.distributions.truncated_normal import LessThanEq
from zsp.distributions.wishart import PositiveDefinite
from zsp.inference.bijectors import NoBijectorError, bijector_of

real_matrix = constraints.independent(constraints.real, 2)
LOW, HIGH = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.5, 30.0], dtype=torch.float64)


def below(matrix, offset=0):
    rows, columns = torch.tril_indices(*matrix.shape[-2:], offset)
    return matrix[..., rows, columns]


def all_of(value):
    return value


def all_but_last(value):
    return value[..., :-1]


# support, shape of a value, and the coordinates in which volume is measured there
SUPPORTS = {
    "real": (constraints.real, (3,), all_of),
    "real_vector": (constraints.real_vector, (3,), all_of),
    "real_matrix": (real_matrix, (2, 2), all_of),
    "positive": (constraints.positive, (3,), all_of),
    "nonnegative": (constraints.nonnegative, (3,), all_of),
    "greater_than": (constraints.greater_than(-2.0), (3,), all_of),
    "greater_than_eq": (constraints.greater_than_eq(LOW), (3,), all_of),
    "less_than": (constraints.less_than(1.5), (3,), all_of),
    "at_most": (LessThanEq(HIGH), (3,), all_of),
    "unit_interval": (constraints.unit_interval, (3,), all_of),
    "open_unit_interval": (open_unit_interval, (3,), all_of),
    "interval": (constraints.interval(-math.pi, math.pi), (3,), all_of),
    "interval_of_tensors": (constraints.interval(LOW, HIGH), (3,), all_of),
    "interval_of_both": (constraints.interval(-2.0, HIGH), (3,), all_of),
    "half_open_interval": (constraints.half_open_interval(LOW, HIGH), (3,), all_of),
    "simplex": (constraints.simplex, (4,), all_but_last),
    "own_simplex": (simplex, (2,), all_but_last),
    "open_simplex": (open_simplex, (5,), all_but_last),
    "log_simplex": (log_simplex, (4,), lambda y: y[..., :-1] - y[..., -1:]),
    "ordered": (ordered, (4,), all_of),
    "positive_ordered": (positive_ordered, (4,), all_of),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3), below),
    "corr_cholesky": (constraints.corr_cholesky, (4, 4), lambda y: below(y, -1)),
    "positive_definite": (constraints.positive_definite, (3, 3), below),
    "own_positive_definite": (PositiveDefinite(), (2, 2), below),
    "independent": (constraints.independent(constraints.positive, 1), (3,), all_of),
    "stack": (constraints.stack([constraints.real, constraints.positive], -1), (2,), all_of),
    "cat": (constraints.cat([constraints.real, constraints.positive], -1, [1, 2]), (3,), all_of),
}

every_support = pytest.mark.parametrize("support, shape, free", SUPPORTS.values(), ids=SUPPORTS)


def points(support, shape, leading=(), dtype=torch.float64, scale=1.5):
    size = bijector_of(support).unconstrained_shape(torch.Size(shape))
    return (scale * torch.randn(*leading, *size)).to(dtype)


@every_support
def test_log_jacobian_is_that_of_autograd(support, shape, free):
    bijector = bijector_of(support)
    for x in points(support, shape, (5,)):
        y, terms = bijector.constrain(x)
        jacobian = torch.autograd.functional.jacobian(lambda x: free(bijector.constrain(x)[0]).flatten(), x)
        expected = torch.linalg.slogdet(jacobian.reshape(-1, x.numel())).logabsdet
        found = torch.zeros(()) if terms is None else terms.sum()
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)
        assert y.shape == shape


@every_support
def test_values_lie_on_the_support_and_come_back(support, shape, free):
    bijector = bijector_of(support)
    x = points(support, shape, (50,))
    y, _ = bijector.constrain(x)
    assert y.shape == (50, *shape) and bool(support.check(y).all())
    torch.testing.assert_close(bijector.unconstrain(y), x, atol=1e-9, rtol=1e-9)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: bijector.unconstrain(bijector.constrain(x)[0]).flatten(), x[0]
    )
    torch.testing.assert_close(jacobian.reshape(x[0].numel(), -1), torch.eye(x[0].numel()), atol=1e-9, rtol=1e-9)


@every_support
def test_leading_axes_are_independent(support, shape, free):
    bijector = bijector_of(support)
    x = points(support, shape, (2, 3))
    y, terms = bijector.constrain(x)
    torch.testing.assert_close(bijector.unconstrain(y), torch.stack([bijector.unconstrain(part) for part in y]))
    for i, j in ((0, 0), (1, 2)):
        one, one_terms = bijector.constrain(x[i, j])
        torch.testing.assert_close(y[i, j], one)
        if terms is not None:
            torch.testing.assert_close(terms[i, j].sum(), one_terms.sum())


def in_float32(support):
    parts = {name: p.float() if isinstance(p, torch.Tensor) else p for name, p in vars(support).items()}
    return type(support)(*parts.values()) if any(isinstance(p, torch.Tensor) for p in parts.values()) else support


@every_support
def test_float32(support, shape, free):
    x = points(support, shape, (50,))
    expected, expected_terms = bijector_of(support).constrain(x)
    support = in_float32(support)
    y, terms = bijector_of(support).constrain(x.float())
    assert y.dtype == torch.float32 and bool(support.check(y).all())
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    if terms is not None:
        torch.testing.assert_close(terms, expected_terms.float(), atol=1e-5, rtol=1e-5)


@every_support
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_the_log_jacobian_and_its_gradient_are_finite(support, shape, free, dtype):
    support = in_float32(support) if dtype == torch.float32 else support
    for x in (points(support, shape, (3,), dtype, scale=0.0) + 30, points(support, shape, (3,), dtype, scale=0.0) - 30):
        x.requires_grad_()
        y, terms = bijector_of(support).constrain(x)
        assert bool(y.isfinite().all())
        if terms is not None and terms.requires_grad:
            (gradient,) = torch.autograd.grad(terms.sum(), x)
            assert bool(terms.isfinite().all()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("support", [constraints.unit_interval, OpenUnitInterval()])
def test_unit_interval_has_no_ends(support, dtype):
    y, _ = bijector_of(support).constrain(torch.tensor([-1e4, -200.0, 40.0, 1e4], dtype=dtype))
    assert bool(((y > 0) & (y < 1)).all())


def test_an_interval_is_never_left_by_rounding():
    low, high = torch.randn(1000), torch.rand(1000)
    support = constraints.interval(low, low + high)
    for x in (torch.full((1000,), 60.0), torch.full((1000,), -60.0), torch.linspace(-60, 60, 1000)):
        assert bool(support.check(bijector_of(support).constrain(x)[0]).all())


def test_simplex_coordinates_are_an_isometry_in_log_ratios():
    bijector = bijector_of(simplex)
    x = torch.randn(7, 5)
    log_y = bijector.constrain(x)[0].log()
    centred = log_y - log_y.mean(-1, keepdim=True)
    torch.testing.assert_close(centred.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(bijector.constrain(torch.zeros(5))[0], torch.full((6,), 1 / 6))


def test_a_bijector_tells_whether_it_depends_on_tensors():
    assert bijector_of(constraints.interval(0.0, 2.0)).is_fixed
    assert not bijector_of(constraints.interval(0.0, HIGH)).is_fixed
    assert not bijector_of(constraints.independent(constraints.greater_than(LOW), 1)).is_fixed
    inner = constraints.cat([constraints.real, constraints.interval(LOW, HIGH)], -1, [1, 2])
    assert not bijector_of(inner).is_fixed
    assert bijector_of(constraints.corr_cholesky) is bijector_of(constraints.corr_cholesky)


def test_supports_without_a_bijector_are_refused():
    with pytest.raises(NoBijectorError, match="no bijector onto the support Boolean"):
        bijector_of(constraints.boolean)
    components = Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
    dist = mixture_node.node_type.build(torch.zeros(2), components)
    with pytest.raises(NoBijectorError, match="no bijector onto the support"):
        bijector_of(dist.support)
    same = mixture_node.node_type.build(torch.zeros(2), Normal(torch.zeros(2), 1.0))
    assert bijector_of(same.support) is bijector_of(constraints.real)


def test_torch_transforms_of_own_supports_are_taken_if_they_are_one_to_one():
    class Even(constraints.Constraint):
        event_dim, is_discrete = 0, False

    class Reversed(constraints.Constraint):
        event_dim, is_discrete = 0, False

    torch.distributions.biject_to.register(Even, lambda support: torch.distributions.transforms.AbsTransform())
    torch.distributions.biject_to.register(
        Reversed, lambda support: torch.distributions.transforms.AffineTransform(0.0, -2.0)
    )
    with pytest.raises(NoBijectorError, match="is not one-to-one"):
        bijector_of(Even())
    y, terms = bijector_of(Reversed()).constrain(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(y, torch.tensor([-2.0, -4.0]))
    torch.testing.assert_close(terms, torch.full((2,), math.log(2)))
