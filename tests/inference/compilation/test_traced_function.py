"""Traced functions that run operation by operation: which ones, and what they keep."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zsp.inference.compilation.traced_function import TracedFunction


def test_a_traced_function_runs_operation_by_operation():
    weight = nn.Parameter(torch.randn(3, 3))

    def function(x):
        value = (x @ weight).sin().sum()
        return value, *torch.autograd.grad(value, weight)

    traced = TracedFunction(function, torch.randn(3))
    with torch.no_grad():
        weight.mul_(2.0)
    x = torch.randn(3)
    for found, expected in zip(traced(x), function(x), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)


def test_an_operation_is_not_repeated():
    def gradient(x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad((x.sin() * x.sin()).sum(), x)

    x = torch.randn(5, dtype=torch.float64)
    function = TracedFunction(gradient, x)
    torch.testing.assert_close(function(x)[0], gradient(x)[0])
    with Operations() as seen:
        function(x)
    assert seen.names.count("aten::sin") == 1


class Operations(TorchDispatchMode):
    """The names of the operations that are run, and the most of their results that were there at a time."""

    def __init__(self):
        super().__init__()
        self.names, self.most, self._results = [], 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        result = func(*args, **(kwargs or {}))
        self._results += [weakref.ref(made) for made in tree_leaves(result)]
        self.most = max(self.most, sum(made() is not None for made in self._results))
        return result


def test_a_traced_function_runs_operations_of_all_kinds():
    """Several results, lists of tensors, numbers that are not finite, dtypes, what the function holds."""
    held = torch.tensor([0.5, -0.5, 1.5])

    def function(x):
        largest, place = torch.cat([x, -x, held * x]).reshape(3, 3).max(dim=1)
        first, *_ = torch.where(largest > 0, largest, -float("inf")).to(torch.float32).split([1, 2])
        return first, place, held, torch.linalg.cholesky(torch.outer(x, x) + torch.eye(3))

    x = torch.randn(3)
    for found, expected in zip(TracedFunction(function, x)(x), function(x), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_traced_function_keeps_nothing_that_it_needs_no_more():
    def chain(x):
        for _ in range(30):
            x = torch.sin(x * 2)
        return (x,)

    x = torch.zeros(3)
    traced = TracedFunction(chain, x)
    with Operations() as seen:
        traced(x)
    assert len(seen.names) == 60 and seen.most <= 2
