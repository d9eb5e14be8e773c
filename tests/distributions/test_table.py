"""Every property on every row of the table of distributions.

Statistical tests have a false-alarm rate of 1e-7 each (about 200 comparisons: 2e-5 a run), and fixed seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.distributions.table import CASES, SAMPLE_ONLY, Case, t
from tests.monte_carlo import assert_chi_square, assert_ks, assert_mean
from zsp.distributions import NodeMethods, NodeType

N_DRAWS = 20_000


def rows(*kinds: str, without: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Parametrise over the cases that are of all given :data:`KINDS`."""
    chosen = [case for case in CASES if case.name not in without and all(KINDS[kind](case) for kind in kinds)]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


KINDS = {
    "drawn": lambda c: c.values is None,
    "cdf": lambda c: c.cdf is not None,
    "cells": lambda c: c.cells is not None,
    "discrete": lambda c: c.discrete,
    "continuous": lambda c: not c.discrete,
    "reparameterized": lambda c: c.reparameterized and c.values is None and not c.discrete and c.name != "delta",
    "scored": lambda c: c.scored and c.values is None,
    "parametric": lambda c: any(isinstance(v, Tensor) and v.is_floating_point() for v in c.parameters.values()),
    "dense": lambda c: c.name != "delta",
}


def leaves(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The differentiable parameters, as leaves."""
    return {
        name: value.detach().clone().requires_grad_()
        for name, value in parameters.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def log_prob(case: Case, parameters: dict[str, Tensor], value: Tensor) -> Tensor:
    """Log density with some of the case's parameters replaced."""
    return case.row.build(**{**case.parameters, **parameters}).log_prob(value)


# -- the table itself -------------------------------------------------------------------------------------------------


def test_every_node_method_has_a_case():
    methods = {method.__name__ for name, method in vars(NodeMethods).items() if not name.startswith("_")}
    assert methods == {case.name for case in CASES} | SAMPLE_ONLY
    assert all(isinstance(case.row, NodeType) and case.row.name == case.name for case in CASES)


@rows()
def test_constraints_name_parameters_and_accept_the_case(case: Case):
    row = case.row
    assert set(row.constraints) <= set(row.arguments)
    for name, value in case.parameters.items():
        if name in row.constraints:
            assert row.constraints[name].check(torch.as_tensor(value)).all(), name


@rows()
def test_every_public_class_is_documented(case: Case):
    assert len(type(case.build()).__doc__ or "") > 40
    assert "Args:" in case.row.build.__doc__


# -- (b) the density --------------------------------------------------------------------------------------------------


@rows()
def test_log_density_is_the_reference(case: Case):
    values = case.draws(50)
    got = case.build().log_prob(values)
    assert got.dtype == torch.float64
    for i in range(3):
        expected = case.reference(case.element(i), values[:, i].numpy())
        np.testing.assert_allclose(got[:, i].numpy(), expected, rtol=1e-8, atol=1e-8)


@rows()
def test_log_density_in_float32(case: Case):
    """Rounding of the value (1e-7, times the slope) and of sums of terms that are 1e4 at the largest: 2e-3."""
    values = case.draws(50, dtype=torch.float32)
    if case.name == "delta":
        values = values.float()
    got = case.build(torch.float32).log_prob(values)
    assert got.dtype == torch.float32
    for i in range(3):
        if case.name == "delta":
            assert (got == 0).all()
            continue
        expected = case.reference(case.element(i), values[:, i].double().numpy())
        # exp_concrete and concrete: a float32 vector is off the simplex by 1e-7, relative to components of 1e-6
        np.testing.assert_allclose(got[:, i].numpy(), expected, rtol=1e-4, atol=2e-3)


@rows("discrete")
def test_integers_and_floats_have_one_log_density(case: Case):
    values = case.draws(10)
    assert torch.equal(case.build().log_prob(values), case.build().log_prob(values.long()))


def test_concrete_densities_integrate_to_one():
    """Three categories, on a grid of log ratios; the base measures of the two differ by the sum of the logarithms."""
    logits, temperature = t([0.3, -0.5, 0.0]), 1.3
    axis = torch.linspace(-14, 14, 281, dtype=torch.float64)
    u = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    y = torch.nn.functional.pad(u, (0, 1)).log_softmax(-1)
    cell = (axis[1] - axis[0]) ** 2
    by_name = {case.name: case for case in CASES}
    exp_concrete = by_name["exp_concrete"].row.build(temperature, logits)
    concrete = by_name["concrete"].row.build(temperature, logits)
    assert abs((exp_concrete.log_prob(y).exp() * cell).sum() - 1) < 1e-6
    assert abs(((concrete.log_prob(y.exp()) + y.sum(-1)).exp() * cell).sum() - 1) < 1e-6


# -- (c) draws follow the density -------------------------------------------------------------------------------------


@rows("drawn", "cdf")
def test_draws_follow_the_distribution_function(case: Case):
    draws = case.draws(N_DRAWS, seed=1)
    for i in range(3):
        element = case.element(i)
        assert_ks(draws[:, i].numpy(), lambda x, element=element: case.cdf(element, x))


@rows("cells")
def test_draws_follow_the_probabilities(case: Case):
    draws = case.draws(N_DRAWS, seed=1)
    for i in range(3):
        cells = case.cells(case.element(i))
        probabilities = np.exp(case.reference(case.element(i), cells))
        drawn = draws[:, i].numpy().reshape(N_DRAWS, 1, -1)
        counts = (drawn == cells.reshape(1, len(cells), -1)).all(-1).sum(0)
        assert counts.sum() == N_DRAWS
        assert_chi_square(counts, probabilities)


@rows(
    "scored", "parametric", without=("student_t", "half_cauchy")
)  # heavy tails; their distribution function is tested
def test_score_has_mean_zero_under_the_draws(case: Case):
    """E grad log p(x) = 0 for each parameter: draws and density must agree, in any dimension."""
    draws = case.draws(N_DRAWS, seed=2)
    expanded = {
        name: value.expand(N_DRAWS, *(value.shape if value.dim() else (3,))).clone().requires_grad_()
        for name, value in leaves(case.parameters).items()
    }
    if case.name == "multivariate_normal":  # its mean only: the covariance has no free elements to differentiate by
        expanded = {"mean": expanded["mean"]}
    scores = torch.autograd.grad(log_prob(case, expanded, draws).sum(), list(expanded.values()))
    for score in scores:
        assert_mean(score, 0.0)


def test_small_concentrations_are_drawn_soundly():
    """torch draws one half for a quarter of all Beta(0.001, 0.001) variables; 0.02 percent lie in [0.4, 0.6]."""
    by_name = {case.name: case for case in CASES}
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        small = torch.tensor(1e-3, dtype=dtype)
        beta = by_name["beta"].row.build(small, small).sample((N_DRAWS,))
        dirichlet = by_name["dirichlet"].row.build(small.expand(2)).sample((N_DRAWS,))[:, 0]
        for draws in (beta, dirichlet):
            assert ((draws > 0.4) & (draws < 0.6)).double().mean() < 2e-3
            assert_mean((draws > 0.5).double(), 0.5)


# -- (d) gradients through the draws ----------------------------------------------------------------------------------


def path_derivatives(case: Case, element: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws z, dz/dtheta by autograd, and -dF/dtheta / p(z) by finite differences of the distribution function."""
    given = case.element(element)
    theta = torch.full((4000,), float(given[name]), dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    z = case.row.build(**{**{k: t(v) for k, v in given.items()}, name: theta}).rsample()
    (slope,) = torch.autograd.grad(z.sum(), theta)
    step = 1e-6 * max(1.0, abs(float(given[name])))
    value = z.detach().numpy()
    upper, lower = ({**given, name: np.asarray(float(given[name]) + sign * step)} for sign in (1, -1))
    implicit = -(case.cdf(upper, value) - case.cdf(lower, value)) / (2 * step)
    return value, slope.numpy(), implicit / np.exp(case.reference(given, value))


@rows("reparameterized", "cdf")
def test_draws_have_the_implicit_derivative(case: Case):
    """Where a draw is monotone in one noise, dz/dtheta = -dF/dtheta / p(z); otherwise its mean given z is that."""
    for name in case.parameters:
        for element in (0, 2):
            value, slope, implicit = path_derivatives(case, element, name)
            if case.exact_path:
                # where neither p(z) is tiny nor F is within rounding of 1, so that differences of F have digits
                keep = np.exp(case.reference(case.element(element), value)) > 1e-3
                keep &= case.cdf(case.element(element), value) < 1 - 1e-6
                assert keep.mean() > 0.3
                np.testing.assert_allclose(slope[keep], implicit[keep], rtol=2e-3, atol=1e-5)
            else:
                weight = 1 / (1 + value**2)  # bounded, so that the variance is finite
                assert_mean(t((slope - implicit) * weight), 0.0, bias=1e-5)


@rows("reparameterized", "parametric", "scored")
def test_path_gradients_agree_with_the_score(case: Case):
    """E grad h(z(theta)) = E (h(z) - c) grad log p(z), for a bounded h of all components."""
    torch.manual_seed(4)
    expanded = {
        name: value.expand(N_DRAWS, *(value.shape if value.dim() else (3,))).clone().requires_grad_()
        for name, value in leaves(case.parameters).items()
    }
    if case.name == "multivariate_normal":
        expanded = {"mean": expanded["mean"]}
    z = case.row.build(**{**case.parameters, **expanded}).rsample()
    weights = torch.linspace(0.5, 1.5, max(1, int(np.prod(case.event_shape))), dtype=torch.float64)
    h = (z.reshape(N_DRAWS, 3, -1) * weights).sum(-1).tanh()
    paths = torch.autograd.grad(h.sum(), list(expanded.values()), retain_graph=True)
    centred = (h - h.mean(0)).detach()
    scores = torch.autograd.grad((centred * log_prob(case, expanded, z.detach())).sum(), list(expanded.values()))
    for name, path, score in zip(expanded, paths, scores, strict=True):
        if name.endswith("tril"):
            path, score = path.tril(), score.tril()
        assert path.abs().max() > 0, name
        assert_mean(path - score, 0.0)


# -- (e) shapes and dtypes --------------------------------------------------------------------------------------------


@rows("drawn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_shapes_and_dtypes(case: Case, dtype: torch.dtype):
    dist = case.build(dtype)
    assert dist.batch_shape == (3,) and dist.event_shape == case.event_shape
    for sample_shape in ((), (1,), (4,), (2, 3)):
        draw = dist.sample(sample_shape)
        assert draw.shape == (*sample_shape, 3, *case.event_shape)
        assert draw.dtype == dtype and not draw.requires_grad
        assert dist.log_prob(draw).shape == (*sample_shape, 3)
        assert dist.log_prob(draw).dtype == dtype
    assert dist.has_rsample == (not case.discrete and case.reparameterized)


@rows()
def test_expand_broadcasts_and_keeps_the_density(case: Case):
    dist = case.build()
    values = case.draws(4)
    wide = dist.expand((4, 3))
    assert wide.batch_shape == (4, 3) and wide.event_shape == case.event_shape
    torch.testing.assert_close(wide.log_prob(values), dist.log_prob(values), rtol=1e-12, atol=1e-12)
    assert wide.log_prob(values[0]).shape == (4, 3)
    if case.values is None:
        assert wide.sample((2,)).shape == (2, 4, 3, *case.event_shape)


@rows("parametric")
def test_parameters_broadcast_with_one_another_and_the_value(case: Case):
    """One parameter with a further leading axis, the others without."""
    values = case.draws(2)
    for name, value in leaves(case.parameters).items():
        wide = case.build(**{name: value.detach().expand(5, *(value.shape if value.dim() else (3,)))})
        assert wide.batch_shape == (5, 3)
        assert wide.log_prob(values[0]).shape == (5, 3)
        torch.testing.assert_close(
            wide.log_prob(values[0])[4], case.build().log_prob(values[0]), rtol=1e-12, atol=1e-12
        )
        assert wide.log_prob(values[:, None].expand(2, 5, 3, *case.event_shape)).shape == (2, 5, 3)
        if case.values is None:
            assert wide.sample((2,)).shape == (2, 5, 3, *case.event_shape)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if not case.event_shape
        and case.name != "binomial"
        and all(isinstance(value, np.ndarray) and not value.ndim for value in case.element(0).values())
    ],
    ids=lambda c: c.name,
)
def test_numbers_are_parameters(case: Case):
    """A number follows the other parameters' dtype; with numbers only, the default dtype."""
    numbers = {name: value.item() for name, value in case.element(1).items()}
    dtype = torch.get_default_dtype()
    alone = case.row.build(**numbers)
    draw = alone.sample((4,))
    assert draw.dtype == dtype and draw.shape == (4,)
    as_tensors = case.row.build(**{name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()})
    torch.testing.assert_close(alone.log_prob(draw), as_tensors.log_prob(draw))
    assert alone.expand((2,)).log_prob(draw[0]).shape == (2,)
    if len(numbers) > 1:
        for name in numbers:
            other = torch.float32 if dtype == torch.float64 else torch.float64
            mixed = case.row.build(**{**numbers, name: torch.full((5,), numbers[name], dtype=other)})
            assert mixed.sample().shape == (5,) and mixed.sample().dtype == other
            assert mixed.log_prob(draw[0].to(other)).dtype == other


# -- (f) transforms ---------------------------------------------------------------------------------------------------


def eager_gradients(case: Case, values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    parameters = leaves(case.parameters)
    result = log_prob(case, parameters, values)
    if not result.requires_grad:
        return result, {name: torch.zeros_like(value) for name, value in parameters.items()}
    found = torch.autograd.grad(result.sum(), list(parameters.values()), allow_unused=True)
    return result.detach(), {
        name: torch.zeros_like(parameters[name]) if g is None else g for name, g in zip(parameters, found, strict=True)
    }


@rows("parametric", "dense")
def test_torch_func_grad(case: Case):
    values = case.draws(4)
    parameters = {name: value.detach() for name, value in leaves(case.parameters).items()}
    _, expected = eager_gradients(case, values)
    got = torch.func.grad(lambda p: log_prob(case, p, values).sum())(parameters)
    for name in parameters:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-10)
    if not case.discrete and case.smooth_value:
        slope = torch.func.grad(lambda v: log_prob(case, parameters, v).sum())(values)
        leaf = values.clone().requires_grad_()
        torch.testing.assert_close(slope, torch.autograd.grad(log_prob(case, parameters, leaf).sum(), leaf)[0])


@rows()
def test_torch_func_vmap(case: Case):
    values = case.draws(4)
    expected = case.build().log_prob(values)
    over_values = torch.func.vmap(lambda v: case.build().log_prob(v))(values)
    torch.testing.assert_close(over_values, expected, rtol=1e-12, atol=1e-12)
    parameters = {name: value.detach() for name, value in case.parameters.items() if isinstance(value, Tensor)}
    if parameters:
        dims = {name: 0 if value.dim() else None for name, value in parameters.items()}
        build = case.row.build
        fixed = {name: value for name, value in case.parameters.items() if name not in parameters}
        over_parameters = torch.func.vmap(lambda p, v: build(**fixed, **p).log_prob(v), in_dims=(dims, 1), out_dims=1)(
            parameters, values
        )
        torch.testing.assert_close(over_parameters, expected, rtol=1e-12, atol=1e-12)
        if KINDS["parametric"](case) and KINDS["dense"](case):
            floating = {name: value for name, value in parameters.items() if value.is_floating_point()}
            other = {name: value for name, value in parameters.items() if name not in floating}
            per_example = torch.func.vmap(
                torch.func.grad(lambda p, q, v: build(**fixed, **p, **q).log_prob(v).sum()),
                in_dims=({name: dims[name] for name in floating}, {name: dims[name] for name in other}, 1),
            )(floating, other, values)
            _, expected_gradient = eager_gradients(case, values)
            for name, gradient in per_example.items():
                total = gradient if dims[name] == 0 else gradient.sum(0)
                torch.testing.assert_close(total, expected_gradient[name], rtol=1e-9, atol=1e-9)


def check_compiled(case: Case, backend: str) -> None:
    torch.compiler.reset()
    parameters, values = leaves(case.parameters), case.draws(4)
    fixed = {name: value for name, value in case.parameters.items() if name not in parameters}
    build = case.row.build

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(parameters, values):
        return build(**fixed, **parameters).log_prob(values)

    expected, expected_gradient = eager_gradients(case, values)
    got = compiled(parameters, values)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-10, atol=1e-10)
    if parameters and got.requires_grad:
        found = torch.autograd.grad(got.sum(), list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            torch.testing.assert_close(gradient, expected_gradient[name], rtol=1e-9, atol=1e-9)
    torch.compiler.reset()


@rows()
def test_torch_compile(case: Case):
    check_compiled(case, "aot_eager")


@rows("drawn")
def test_draws_compile(case: Case):
    """Drawing is traceable in full; compiled draws need not be the eager ones."""
    torch.compiler.reset()
    compiled = torch.compile(lambda p: case.row.build(**p).sample((2,)), fullgraph=True, backend="aot_eager")
    assert compiled(case.parameters).shape == (2, 3, *case.event_shape)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_inductor(name: str):
    check_compiled(next(case for case in CASES if case.name == name), "inductor")


# -- (g) supports -----------------------------------------------------------------------------------------------------


@rows()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_support(case: Case, dtype: torch.dtype):
    dist = case.build(dtype)
    draws = case.draws(2000, dtype=dtype)
    assert dist.support.event_dim == len(case.event_shape)
    assert dist.support.is_discrete == (case.discrete or case.name == "delta")
    inside = dist.support.check(draws)
    assert inside.shape == draws.shape[: draws.dim() - len(case.event_shape)] and inside.all()
    outside = torch.tensor(case.outside, dtype=dtype).expand(3, *case.event_shape)
    assert not dist.support.check(outside).any()


@rows("drawn", "continuous", "dense")
def test_support_of_a_continuous_variable_has_a_transform(case: Case):
    """MCMC needs it; the inverse undoes it."""
    dist = case.build()
    transform = torch.distributions.biject_to(dist.support)
    draws = case.draws(5, seed=5)
    unconstrained = transform.inv(draws)
    torch.testing.assert_close(transform(unconstrained), draws, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dirichlet", "concrete", "exp_concrete", "beta", "bin_concrete", "gamma", "uniform"])
def test_density_of_the_unconstrained_value_integrates_to_one(name: str):
    """With the log Jacobian of the support's transform, as MCMC uses it; two components where there are several."""
    case = next(case for case in CASES if case.name == name)
    element = {key: t(value) for key, value in case.element(1).items()}
    dist = case.row.build(**{key: value[:2] if value.dim() else value for key, value in element.items()})
    transform = torch.distributions.biject_to(dist.support)
    u = torch.linspace(-40, 40, 40_001, dtype=torch.float64).unsqueeze(-1)
    u = u if case.event_shape else u.squeeze(-1)
    value = transform(u)
    log_density = dist.log_prob(value) + transform.log_abs_det_jacobian(u, value)
    log_density = log_density[log_density.isfinite()]  # in the far tails 1 - x is zero
    assert abs(log_density.exp().sum() * (80 / 40_000) - 1) < 1e-5


def test_a_closed_simplex_has_zeros_and_an_open_one_has_not():
    by_name = {case.name: case for case in CASES}
    corner = t([0.0, 0.0, 1.0])
    assert by_name["dirichlet"].build().support.check(corner)
    assert not by_name["concrete"].build().support.check(corner)


def test_simplex_accepts_a_large_softmax_in_float32():
    """torch's own constraint wants the sum within 1e-6."""
    torch.manual_seed(0)
    simplex = next(case for case in CASES if case.name == "dirichlet").build().support
    vectors = (torch.randn(100, 20_000, dtype=torch.float32) * 3).softmax(-1)
    assert simplex.check(vectors).all()
    assert not simplex.check(vectors * 1.01).any()
    assert not simplex.check(vectors - 1e-3).any()


# -- (h) extremes -----------------------------------------------------------------------------------------------------

EXTREMES = [
    pytest.param(case, *extreme, id=f"{case.name}-{i}") for case in CASES for i, extreme in enumerate(case.extremes)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("case", "parameters", "value"), EXTREMES)
def test_extremes_are_finite(case: Case, parameters: dict[str, Any], value: Any, dtype: torch.dtype):
    given = Case.cast(parameters, dtype)
    tensors = leaves(given)
    x = torch.tensor(value, dtype=dtype, requires_grad=not case.discrete)
    result = case.row.build(**{**given, **tensors}).log_prob(x)
    assert result.isfinite(), result
    wanted = [*tensors.values(), *([] if case.discrete else [x])]
    for gradient in torch.autograd.grad(result, wanted, allow_unused=True):
        assert gradient is None or gradient.isfinite().all(), gradient


def test_an_impossible_category_has_no_probability():
    by_name = {case.name: case for case in CASES}
    logits = t([0.0, -torch.inf])
    for name, value in (("categorical", t(1.0)), ("onehot_categorical", t([0.0, 1.0]))):
        assert by_name[name].row.build(logits).log_prob(value) == -torch.inf
    assert by_name["unnormalized_multinomial"].row.build(logits).log_prob(t([1.0, 2.0])) == -torch.inf


@pytest.mark.parametrize("name", ["fold_normal", "half_normal", "uniform", "half_cauchy", "exponential"])
def test_density_is_zero_outside_the_support(name: str):
    case = next(case for case in CASES if case.name == name)
    assert (case.build().log_prob(torch.full((3,), -7.0, dtype=torch.float64)) == -torch.inf).all()


def test_extreme_draws_are_inside_the_support():
    """In float32 sigmoids and softmaxes arrive at 0 and 1, where densities are not finite."""
    by_name = {case.name: case for case in CASES}
    small = torch.tensor(0.01)
    cases = {
        "concrete": {"temperature": small, "logits": torch.tensor([0.0, 10.0, -10.0])},
        "bin_concrete": {"temperature": small, "logits": torch.tensor(5.0)},
        "gamma": {"alpha": small, "beta": torch.tensor(1.0)},
        "inverse_gamma": {"alpha": small, "beta": torch.tensor(1.0)},
        "beta": {"alpha": small, "beta": small},
        "dirichlet": {"alpha": small.expand(3)},
    }
    for name, parameters in cases.items():
        dist = by_name[name].row.build(**Case.cast(parameters, torch.float32))
        draws = dist.sample((5000,))
        assert draws.isfinite().all() and dist.support.check(draws).all(), name
        assert dist.log_prob(draws).isfinite().all(), name


# -- (i) derivatives of the density -----------------------------------------------------------------------------------


@rows("parametric", "dense")
def test_gradcheck(case: Case):
    parameters, values = leaves(case.parameters), case.draws(2, seed=6)
    names = list(parameters)
    if case.name == "multivariate_normal":  # differences must keep the matrix symmetric
        names = ["mean"]
    differentiable = not case.discrete and case.smooth_value

    def function(*tensors):
        given = dict(zip(names, tensors, strict=False))
        return log_prob(case, given, tensors[-1] if differentiable else values)

    inputs = [parameters[name] for name in names]
    if differentiable:
        inputs.append(values.clone().requires_grad_())
    assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-4, rtol=1e-4)


# -- one-sided distributions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empirical", "flat", "unnormalized_multinomial"])
def test_density_only_nodes_say_what_to_do(name: str):
    dist = next(case for case in CASES if case.name == name).build()
    assert dist.has_sample is False
    with pytest.raises(NotImplementedError, match=r"(?i)observe"):
        dist.sample()


def test_multinomial_without_a_total_has_a_density_only():
    multinomial = next(case for case in CASES if case.name == "multinomial")
    dist = multinomial.build(n_experiments=None)
    values = multinomial.draws(5)
    assert torch.equal(dist.log_prob(values), multinomial.build().log_prob(values))
    assert dist.has_sample is False
    with pytest.raises(NotImplementedError, match="n_experiments"):
        dist.sample()


def test_multinomial_totals_may_differ():
    multinomial = next(case for case in CASES if case.name == "multinomial")
    totals = torch.tensor([0, 3, 50])
    dist = multinomial.build(n_experiments=totals)
    draws = dist.sample((100,))
    assert torch.equal(draws.sum(-1), totals.double().expand(100, 3)) and dist.support.check(draws).all()
    assert not dist.support.check(draws + 1).any()


def test_implicit_gives_its_samples_and_has_no_density():
    row = NodeMethods.implicit.__name__
    from zsp.distributions import Implicit, implicit_node

    assert row == "implicit"
    samples = torch.randn(4, 3, requires_grad=True)
    dist = implicit_node(samples, 3)
    assert isinstance(dist, Implicit) and dist.has_log_prob is False
    assert dist.batch_shape == (4,) and dist.event_shape == (3,)
    assert torch.equal(dist.rsample(), samples) and dist.rsample().requires_grad
    assert not dist.sample().requires_grad and dist.sample((1,)).shape == (1, 4, 3)
    with pytest.raises(ValueError, match="holds one given draw"):
        dist.sample((2,))
    with pytest.raises(NotImplementedError, match="no density"):
        dist.log_prob(samples)
    with pytest.raises(ValueError, match="value_shape"):
        implicit_node(samples, 4)


@pytest.mark.parametrize("name", ["normal", "fold_normal", "log_normal"])
def test_a_scale_is_given_once(name: str):
    row = next(case for case in CASES if case.name == name).row
    with pytest.raises(ValueError, match="both were given"):
        row.build(0.0, std=1.0, logstd=0.0)
    with pytest.raises(ValueError, match="neither was given"):
        row.build(0.0)
    both = [row.build(0.0, std=2.0), row.build(0.0, logstd=float(np.log(2.0)))]
    values = torch.tensor([0.3, 1.2])
    torch.testing.assert_close(both[0].log_prob(values), both[1].log_prob(values))
    for dist in both:
        torch.testing.assert_close(dist.expand((2,)).log_prob(values), both[0].log_prob(values))


def test_a_matrix_is_given_once_and_all_forms_agree():
    row = next(case for case in CASES if case.name == "multivariate_normal").row
    mean, cov = t([0.5, -1.0]), t([[2.0, 0.4], [0.4, 0.5]])
    with pytest.raises(ValueError, match="cov and precision were given"):
        row.build(mean, cov=cov, precision=cov)
    with pytest.raises(ValueError, match="none was given"):
        row.build(mean)
    values = torch.randn(4, 3, 2, dtype=torch.float64)
    forms = [row.build(mean, cov=cov), row.build(mean, precision=cov.inverse())]
    forms.append(row.build(mean, scale_tril=torch.linalg.cholesky(cov)))
    for form in forms:
        torch.testing.assert_close(form.log_prob(values), forms[0].log_prob(values))
        torch.testing.assert_close(form.covariance_matrix, cov)


# -- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@rows()
def test_cuda_equals_cpu(case: Case):
    values = case.draws(8)
    on_device = case.build(device="cuda") if case.parameters else case.build()
    torch.testing.assert_close(on_device.log_prob(values.cuda()).cpu(), case.build().log_prob(values))
    assert on_device.support.check(values.cuda()).all()
    if case.values is None:
        draws = on_device.sample((4,))
        assert draws.is_cuda and draws.shape == (4, 3, *case.event_shape)
        assert on_device.support.check(draws).all()
