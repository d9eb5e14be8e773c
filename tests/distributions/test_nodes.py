"""Every row of the table as a node of a net: shapes, dtypes, log joint, transforms, signatures."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

import zsp
from tests.distributions.table import CASES, Case
from zsp.distributions import NodeMethods

WITH_DRAWS = [case for case in CASES if case.values is None]
WITH_DENSITY = [case for case in CASES if case.name != "implicit"]


def name_of(case: Case) -> str:
    return case.name


def model(case: Case, **options):
    @zsp.meta_bayesian_net(scope=case.name)
    def bound(parameters):
        bn = zsp.BayesianNet()
        getattr(bn, case.name)("x", **parameters, **options)
        return bn

    return bound


@pytest.mark.parametrize("n_samples", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", WITH_DRAWS, ids=name_of)
def test_shapes_and_dtypes_of_draws(case: Case, dtype: torch.dtype, n_samples: int | None):
    bn = zsp.BayesianNet()
    x = getattr(bn, case.name)("x", **case.cast(case.parameters, dtype), n_samples=n_samples)
    sample = [] if n_samples is None else [n_samples]
    assert type(x) is torch.Tensor and x.dtype == dtype
    assert list(x.shape) == [*sample, 3, *case.event_shape]
    if case in WITH_DENSITY:
        assert list(bn.log_joint().shape) == [*sample, 3]
        assert bn.log_joint().dtype == dtype


@pytest.mark.parametrize("case", WITH_DENSITY, ids=name_of)
def test_the_log_joint_of_given_values_is_the_reference(case: Case):
    values = case.draws(5)
    bn = model(case, n_samples=5)(case.parameters).observe(x=values)
    for i in range(3):
        expected = case.reference(case.element(i), values[:, i].numpy())
        np.testing.assert_allclose(bn.log_joint()[:, i], expected, atol=1e-8, rtol=1e-8)
    grouped = model(case, n_samples=5, group_ndims=1)(case.parameters).observe(x=values)
    np.testing.assert_allclose(grouped.log_joint(), bn.log_joint().sum(-1), atol=1e-10)


@pytest.mark.parametrize("case", [case for case in WITH_DRAWS if case.discrete], ids=name_of)
def test_discrete_values_have_the_parameters_dtype_unless_told(case: Case):
    assert getattr(zsp.BayesianNet(), case.name)("x", **case.parameters).dtype == torch.float64
    bn = zsp.BayesianNet({"y": case.draws(1)[0]})
    assert getattr(bn, case.name)("x", **case.parameters, dtype=torch.int64).dtype == torch.int64
    assert getattr(bn, case.name)("y", **case.parameters, dtype=torch.int32).dtype == torch.int32
    integers = zsp.BayesianNet({"x": case.draws(1)[0].to(torch.int64)})
    floats = zsp.BayesianNet({"x": case.draws(1)[0]})
    for net in (integers, floats):
        getattr(net, case.name)("x", **case.parameters)
    assert integers["x"].dtype == torch.float64
    assert torch.equal(integers.log_joint(), floats.log_joint())


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {k: v for k, v in case.parameters.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def log_joint_of(case: Case):
    """The net's log joint as a function of its tensor parameters and the value."""
    bound = model(case)({})
    rest = {k: v for k, v in case.parameters.items() if k not in tensors(case)}

    def log_joint(parameters, x):
        return bound({"parameters": {**rest, **parameters}, "x": x})

    return log_joint


