"""Compiled loops against loops in Python: what is carried, what is kept, what they are given, errors."""

from typing import NamedTuple

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves, tree_map

from zsp.inference.compilation import compiled_loop, loop_code, lowering
from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.compilation.errors import CompileError

N_STEPS = 9


class State(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor
    third: torch.Tensor
    same: torch.Tensor
    fourth: torch.Tensor
    count: torch.Tensor


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


MATRIX, OFFSET = tensors((5, 5), 5)


def step(state, inputs, fixed):
    """Every way to carry: exchanged, returned twice, changed, kept; outputs that are arguments, views, results."""
    new = torch.tanh(state.first @ MATRIX + inputs["shift"] + OFFSET) * fixed
    (gradient,) = torch.autograd.grad((new.requires_grad_() ** 3).sum(), new)
    after = State(state.second, state.first, new, state.same, new, state.count + inputs["flag"])
    return after, {
        "new": new, "again": new, "part": gradient[:, 1:3].T, "argument": state.fourth, "input": inputs["shift"],
        "sum": (state.same * new[:2, :2]).sum(), "is_odd": state.count % 2 == 1,
    }  # fmt: skip


def example():
    """State, inputs of all steps, and what is fixed."""
    first, second, third, same, fourth, shift, fixed = tensors((3, 5), (3, 5), (3, 5), (2, 2), (3, 5), (N_STEPS, 5), ())
    flags = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1])
    count = torch.zeros(2, dtype=torch.int64)
    return State(first, second, third, same, fourth, count), {"shift": shift, "flag": flags}, fixed


def in_python(state, inputs, fixed):
    rows = []
    for i in range(len(inputs["flag"])):
        state, row = step(state, tree_map(lambda leaf, i=i: leaf[i], inputs), fixed)
        rows.append(row)
    return state, tree_map(lambda *parts: torch.stack(parts), *rows)


def test_a_loop_may_end_early_after_at_least_one_step():
    def count(state, step, fixed):
        return state + step, state

    def is_below(state, fixed):
        return state < fixed

    zero, one = torch.zeros(()), torch.ones(())
    loop = CompiledLoop(count, N_STEPS, zero, one, zero, goes_on=is_below)
    for limit, n_steps in ((4, 4), (0, 1), (100, N_STEPS)):
        state, before = loop(zero, torch.ones(N_STEPS), torch.tensor(float(limit)))
        assert state == n_steps and before.tolist() == list(range(n_steps))


def test_a_loop_does_what_its_steps_do_and_changes_nothing_that_it_is_given():
    state, inputs, fixed = example()
    loop = CompiledLoop(step, N_STEPS, state, tree_map(lambda leaf: leaf[0], inputs), fixed)
    expected = in_python(state, inputs, fixed)
    given = tree_map(torch.clone, (state, inputs, fixed))
    found = loop(state, inputs, fixed)
    kept = tree_map(torch.clone, found)
    again = loop(*found[:1], inputs, fixed)
    for actual, wanted in ((kept, expected), (again, in_python(found[0], inputs, fixed)), (found, kept)):
        assert isinstance(actual[0], State)
        assert list(actual[1]) == list(expected[1])
        for a, b in zip(tree_leaves(actual), tree_leaves(wanted), strict=True):
            assert (a.dtype, a.requires_grad) == (b.dtype, False)
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(tree_leaves((state, inputs, fixed)), tree_leaves(given), strict=True):
        assert torch.equal(a, b)


def test_a_call_makes_as_many_steps_as_it_is_given_inputs():
    state, inputs, fixed = example()
    loop = CompiledLoop(step, N_STEPS, state, tree_map(lambda leaf: leaf[0], inputs), fixed)
    for first, last in ((0, 1), (2, 6)):
        part = tree_map(lambda leaf, first=first, last=last: leaf[first:last], inputs)
        for a, b in zip(tree_leaves(loop(state, part, fixed)), tree_leaves(in_python(state, part, fixed)), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)
    none = tree_map(lambda leaf: leaf[:0], inputs)
    with pytest.raises(ValueError, match=r"^a call has at least 1 step and at most 9, got 0\.$"):
        loop(state, none, fixed)


def test_arguments_need_not_be_contiguous():
    state, inputs, fixed = example()
    loop = CompiledLoop(step, N_STEPS, state, tree_map(lambda leaf: leaf[0], inputs), fixed)
    expected = tree_leaves(loop(state, inputs, fixed))
    transposed = state._replace(first=state.first.T.contiguous().T)
    wide = {**inputs, "shift": torch.cat([inputs["shift"], inputs["shift"]], 1)[:, :5]}
    assert not transposed.first.is_contiguous()
    assert not wide["shift"].is_contiguous()
    for a, b in zip(tree_leaves(loop(transposed, wide, fixed)), expected, strict=True):
        assert torch.equal(a, b)


