import pytest
import torch

from zsp.inference.chains import TOTAL, Way, choose_way, in_own_thread, over_chains


def terms(q):
    return {TOTAL: -q.square().sum(-1), "node": q.sum(-1)}


POSITIONS = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3)


def choose(single=terms, broadcast=terms):
    return choose_way(POSITIONS, single=single, broadcast=broadcast)


def test_broadcasting_is_chosen_where_it_is_right():
    assert choose() is Way.BROADCAST
    assert choose(broadcast=lambda q: {TOTAL: terms(q)[TOTAL]}) is Way.BROADCAST


@pytest.mark.parametrize(
    "broadcast",
    [
        lambda q: {TOTAL: terms(q)[TOTAL] + 1e-6},
        lambda q: {TOTAL: terms(q)[TOTAL].flip(0)},
        lambda q: {TOTAL: terms(q)[TOTAL].mean().expand(5)},
        lambda q: {TOTAL: terms(q)[TOTAL].unsqueeze(-1)},
        lambda q: {TOTAL: terms(q)[TOTAL].sum()},
        lambda q: {**terms(q), "node": q.sum(-1) + q[0, 0] * (q.sum() - q.sum().detach() + 1e-5)},
        lambda q: {TOTAL: terms(q)[TOTAL] + q[0].sum() - q[0].sum().detach()},  # right values, a wrong gradient
        lambda q: {TOTAL: terms(q)[TOTAL] / torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])},  # one value is infinite
        lambda q: {TOTAL: terms(q)[TOTAL] + torch.ones(2, 3)},  # an error
    ],
)
def test_vmap_is_chosen_where_broadcasting_is_wrong(broadcast):
    assert choose(broadcast=broadcast) is Way.MAP


def test_values_that_are_not_finite_must_be_so_in_both():
    def log_of_sum(q):
        return {TOTAL: q.sum(-1).log()}  # NaN in the first chains

    assert bool(log_of_sum(POSITIONS)[TOTAL].isnan().any())
    assert choose(log_of_sum, log_of_sum) is Way.BROADCAST
    assert choose(log_of_sum, lambda q: {TOTAL: q.sum(-1).log().nan_to_num()}) is Way.MAP


def test_a_density_without_gradient():
    assert choose(lambda q: {TOTAL: q.sum(-1).detach()}, lambda q: {TOTAL: q.sum(-1).detach()}) is Way.BROADCAST


def test_vmap_is_not_trusted_blindly():
    def other_under_vmap(q):
        is_mapped = torch._C._functorch.is_batchedtensor(q)
        return {TOTAL: terms(q)[TOTAL] + (1.0 if is_mapped else 0.0)}

    assert choose(other_under_vmap, lambda q: {TOTAL: terms(q)[TOTAL]}) is Way.BROADCAST
    with pytest.raises(ValueError, match="cannot be run over 5 chains: .* torch.func.vmap gives other values"):
        choose(other_under_vmap, lambda q: {TOTAL: terms(q)[TOTAL] + 1.0})


def test_over_chains_equals_a_loop():
    def function(values):
        return {"sum": values["a"].sum() + values["b"], "constant": torch.ones(2)}

    values = {"a": torch.randn(2, 3, 4), "b": torch.randn(2, 3)}
    for chunk_size in (None, 4):
        found = over_chains(function, values, 2, chunk_size)
        torch.testing.assert_close(found["sum"], values["a"].sum(-1) + values["b"])
        assert torch.equal(found["constant"], torch.ones(2, 3, 2))
    one = {name: value[0, 0] for name, value in values.items()}
    torch.testing.assert_close(over_chains(function, one, 0)["sum"], function(one)["sum"])
    looped = over_chains(lambda v: {"sign": torch.tensor(1.0 if v["b"].item() > 0 else -1.0)}, values, 2)
    torch.testing.assert_close(looped["sign"], values["b"].sign())
    with pytest.raises(RuntimeError, match="must match"):
        over_chains(lambda v: v["a"] + torch.ones(3), values, 2)


def test_a_thread_of_its_own_is_outside_of_transforms():
    seen = []

    def function(x):
        seen.append(in_own_thread(lambda: torch._C._are_functorch_transforms_active()))
        return x

    torch.func.vmap(function)(torch.ones(2))
    assert seen == [False] and in_own_thread(lambda: 3) == 3
    with pytest.raises(KeyError, match="gone"):
        in_own_thread(lambda: {}["gone"])
