import copy
import json
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch

from zsp.checks import NodeError
from zsp.inference import diagnostics
from zsp.inference.draws import Draws


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def good_draws(n_chains=4, n_draws=500, **options):
    theta = normal(n_chains, n_draws, 3)
    mu = normal(n_chains, n_draws, seed=1)
    values = {"mu": mu, "theta": theta, "effect": mu[..., None] + theta}
    info = {
        "acceptance_rate": torch.full((n_chains, n_draws), 0.8, dtype=torch.float64),
        "is_divergent": torch.zeros(n_chains, n_draws, dtype=torch.bool),
        "energy": normal(n_chains, n_draws, seed=2),
        "n_leapfrogs": torch.full((n_chains, n_draws), 7),
    }
    y = normal(5, seed=3)
    log_likelihood = -0.5 * (y - mu[..., None]) ** 2
    parts = {"info": info, "deterministic": ["effect"], "log_likelihood": {"y": log_likelihood}, "observed": {"y": y}}
    return Draws(values, **{**parts, **options})


def with_warmup():
    warmup = Draws(
        {"mu": normal(4, 20, seed=5), "theta": normal(4, 20, 3, seed=6), "effect": normal(4, 20, 3, seed=7)},
        info={"is_divergent": torch.ones(4, 20, dtype=torch.bool)},
        deterministic=["effect"],
    )
    return good_draws(warmup=warmup)


# -- a mapping ---------------------------------------------------------------------------------------------------------


def test_draws_are_a_mapping_of_tensors_by_name():
    draws = with_warmup()
    assert list(draws) == ["mu", "theta", "effect"] and len(draws) == 3
    assert draws["theta"].shape == (4, 500, 3) and (draws.n_chains, draws.n_draws) == (4, 500)
    assert "theta" in draws and "y" not in draws and draws.get("y") is None
    assert dict(draws).keys() == {"mu", "theta", "effect"} and draws.deterministic == ("effect",)
    assert draws.log_likelihood["y"].shape == (4, 500, 5) and draws.observed["y"].shape == (5,)
    assert draws.warmup["mu"].shape == (4, 20) and draws.warmup.info.is_divergent.all()
    assert good_draws().warmup is None
    assert draws == draws and draws != with_warmup() and len({draws, draws}) == 1
    assert repr(draws) == ("<zsp.Draws, 4 chains x 500 draws after 20 of warm-up: 'mu' [], 'theta' [3], 'effect' [3]>")


def test_an_unknown_name_is_explained():
    with pytest.raises(NodeError, match=r"no draws of 'thta', but of 'mu', 'theta', 'effect'. Did you mean 'theta'\?"):
        good_draws()["thta"]


def test_info_has_what_the_kernel_reported_and_says_so():
    draws = good_draws()
    assert draws.info.acceptance_rate.shape == (4, 500) and draws.info["n_leapfrogs"].shape == (4, 500)
    assert list(draws.info) == ["acceptance_rate", "is_divergent", "energy", "n_leapfrogs"]
    assert "energy" in dir(draws.info) and not hasattr(draws.info, "tree_depth")
    message = (
        "the kernel reported no 'acceptance'; it reported 'acceptance_rate', 'is_divergent', 'energy', 'n_leapfrogs'. "
        "Did you mean 'acceptance_rate'?"
    )
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        _ = draws.info.acceptance
    assert copy.deepcopy(draws).info.energy.equal(draws.info.energy)
    assert pickle.loads(pickle.dumps(draws))["mu"].equal(draws["mu"])


def test_gradients_are_left_behind():
    draws = Draws({"mu": torch.randn(2, 10, requires_grad=True)}, info={})
    assert not draws["mu"].requires_grad