@pytest.mark.parametrize("case", [case for case in WITH_DENSITY if tensors(case)], ids=name_of)
def test_the_log_joint_under_transforms(case: Case):
    log_joint = log_joint_of(case)
    parameters = {k: v.clone().requires_grad_() for k, v in tensors(case).items()}
    x = case.draws(1)[0]
    eager = log_joint(parameters, x)
    gradients = [None] * len(parameters)
    if eager.requires_grad:  # not that of a point mass
        gradients = torch.autograd.grad(eager.sum(), list(parameters.values()), allow_unused=True)
    transformed = torch.func.grad(lambda p: log_joint(p, x).sum())({k: v.detach() for k, v in parameters.items()})
    for ours, theirs in zip(gradients, transformed.values(), strict=True):
        np.testing.assert_allclose(theirs, torch.zeros_like(theirs) if ours is None else ours, atol=1e-10)
    values = case.draws(4)
    mapped = torch.func.vmap(lambda value: log_joint(tensors(case), value))(values)
    one_by_one = torch.stack([log_joint(tensors(case), value) for value in values])
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-10)
    torch._dynamo.reset()
    compiled = torch.compile(log_joint, fullgraph=True, backend="aot_eager")(parameters, x)
    np.testing.assert_allclose(compiled.detach(), eager.detach(), atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_signatures_and_docstrings(case: Case):
    method = getattr(zsp.BayesianNet, case.name)
    parameters = inspect.signature(method).parameters
    assert list(parameters)[:2] == ["self", "name"]
    assert set(case.row.arguments) <= set(parameters)
    assert {"n_samples", "group_ndims", "total_size", "mask"} <= set(parameters)
    assert ("dtype" in parameters) == ("dtype" in {*case.row.options, *case.row.arguments})
    assert method.__name__ == case.name
    text = inspect.getdoc(method)
    for argument in case.row.arguments:
        assert f"{argument}:" in text, f"{case.name} does not document {argument}"
    assert "Returns:" in text and "n_samples:" in text


def test_the_arguments_of_zhusuan():
    def own(name):
        return list(getattr(NodeMethods, name).__signature__.parameters)[2:]

    assert own("normal")[:3] == ["mean", "std", "logstd"]
    assert {"is_reparameterized", "use_path_derivative"} <= set(own("normal"))
    expected = {
        "fold_normal": ["mean", "std", "logstd"],
        "bernoulli": ["logits"],
        "categorical": ["logits"],
        "uniform": ["minval", "maxval"],
        "gamma": ["alpha", "beta"],
        "beta": ["alpha", "beta"],
        "poisson": ["rate"],
        "binomial": ["logits", "n_experiments"],
        "inverse_gamma": ["alpha", "beta"],
        "laplace": ["loc", "scale"],
        "bin_concrete": ["temperature", "logits"],
        "multivariate_normal_cholesky": ["mean", "cov_tril"],
        "matrix_variate_normal_cholesky": ["mean", "u_tril", "v_tril"],
        "multinomial": ["logits", "n_experiments"],
        "unnormalized_multinomial": ["logits", "normalize_logits"],
        "onehot_categorical": ["logits"],
        "dirichlet": ["alpha"],
        "exp_concrete": ["temperature", "logits"],
        "concrete": ["temperature", "logits"],
        "exponential": ["rate"],
        "student_t": ["df", "loc", "scale"],
        "log_normal": ["mean", "std", "logstd"],
    }
    for name, arguments in expected.items():
        assert own(name)[: len(arguments)] == arguments


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("discrete", "categorical"),
        ("bin_gumbel_softmax", "bin_concrete"),
        ("bag_of_categoricals", "unnormalized_multinomial"),
        ("onehot_discrete", "onehot_categorical"),
        ("exp_gumbel_softmax", "exp_concrete"),
        ("gumbel_softmax", "concrete"),
    ],
)
def test_aliases(alias: str, name: str):
    assert getattr(zsp.BayesianNet, alias) is getattr(zsp.BayesianNet, name)


TYPED = """
import torch, zsp
bn = zsp.BayesianNet()
x: torch.Tensor = bn.normal("x", torch.zeros(3), std=1.0, n_samples=2, group_ndims=1, use_path_derivative=True)
k: torch.Tensor = bn.categorical("k", torch.zeros(3), dtype=torch.int64)
bn.normal("a", 0.0, sdt=1.0)
bn.normal("b", 0.0, std="one")
bn.categorical("c", torch.zeros(3), is_reparameterized=True)
bn.nomal("d", 0.0)
"""


def test_type_checkers_see_the_real_signatures(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    script = tmp_path / "typed.py"
    script.write_text(TYPED)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), str(script)],
        capture_output=True,
        text=True,
    )
    lines = [line for line in run.stdout.splitlines() if "typed.py:" in line and "error" in line]
    found = [line[line.index("typed.py") :].split(": ")[0] for line in lines]
    assert found == ["typed.py:6", "typed.py:7", "typed.py:8", "typed.py:9"], run.stdout
    assert 'Unexpected keyword argument "sdt"' in run.stdout