def test_loops_of_other_steps_are_other_code(tmp_path, monkeypatch):
    """Compiled code is found again by what is in a loop."""
    before = counters["inductor"]["fxgraph_cache_hit"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, y = tensors(4, (3, 4))
    for function in (torch.add, torch.mul, torch.add):
        loop = CompiledLoop(lambda x, y, _, f=function: (f(x, y), f(x, y).sum()), 3, x, y[0], ())
        end, sums = loop(x, y, ())
        expected = x
        for row, total in zip(y, sums, strict=True):
            expected = function(expected, row)
            torch.testing.assert_close(total, expected.sum())
        torch.testing.assert_close(end, expected)
    assert counters["inductor"]["fxgraph_cache_hit"] == before + 1


@pytest.mark.parametrize("n_kept", [64, 62])
@pytest.mark.parametrize("columns", [8, 16])
def test_a_result_that_could_be_written_over_an_argument_of_another_shape(columns, n_kept):
    """The library writes a product with 8 columns; what follows needs it no more, and is nearly as large."""
    state, matrix, inputs = tensors((64 // columns, columns), (columns, columns), (N_STEPS,))

    def step(state, shift, fixed):
        made = ((state @ matrix / 8).flatten()[:n_kept] + shift).sin()
        return state / 2 + made.cumsum(0).mean() / 8 * fixed, made

    fixed = torch.ones((), dtype=torch.float64)
    loop = CompiledLoop(step, N_STEPS, state, inputs[0], fixed)
    found, made = loop(state, inputs, fixed)
    for shift, row in zip(inputs, made, strict=True):
        state, expected = step(state, shift, fixed)
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("least", "on_one_thread"), [(4 * 16 * 16 + 4 * 16 + 1, True), (4 * 16 * 16 + 4 * 16, False)])
def test_a_small_step_runs_on_one_thread(least, on_one_thread, monkeypatch):
    """Of a product [4, 16] x [16, 16] and a sum with its result."""
    asked = []
    lower = compiled_loop.lower

    def asking(*arguments, **options):
        asked.append(options)
        return lower(*arguments, **options)

    monkeypatch.setattr(compiled_loop, "lower", asking)
    monkeypatch.setattr(compiled_loop, "FOR_SEVERAL_THREADS", least)
    state, matrix, shift = tensors((4, 16), (16, 16), (N_STEPS, 16))
    matrix /= 8
    loop = CompiledLoop(lambda state, shift, _: (state @ matrix + shift, ()), N_STEPS, state, shift[0], ())
    (found, _), expected = loop(state, shift, ()), state
    for row in shift:
        expected = expected @ matrix + row
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert asked == [{"on_one_thread": on_one_thread, "given_away": []}]


def test_a_step_may_have_operations_without_results():
    def step(state, shift, _):
        torch.ops.aten._assert_async.msg((state > -1e9).all(), "far away")
        return state + shift, state.sum()

    (state,) = tensors((3,))
    end, _ = CompiledLoop(step, 2, state, state, ())(state, torch.stack([state, state]), ())
    torch.testing.assert_close(end, 3 * state)


def test_code_that_another_version_wrote_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (state,) = tensors((3,))

    def misses():
        before = counters["inductor"]["fxgraph_cache_miss"]
        CompiledLoop(lambda state, step, fixed: (state + step * fixed, state.sum()), 4, state, state[0], state[0])
        return counters["inductor"]["fxgraph_cache_miss"] - before

    assert misses() > 0
    assert misses() == 0
    monkeypatch.setattr(loop_code, "VERSION", "another")
    assert misses() > 0


def training(state, rows, fixed):
    """Changes what is the same, in place, and what it closes over, with random numbers."""
    weight, momentum, data = fixed
    inside = weight.detach().requires_grad_()
    error = (torch.tanh(data[rows] @ inside) + torch.randn(4, 5, dtype=torch.float64)).square().mean()
    (gradient,) = torch.autograd.grad(error, inside)
    with torch.no_grad():
        momentum.mul_(0.9).add_(gradient)
        weight.sub_(0.1 * momentum)
        TOTAL.add_(error.detach())
    return state + weight.sum(), error.detach()


TOTAL = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("is_called_from", ["C++", "Python, as on a GPU"])
def test_what_is_the_same_may_be_changed_in_place(is_called_from, monkeypatch):
    if is_called_from != "C++":
        monkeypatch.setattr(lowering, "_are_on_cpu", lambda examples: False)
    weight, momentum, data, state = tensors((5, 5), (5, 5), (20, 5), ())
    rows = torch.arange(24).reshape(6, 4) % 20
    mine = [weight.clone(), momentum.clone(), data]
    TOTAL.zero_()
    loop = CompiledLoop(training, 8, state, rows[0], (weight, momentum, data))
    assert torch.equal(weight, mine[0]) and TOTAL == 0
    torch.manual_seed(0)
    end, errors = loop(state, rows, (weight, momentum, data))
    total, now = TOTAL.clone(), torch.get_rng_state()
    TOTAL.zero_()
    torch.manual_seed(0)
    expected = []
    for row in rows:
        state, error = training(state, row, mine)
        expected.append(error)
    torch.testing.assert_close([weight, momentum, total, end, errors], [*mine[:2], TOTAL, state, torch.stack(expected)])
    assert torch.equal(torch.get_rng_state(), now)


def crossing(state, shift, fixed):
    """Every way to change: from each other's old values, from a transposed one, from what is read once more later."""
    one, other, square, read, kept = fixed
    before, after = one.clone(), other * 2 + shift
    one.copy_(after)
    other.copy_(before)
    square.copy_(square.T @ square.T + square.T)
    read.copy_(read.cumsum(0) / 2)
    kept.copy_(torch.ones_like(kept))
    return state + one, read @ square


@pytest.mark.parametrize("is_called_from", ["C++", "Python, as on a GPU"])
def test_what_changes_in_place_may_be_computed_from_each_other(is_called_from, monkeypatch):
    if is_called_from != "C++":
        monkeypatch.setattr(lowering, "_are_on_cpu", lambda examples: False)
    state, *fixed = tensors(3, 3, 3, (3, 3), 3, (2, 2))
    fixed[2] /= 8
    shifts = torch.arange(5.0, dtype=torch.float64)
    loop = CompiledLoop(crossing, len(shifts), state, shifts[0], fixed)
    for n in (1, 2, 5):
        mine, expected, rows = [leaf.clone() for leaf in fixed], state, []
        places = [leaf.data_ptr() for leaf in fixed]
        end, found = loop(state, shifts[:n], fixed)
        for shift in shifts[:n]:
            expected, row = crossing(expected, shift, mine)
            rows.append(row)
        torch.testing.assert_close([end, found, *fixed], [expected, torch.stack(rows), *mine], rtol=1e-12, atol=1e-12)
        assert [leaf.data_ptr() for leaf in fixed] == places


def test_between_steps_nothing_is_copied(tmp_path, monkeypatch):
    written = []
    exchange = loop_code._Wrapper.exchange

    def noting(wrapper, code, *rest):
        before = code.getvalue()
        exchange(wrapper, code, *rest)
        written.append(code.getvalue().removeprefix(before))

    monkeypatch.setattr(loop_code._Wrapper, "exchange", noting)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    weight, momentum, data, state = tensors((5, 5), (5, 5), (20, 5), ())
    CompiledLoop(training, 8, state, torch.arange(4), (weight, momentum, data))
    after_condition, after_step = written
    assert after_condition == ""
    assert after_step.count("swap") == after_step.count("\n") <= 1


def test_an_argument_that_shares_memory_with_one_that_changes_is_explained():
    (whole,) = tensors(6)

    def changing(state, inputs, fixed):
        fixed[0].add_(1)
        return state + fixed[1].sum(), ()

    state, inputs = torch.zeros((), dtype=torch.float64), torch.zeros(1)
    CompiledLoop(changing, 3, state, inputs, (whole[:3], whole[3:]))
    with pytest.raises(CompileError, match=r"shape \[3\] in place, which .* of shape \[4\]: make one of them a copy$"):
        CompiledLoop(changing, 3, state, inputs, (whole[:3], whole[2:]))


@pytest.mark.parametrize(("where", "is_closure_fixed"), [("state", False), ("inputs", False), ("closure", True)])
def test_a_step_that_changes_what_was_to_stay_is_explained(where, is_closure_fixed):
    count = torch.zeros(())

    def counting(state, inputs, fixed):
        {"state": state, "inputs": inputs, "closure": count}[where].add_(1)
        return state.clone(), inputs.clone()

    with pytest.raises(CompileError, match=r"^the function changes tensors in place, .*: return them$"):
        CompiledLoop(counting, 3, torch.zeros(2), torch.zeros(2), (), is_closure_fixed=is_closure_fixed)
    assert count == 0