@pytest.mark.parametrize(
    "values, options, message",
    [
        ({}, {}, "at least one named tensor of shape [chain, draw, *shape], but got none"),
        ({"mu": torch.zeros(4)}, {}, "values must have shape [chain, draw, *shape], two axes, but 'mu' has [4]"),
        (
            {"mu": torch.zeros(4, 5), "w": torch.zeros(5, 4)},
            {},
            "values must have shape [chain, draw, *shape], [4, 5] as for 'mu', but 'w' has [5, 4]",
        ),
        (
            {"mu": torch.zeros(4, 5)},
            {"info": {"energy": torch.zeros(4, 5, 1)}},
            "info must have shape [chain, draw], [4, 5] as for 'mu', but 'energy' has [4, 5, 1]",
        ),
        (
            {"mu": torch.zeros(4, 5)},
            {"log_likelihood": {"y": torch.zeros(20, 3)}},
            "log_likelihood must have shape [chain, draw, *shape], [4, 5] as for 'mu', but 'y' has [20, 3]",
        ),
        ({"mu": torch.zeros(4, 5)}, {"deterministic": ["nu"]}, "deterministic names 'nu', but values has 'mu'"),
        (
            {"mu": torch.zeros(4, 5)},
            {"warmup": Draws({"mu": torch.zeros(3, 5)}, info={})},
            "the warm-up must be of the same nodes and chains: it has 'mu' in 3 chains, the draws 'mu' in 4",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(values, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Draws(values, **{"info": {}, **options})


def test_values_that_are_no_tensors_are_named():
    with pytest.raises(TypeError, match="'mu' must be a tensor, but got ndarray"):
        Draws({"mu": np.zeros((4, 5))}, info={})


# -- summary -----------------------------------------------------------------------------------------------------------


def test_the_summary_has_a_row_for_every_scalar():
    draws = good_draws()
    table = draws.summary()
    assert list(table) == [
        "mu", "theta[0]", "theta[1]", "theta[2]", "effect[0]", "effect[1]", "effect[2]"
    ]  # fmt: skip
    assert len(table) == 7
    assert table.columns == ("mean", "sd", "5%", "95%", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
    theta = draws["theta"][..., 2]
    assert table["theta[2]", "mean"] == pytest.approx(theta.mean().item())
    assert table["theta[2]"]["sd"] == pytest.approx(theta.std().item())
    assert table["theta[2]", "95%"] == pytest.approx(np.quantile(theta.numpy(), 0.95))
    assert table["theta[2]", "ess_tail"] == pytest.approx(diagnostics.ess_tail(theta).item())
    assert table["theta"]["r_hat"].shape == (3,)
    assert isinstance(table["mu", "mean"], float) and table["mu", "r_hat"] == pytest.approx(1.0, abs=0.01)
    assert list(draws.summary("mu")) == ["mu"] and list(draws.summary(["mu", "theta"]))[-1] == "theta[2]"
    assert draws.summary(quantiles=[0.5]).columns[2] == "50%"


def test_the_summary_is_arviz_s():
    arviz = pytest.importorskip("arviz")
    if not arviz.__version__.startswith("0."):
        pytest.skip("the table compared with is that of ArviZ 0.x")
    draws = good_draws()
    table, expected = draws.summary(), arviz.summary(draws.to_arviz(), round_to="none")
    assert list(table) == list(expected.index)
    for column in ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"):
        np.testing.assert_allclose([table[row, column] for row in table], expected[column], rtol=1e-6, atol=1e-12)


def test_elements_of_matrices_have_two_indices():
    w = normal(2, 100, 2, 3)
    table = Draws({"w": w}, info={}).summary()
    assert list(table) == ["w[0, 0]", "w[0, 1]", "w[0, 2]", "w[1, 0]", "w[1, 1]", "w[1, 2]"]
    assert table["w[1, 2]", "mean"] == table["w[1,2]", "mean"] == pytest.approx(w[..., 1, 2].mean().item())


def test_the_summary_reads_well():
    values = {"mu": normal(4, 500), "scale": 1000 + 0.01 * normal(4, 500, seed=1), "one": torch.ones(4, 500)}
    lines = repr(Draws(values, info={}, deterministic=["one"]).summary()).splitlines()
    assert lines[0] == "4 chains x 500 draws" and len(lines) == 5
    assert lines[1].split() == "mean sd 5% 95% mcse_mean mcse_sd ess_bulk ess_tail r_hat".split()
    assert len({len(line) for line in lines[1:]}) == 1, "the columns are aligned"
    scale = lines[3].split()
    assert scale[0] == "scale" and re.fullmatch(r"1000\.00\d{3}", scale[1]) and re.fullmatch(r"0\.0[01]\d{3}", scale[2])
    assert lines[4].split() == ["one", "1", "0", "1", "1", "0", "nan", "2000", "2000", "nan"]


def test_a_long_table_is_shown_in_part_and_indexed_in_whole():
    table = Draws({"a": normal(4, 20), "w": normal(4, 20, 100)}, info={}).summary()
    lines = repr(table).splitlines()
    assert len([line for line in lines if line.startswith("w[")]) == 59
    assert "... 41 rows more" in lines and lines.index("... 41 rows more") == 2 + 30
    assert len(table) == 101 and table["w[70]", "sd"] > 0


def test_the_summary_in_a_notebook():
    draws = Draws({"a<b": normal(1, 100)}, info={})
    text = draws.summary()._repr_html_()
    assert "<th>ess_bulk</th>" in text and "a&lt;b" in text and "<li>There is one chain" in text
    assert text.count("<tr>") == 2


def test_rows_and_columns_that_are_not_there():
    table = good_draws().summary()
    with pytest.raises(NodeError, match=r"no 'thta\[1\]'; it has 'mu', 'theta', 'effect'. Did you mean 'theta'\?"):
        table["thta[1]"]
    with pytest.raises(
        NodeError, match=r"'theta\[3\]' is no element of 'theta', whose shape is \[3\]: 'theta\[0\]' to"
    ):
        table["theta[3]"]
    with pytest.raises(NodeError, match=r"'theta\[a\]' is no element"):
        table["theta[a]"]
    with pytest.raises(NodeError, match="no column 'rhat'; it has 'mean', 'sd'"):
        table["mu", "rhat"]
    with pytest.raises(NodeError, match="no draws of 'nu'"):
        good_draws().summary(["nu"])


def test_quantiles():
    draws = good_draws()
    quantiles = draws.quantiles([0.1, 0.5])
    np.testing.assert_allclose(
        quantiles["theta"], np.quantile(draws["theta"].flatten(0, 1).numpy(), [0.1, 0.5], axis=0), rtol=1e-12
    )
    assert list(draws.quantiles(names="mu")) == ["mu"] and quantiles["mu"].shape == (2,)
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 95"):
        draws.quantiles([95])


# -- problems ----------------------------------------------------------------------------------------------------------


def test_good_draws_have_no_problems():
    draws = good_draws()
    assert draws.problems() == [] and draws.summary().problems == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws.warn()


def problem(draws, start):
    """The one sentence that begins so; it stands under the summary too."""
    (found,) = [text for text in draws.problems() if text.startswith(start)]
    assert f"! {found}" in repr(draws.summary())
    return found


def test_chains_that_disagree():
    theta = normal(4, 500, 3)
    theta[2, :, 1] += 1.0
    draws = Draws({"mu": normal(4, 500, seed=1), "theta": theta}, info={})
    text = problem(draws, "R-hat")
    value = diagnostics.rhat(theta)[1].item()
    assert f"is above 1.01 for 1 of 4 quantities, at worst {value:.3g} for 'theta[1]'" in text
    assert "zsp.plots.rank(draws)" in text


def test_chains_that_stand_still_at_different_places():
    draws = Draws({"mu": torch.arange(4.0)[:, None].expand(4, 100)}, info={})
    assert "at worst inf for 'mu'" in problem(draws, "R-hat")
    assert problem(draws, "All draws of 'mu' are equal to the first: the chains did not move")


def test_too_few_effective_draws():
    draws = Draws({"mu": normal(4, 90)}, info={})
    ess = min(diagnostics.ess_bulk(draws["mu"]).item(), diagnostics.ess_tail(draws["mu"]).item())
    assert f"below 400 for 1 of 1 quantities, at worst {ess:.0f} (" in problem(draws, "The effective sample size")


def test_divergences():
    is_divergent = torch.zeros(4, 500, dtype=torch.bool)
    is_divergent[1, :12] = True
    draws = good_draws(info={"is_divergent": is_divergent})
    text = problem(draws, "12 of 2000 draws")
    assert "diverging" in text and "target_acceptance_rate" in text and "(0.6%)" in text
    assert draws.problems() == [text]


def test_low_bfmi():
    energy = normal(4, 500)
    energy[2] = energy[2].cumsum(0)
    draws = good_draws(info={"energy": energy})
    lowest = diagnostics.bfmi(energy)[2].item()
    assert problem(draws, f"BFMI is below 0.3 in chain 2 (lowest {lowest:.2f})")
    energy[0] = energy[0].cumsum(0)
    assert problem(good_draws(info={"energy": energy}), "BFMI is below 0.3 in 2 of 4 chains")


def test_one_chain_few_draws_and_values_that_are_not_finite():
    assert "nothing tells whether" in problem(Draws({"mu": normal(1, 1000)}, info={}), "There is one chain")
    assert problem(Draws({"mu": normal(4, 3)}, info={}), "There are 3 draws a chain, too few")
    mu = normal(4, 500)
    mu[0, 0] = math.nan
    assert problem(Draws({"mu": mu}, info={}), "There are draws of 'mu' that are NaN or infinite")


def test_constant_elements_are_no_problem_and_constant_latents_are():
    """The zeros of a Cholesky factor never move; a latent none of whose elements moves is stuck."""
    factor = torch.eye(2).expand(4, 500, 2, 2).clone()
    factor[..., 1, 0] = normal(4, 500)
    assert Draws({"l": factor}, info={}).problems() == []
    assert Draws({"mu": normal(4, 500), "one": torch.ones(4, 500)}, info={}, deterministic=["one"]).problems() == []
    assert problem(Draws({"mu": torch.ones(4, 500)}, info={}), "All draws of 'mu' are equal")


def test_warn_says_it_at_the_caller_s_line():
    draws = Draws({"mu": normal(1, 100)}, info={})
    with pytest.warns(UserWarning, match="There is one chain.*\nThe effective sample size") as caught:
        draws.warn()
    assert caught[0].filename == __file__


def test_values_changed_in_place_are_diagnosed_anew():
    draws = good_draws()
    assert draws.problems() == []
    draws["mu"][0] += 5.0
    assert problem(draws, "R-hat")


# -- parts -------------------------------------------------------------------------------------------------------------


def test_select_and_thin():
    draws = with_warmup()
    part = draws.select(chains=[0, 3], draws=slice(100, None))
    assert part["theta"].equal(draws["theta"][[0, 3], 100:]) and part.info.energy.shape == (2, 400)
    assert part.log_likelihood["y"].shape == (2, 400, 5) and part.observed["y"].shape == (5,)
    assert part.warmup["mu"].equal(draws.warmup["mu"][[0, 3]]) and part.deterministic == ("effect",)
    thinned = draws.thin(7)
    assert thinned["mu"].equal(draws["mu"][:, ::7]) and thinned.warmup.n_draws == 20
    assert draws.select(chains=range(2), draws=[0, -1])["mu"].equal(draws["mu"][:2][:, [0, -1]])
    with pytest.raises(IndexError, match="chains has 7, but there are 4, from 0 to 3"):
        draws.select(chains=[0, 7])
    with pytest.raises(ValueError, match="step of at least 1, got 0"):
        draws.thin(0)


def test_concatenate_puts_parts_back_together():
    draws = with_warmup()
    halves = [draws.select(draws=slice(0, 200)), draws.select(draws=slice(200, None))]
    whole = Draws.concatenate(halves)
    assert all(whole[name].equal(draws[name]) for name in draws) and whole.info.energy.equal(draws.info.energy)
    assert whole.log_likelihood["y"].equal(draws.log_likelihood["y"]) and whole.warmup["mu"].equal(draws.warmup["mu"])
    chains = [draws.select(chains=[i]) for i in range(4)]
    whole = Draws.concatenate(chains, along="chain")
    assert all(whole[name].equal(draws[name]) for name in draws) and whole.warmup["mu"].equal(draws.warmup["mu"])
    with pytest.raises(ValueError, match="the parts differ in their nodes"):
        Draws.concatenate([draws, draws.select(chains=[0])])
    with pytest.raises(ValueError, match="along='draw' or 'chain', got 2 and 'time'"):
        Draws.concatenate(halves, along="time")


# -- files -------------------------------------------------------------------------------------------------------------

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
]


def assert_same(first, second):
    assert list(first) == list(second) and first.deterministic == second.deterministic
    for one, other in (
        (first, second),
        (first.info, second.info),
        (first.log_likelihood, second.log_likelihood),
        (first.observed, second.observed),
    ):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
            np.testing.assert_array_equal(one[name].double(), other[name].double())
    assert (first.warmup is None) == (second.warmup is None)
    if first.warmup is not None:
        assert_same(first.warmup, second.warmup)


@pytest.mark.parametrize("draws", [good_draws(), with_warmup()], ids=["plain", "with warm-up"])
def test_a_saved_file_gives_the_draws_back(draws, tmp_path):
    draws.save(tmp_path / "draws.npz")
    assert_same(draws, Draws.load(tmp_path / "draws.npz"))
    assert_same(draws, Draws.load(str(tmp_path / "draws.npz")))
    assert os.listdir(tmp_path) == ["draws.npz"], "nothing else is left"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_kept_exactly(dtype, tmp_path):
    value = (normal(2, 6) * 3).to(dtype)
    if dtype.is_floating_point:
        value[0, :4] = torch.tensor([math.nan, math.inf, -0.0, torch.finfo(dtype).smallest_normal]).to(dtype)
    Draws({"../a/b c ü": value.mT.contiguous().mT}, info={}).save(tmp_path / "any name")
    back = Draws.load(tmp_path / "any name")["../a/b c ü"]
    assert back.dtype == dtype
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    assert back.contiguous().view(bits).equal(value.contiguous().view(bits))


def test_the_file_needs_no_pickle(tmp_path):
    good_draws().save(tmp_path / "draws.npz")
    with np.load(tmp_path / "draws.npz", allow_pickle=False) as arrays:
        header = json.loads(str(arrays["header"]))
        assert header["format"] == "zsp.Draws" and all(arrays[name].dtype != object for name in arrays)
    with zipfile.ZipFile(tmp_path / "draws.npz") as file:
        assert not any("pickle" in name or name.endswith(".pkl") for name in file.namelist())


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    old = good_draws()
    old.save(tmp_path / "draws.npz")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        with_warmup().save(tmp_path / "draws.npz")
    assert_same(old, Draws.load(tmp_path / "draws.npz"))
    assert os.listdir(tmp_path) == ["draws.npz"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="file.npz' is no file of zsp.Draws .*: it is no npz archive"):
        Draws.load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="is no file of zsp.Draws"):
        Draws.load(path)
    np.savez(path, header=np.array({"format": "zsp.Draws"}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is no file of zsp.Draws"):
        Draws.load(path)
    np.savez(path, header=np.array(json.dumps({"format": "zsp.Draws", "version": 99})))
    with pytest.raises(ValueError, match="its header says 'zsp.Draws', version 99"):
        Draws.load(path)
    good_draws().save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="or is damaged"):
        Draws.load(path)
    with pytest.raises(FileNotFoundError):
        Draws.load(tmp_path / "nothing.npz")


# -- ArviZ -------------------------------------------------------------------------------------------------------------


def test_to_arviz_names_groups_axes_and_labels():
    arviz = pytest.importorskip("arviz")
    draws = with_warmup()
    data = draws.to_arviz(
        coords={"school": ["a", "b", "c"], "datum": range(5)}, dims={"theta": ["school"], "y": ["datum"]}
    )
    if arviz.__version__.startswith("0."):
        assert isinstance(data, arviz.InferenceData)
        groups = set(data.groups())
    else:
        groups = set(data.children)
    assert groups == {
        "posterior", "sample_stats", "log_likelihood", "observed_data", "warmup_posterior", "warmup_sample_stats"
    }  # fmt: skip
    assert data["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert data["posterior"]["theta"].sel(school="b").shape == (4, 500)
    np.testing.assert_array_equal(data["posterior"]["effect"].values, draws["effect"])
    np.testing.assert_array_equal(data["sample_stats"]["diverging"].values, draws.info.is_divergent)
    assert set(data["sample_stats"].data_vars) == {"acceptance_rate", "diverging", "energy", "n_steps"}
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "datum")
    assert data["observed_data"]["y"].dims == ("datum",)
    np.testing.assert_array_equal(data["warmup_posterior"]["mu"].values, draws.warmup["mu"])
    assert data["warmup_sample_stats"]["diverging"].shape == (4, 20)


def test_to_arviz_without_anything_but_values():
    pytest.importorskip("arviz")
    data = Draws({"mu": normal(2, 10).bfloat16()}, info={}).to_arviz()
    assert data["posterior"]["mu"].dtype == np.float32
    assert "sample_stats" not in data and "log_likelihood" not in data


def test_to_arviz_refuses_names_that_are_not_there():
    pytest.importorskip("arviz")
    draws = good_draws()
    with pytest.raises(ValueError, match=r"dims names 'thta', but there are 'mu', 'theta'.*Did you mean 'theta'\?"):
        draws.to_arviz(dims={"thta": ["school"]})
    with pytest.raises(ValueError, match=r"dims gives 'mu' the axes 'school', but its shape is \[\]"):
        draws.to_arviz(dims={"mu": ["school"]})
    with pytest.raises(ValueError, match="axis 'school' of 'theta' has 3 elements, but coords gives it 2"):
        draws.to_arviz(dims={"theta": ["school"]}, coords={"school": ["a", "b"]})
    with pytest.raises(ValueError, match=r"coords names the axis 'scool', .*'school'. Did you mean 'school'\?"):
        draws.to_arviz(dims={"theta": ["school"]}, coords={"scool": ["a", "b", "c"]})


def test_loo_and_waic():
    """With n draws of one posterior, elpd is near the sum over data of log E[p(y_i)], up to the effective parameters."""
    arviz = pytest.importorskip("arviz")
    y = normal(40, seed=3)
    mu = y.mean() + normal(4, 500) / 40**0.5  # the posterior for a flat prior
    log_likelihood = -0.5 * (y - mu[..., None]) ** 2 - 0.5 * math.log(2 * math.pi)
    draws = Draws({"mu": mu}, info={}, log_likelihood={"y": log_likelihood}, observed={"y": y})
    others = (y.sum() - y) / 39
    exact = torch.distributions.Normal(others, (1 + 1 / 39) ** 0.5).log_prob(y).sum().item()
    loo = draws.loo()
    assert float(getattr(loo, "elpd_loo", None) or loo.elpd) == pytest.approx(exact, abs=0.1)
    if arviz.__version__.startswith("0."):
        assert draws.waic("y").elpd_waic == pytest.approx(exact, abs=0.1)
    else:
        with pytest.raises(NotImplementedError, match=r"has no waic any more. draws.loo\(\)"):
            draws.waic()


def test_loo_needs_one_log_likelihood():
    pytest.importorskip("arviz")
    with pytest.raises(ValueError, match=r"loo\(\) needs the pointwise log likelihood, but these draws hold none"):
        good_draws(log_likelihood={}).loo()
    two = good_draws(log_likelihood={"y": normal(4, 500, 5), "z": normal(4, 500, 5)})
    with pytest.raises(ValueError, match="judges one observed node, but there are 'y', 'z': give one as name="):
        two.loo()
    with pytest.raises(ValueError, match="there is no observed node 'x', but 'y', 'z'"):
        two.loo("x")


def test_without_arviz_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'to_arviz needs arviz, .* pip install "zsp\[arviz\]"'):
        good_draws().to_arviz()
    with pytest.raises(ImportError, match=r'draws.loo\(\) needs arviz, .* pip install "zsp\[arviz\]"'):
        good_draws().loo()


def test_draws_need_neither_arviz_nor_scipy():
    code = (
        "import sys, torch; from zsp.inference.draws import Draws\n"
        "print(Draws({'x': torch.randn(4, 50)}, info={}).summary())\n"
        "assert not {'arviz', 'scipy', 'pandas', 'matplotlib'} & {m.partition('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
