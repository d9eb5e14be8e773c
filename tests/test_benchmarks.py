"""The benchmarks compare what computes the same, and run; no time is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compiled_fit, estimators, import_time, memory, node_overhead, sgmcmc, vae_step
from benchmarks.timing import Options, Row, compare, interleave, main
from tests.inference.training.graphs import interpreted  # noqa: F401

ONCE = Options(repeats=1, threads=torch.get_num_threads())
TINY = vae_step.Size(6, (5,), 2, at_most=1.15, pyro_at_least=2.5, batch=4)


BENCHMARKS = compiled_fit, estimators, import_time, node_overhead, sgmcmc, vae_step


@pytest.mark.parametrize("benchmark_", [module.BENCHMARK for module in BENCHMARKS])
def test_both_sides_compute_the_same(benchmark_):
    benchmark_.check()


def test_check_sees_a_hand_written_loss_that_is_another(monkeypatch):
    monkeypatch.setattr(vae_step.HandWrittenVAE, "fused_loss", lambda self, x: self.loss(x) * 1.0001)
    with pytest.raises(AssertionError):
        vae_step.check()


def test_vae_step_without_peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    rows = {row.name: row for row in vae_step._rows_of(TINY, ONCE)}
    assert rows["VAE 6-5-2: zsp / hand-written"].bar == "at most 1.15"
    missing = [name for name, row in rows.items() if row.result == "not installed"]
    assert missing == ["VAE 6-5-2: Pyro", "VAE 6-5-2: NumPyro"]


@pytest.mark.usefixtures("interpreted")
def test_compiled_fit_without_peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr(compiled_fit, "EPOCH", 3)
    nets = (compiled_fit.ZspIWAE, compiled_fit.HandWrittenIWAE)
    missing, row = compiled_fit._rows_of(TINY, *nets, 2, 0.8, ONCE)
    assert missing.result == "not installed" and row.bar == "at most 0.8"
    assert row.name == "IWAE 6-5-2, K = 2: zsp.fit, compiled / hand-written"
    assert [row.result for row in compiled_fit.rows(ONCE)] == ["not run with --eager"]


def test_sgmcmc_without_peers(monkeypatch):
    monkeypatch.setattr(sgmcmc, "N_STEPS", 20)
    for peer in ("posteriors", "blackjax"):
        monkeypatch.setitem(sys.modules, peer, None)
    rows = list(sgmcmc._rows_of("SGHMC", 2, ONCE))
    assert [row.result for row in rows[:2]] == ["not installed"] * 2
    assert rows[2].name == "SGHMC, 2 chains, 20 steps: zsp, eager / hand-written" and rows[2].bar == "at most 1.1"


def test_estimators_without_pyro(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro", None)
    tiny = estimators.Size(6, 5, 2, batch=3, n_samples=4)
    for estimator in estimators.ESTIMATORS:
        assert estimators._beside_hand_written(estimator, tiny, ONCE).bar == "at most 1.05"
    rows = list(estimators._beside_pyro(estimators.ESTIMATORS[0], (tiny, tiny), ONCE))
    assert [row.result for row in rows] == ["not installed"] * 2


def test_vimco_needs_memory_linear_in_the_number_of_samples():
    assert estimators.vimco_bytes(1000) < 2.1 * estimators.vimco_bytes(500)


def test_node_overhead_of_one_family(monkeypatch):
    monkeypatch.setattr(node_overhead, "FAMILIES", {"normal(mean, std)": node_overhead.FAMILIES["normal(mean, std)"]})
    rows = list(node_overhead.rows(ONCE))
    assert len(rows) == 5 and all(row.result.endswith("s") for row in rows)


@pytest.mark.parametrize("how", ["plain", "fit"])
def test_memory_of_a_few_steps(how):
    measured = memory.measure(how, first=3, last=12)
    (mib, _), (before, after) = measured["resident_mib"], measured["live_tensors"]
    assert mib > 1 and before == after > 14


def test_compare_takes_the_ratio_of_medians():
    times = {"a": [2.0, 3.0, 10.0], "b": [1.0, 2.0, 4.0]}
    row = compare("x", times, "a", "b", at_most=1.4)
    assert (row.result, row.is_met, row.times) == ("1.5", False, "3 s / 2 s")
    assert row.spread == "pairs 2 (1.5 to 2.5), best 2"
    assert compare("x", times, "a", "b", at_least=1.5).is_met
    assert compare("x", times, "a", "b").is_met is None


def test_candidates_take_turns_in_an_order_that_changes():
    order = []
    n_rounds = 8
    times = interleave({name: lambda name=name: order.append(name) for name in "ab"}, n_rounds, block=0.0)
    assert [len(times[name]) for name in "ab"] == [n_rounds, n_rounds]
    turns = order[8:]  # four calls each to see how long one takes
    rounds = ["".join(turns[k : k + 4]) for k in range(0, len(turns), 4)]  # one untimed call and one timed, each
    assert len(rounds) == n_rounds and set(rounds) == {"aabb", "bbaa"}


def test_the_table_names_what_it_was_run_on(capsys):
    ours = vae_step.Benchmark("one", lambda: None, lambda options: iter([Row("thing", "1.01", "at most 1", False)]))
    other = vae_step.Benchmark("two", lambda: None, lambda options: iter([Row.missing("other", "NumPyro")]))
    main([ours, other], ["one", "--threads", str(torch.get_num_threads())])
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and "| thing     | 1.01   | at most 1 | NO  |" in printed
    assert "other: NumPyro" not in printed
    with pytest.raises(SystemExit):
        main([ours, other], ["three"])


def test_a_script_runs_on_its_own(tmp_path):
    script = Path(node_overhead.__file__).with_name("import_time.py")
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--threads" in done.stdout
