import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from zsp import plots
from zsp.inference import diagnostics
from zsp.inference.draws import Draws
from zsp.inference.uniformity import chain_law, rank_law


@pytest.fixture(autouse=True)
def no_pyplot():
    """No picture goes through pyplot: it opens no window and keeps no figure."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        assert pyplot.get_fignums() == []


def shown(figure):
    (axes,) = figure.axes
    (image,) = axes.get_images()
    return image, image.get_array().filled(np.nan)


def test_image_grid_shows_the_images_row_by_row(tmp_path):
    images = torch.rand(5, 6)
    figure = plots.image_grid(images, (2, 3), n_columns=3, title="Five")
    image, array = shown(figure)
    assert array.shape == (2 * 2 + 1, 3 * 3 + 2)
    seen = np.zeros(array.shape, bool)
    for i, picture in enumerate(images.reshape(5, 2, 3).numpy()):
        row, column = divmod(i, 3)
        place = (slice(3 * row, 3 * row + 2), slice(4 * column, 4 * column + 3))
        np.testing.assert_allclose(array[place], picture, atol=1e-7)
        seen[place] = True
    assert np.isnan(array[~seen]).all(), "between the pictures, and where there is none"
    assert image.get_clim() == (0.0, 1.0) and figure.axes[0].get_title() == "Five"
    figure.savefig(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_image_grid_is_about_square_and_takes_both_shapes():
    flat = torch.rand(10, 12)
    _, array = shown(plots.image_grid(flat, (3, 4)))
    assert array.shape == (3 * 3 + 2, 4 * 4 + 3)  # 10 pictures in 3 rows of 4
    _, same = shown(plots.image_grid(flat.reshape(10, 3, 4), (3, 4), limits=(-1.0, 2.0)))
    np.testing.assert_array_equal(array, same)


def test_images_of_another_shape():
    with pytest.raises(ValueError, match=r"images must have shape \[n, 6\] or \[n, 2, 3\] .*but got \[5, 7\]"):
        plots.image_grid(torch.rand(5, 7), (2, 3))
    with pytest.raises(ValueError, match=r"n at least 1, but got \[0, 6\]"):
        plots.image_grid(torch.rand(0, 6), (2, 3))
    with pytest.raises(ValueError, match="n_columns must be at least 1, but got 0"):
        plots.image_grid(torch.rand(5, 6), (2, 3), n_columns=0)
    with pytest.raises(ValueError, match=r"reconstructions must have shape .*\[5, 7\]"):
        plots.reconstructions(torch.rand(5, 6), torch.rand(5, 7), (2, 3))
    with pytest.raises(ValueError, match="5 originals and 4 reconstructions"):
        plots.reconstructions(torch.rand(5, 6), torch.rand(4, 6), (2, 3))


def test_reconstructions_stand_under_their_originals():
    originals, decoded = torch.rand(4, 6), torch.rand(4, 6, requires_grad=True)
    figure = plots.reconstructions(originals, decoded, (2, 3))
    _, array = shown(figure)
    assert array.shape == (2 * 2 + 1, 4 * 3 + 3)
    for i in range(4):
        columns = slice(4 * i, 4 * i + 3)
        np.testing.assert_allclose(array[:2, columns], originals[i].reshape(2, 3).numpy(), atol=1e-7)
        np.testing.assert_allclose(array[3:, columns], decoded[i].detach().reshape(2, 3).numpy(), atol=1e-7)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "reconstruction"]
    assert axes.get_yticks().tolist() == [0.5, 3.5]  # the middles of rows 0, 1 and 3, 4
    assert axes.get_title() == "Images and their reconstructions"


def test_latent_space_shows_each_label_at_its_points():
    points, labels = torch.randn(60, 2), torch.arange(60) % 3 + 4
    figure = plots.latent_space(points, labels)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latent dimension 1", "latent dimension 2")
    assert [c.get_label() for c in axes.collections] == ["4", "5", "6"]
    for label, cloud, text in zip((4, 5, 6), axes.collections, axes.texts, strict=True):
        mine = points[labels == label].numpy()
        np.testing.assert_array_equal(cloud.get_offsets(), mine)
        assert text.get_text() == str(label)
        assert (np.abs(np.array(text.xy) - np.median(mine, axis=0)) < 0.5).all()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["4", "5", "6"]


def test_ten_labels_have_ten_colours():
    (axes,) = plots.latent_space(torch.randn(50, 2), torch.arange(50) % 10).axes
    assert len({to_hex(cloud.get_facecolor()[0]) for cloud in axes.collections}) == 10


def test_latent_space_without_labels():
    points = torch.randn(7, 2, dtype=torch.float32)
    (axes,) = plots.latent_space(points).axes
    (cloud,) = axes.collections
    np.testing.assert_array_equal(cloud.get_offsets(), points.numpy())
    assert axes.get_legend() is None


def test_more_dimensions_are_projected_and_the_axes_say_so():
    """Points made from known, orthogonal components: standard deviations 3, 2 and 1 times, so shares 9, 4, 1 of 14."""
    n = 40
    scores, _ = torch.linalg.qr(torch.randn(n, 3) - torch.randn(n, 3).mean(0))
    scores = scores - scores.mean(0)
    scores, _ = torch.linalg.qr(scores)  # orthonormal columns in the span of centred ones: centred too
    directions, _ = torch.linalg.qr(torch.randn(5, 3))
    directions = directions.T * directions.T.gather(1, directions.T.abs().argmax(1, keepdim=True)).sign()
    points = (scores * torch.tensor([3.0, 2.0, 1.0])) @ directions + 10.0
    (axes,) = plots.latent_space(points, torch.zeros(n)).axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), scores[:, :2] * torch.tensor([3.0, 2.0]), atol=1e-10)
    assert axes.get_xlabel() == "principal component 1 (64% of the variance)"
    assert axes.get_ylabel() == "principal component 2 (29% of the variance)"


def test_latent_space_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"two or more dimensions, shape \[n, d\], but got shape \[9, 1\]"):
        plots.latent_space(torch.randn(9, 1))
    with pytest.raises(ValueError, match=r"one label a point, shape \[9\], but got shape \[8\]"):
        plots.latent_space(torch.randn(9, 2), torch.zeros(8))
    with pytest.raises(ValueError, match="2 of the 9 points are not finite"):
        plots.latent_space(torch.randn(9, 2).index_fill(0, torch.tensor([1, 4]), float("nan")))


def test_curve_draws_a_line_for_each_name():
    values = {"train": [3.0, 2.0, 1.5], "test": torch.tensor([3.5, 2.5])}
    figure = plots.curve(values, "epoch", "ELBO (nats)", title="Training")
    (axes,) = figure.axes
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1.5]]
    assert second.get_xydata().tolist() == [[1, 3.5], [2, 2.5]]
    assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "ELBO (nats)", "Training")
    figure.draw_without_rendering()
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_curve_at_given_places_and_of_one_line():
    (axes,) = plots.curve({"loss": [1.0, 0.5]}, "step", "loss", x=torch.tensor([10, 20])).axes
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[10, 1], [20, 0.5]]
    assert axes.get_legend() is None


def test_curve_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="at least one named sequence"):
        plots.curve({}, "x", "y")
    with pytest.raises(ValueError, match="no numbers for 'b'"):
        plots.curve({"a": [1.0], "b": []}, "x", "y")
    with pytest.raises(ValueError, match="x has 3 numbers, but 'a' has 1"):
        plots.curve({"a": [1.0]}, "x", "y", x=[1, 2, 3])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'drawing pictures needs matplotlib.*pip install "zsp\[plot\]"'):
        plots.curve({"a": [1.0]}, "x", "y")


# -- pictures of draws -------------------------------------------------------------------------------------------------


def some_draws(n_chains=4, n_draws=300):
    is_divergent = torch.zeros(n_chains, n_draws, dtype=torch.bool)
    is_divergent[1, [5, 70]] = True
    values = {"mu": torch.randn(n_chains, n_draws), "theta": torch.randn(n_chains, n_draws, 3)}
    return Draws(values, info={"is_divergent": is_divergent})


def test_trace_shows_every_chain_and_its_distribution():
    draws = some_draws()
    figure = plots.trace(draws, title="Traces")
    left, right = figure.axes[::2], figure.axes[1::2]
    assert [axes.get_ylabel() for axes in left] == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    for label, shown, axes in zip(range(4), left, right, strict=True):
        values = draws["mu"] if label == 0 else draws["theta"][..., label - 1]
        *chains, ticks = axes.get_lines()
        for chain, line in zip(values, chains, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), chain)
        assert list(ticks.get_xdata()) == [5, 70] and ticks.get_marker() == "|"
        assert len(shown.patches) == 4
        heights, edges, _ = shown.patches[0].get_data()
        expected, _ = np.histogram(values[0], bins=edges)
        np.testing.assert_allclose(heights, expected / expected.sum())
    assert right[-1].get_xlabel() == "draw (| diverging)" and figure.get_suptitle() == "Traces"
    plain = plots.trace({"mu": draws["mu"]})
    assert plain.axes[1].get_xlabel() == "draw" and len(plain.axes[1].get_lines()) == 4
    plots.trace({"constant": torch.ones(2, 10)}).draw_without_rendering()


def test_elements_are_chosen_by_name():
    draws = some_draws()
    figure = plots.trace(draws, ["theta[2]", "mu"])
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["theta[2]", "mu"]
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_ydata(), draws["theta"][0, :, 2])
    matrix = {"w": torch.randn(2, 50, 2, 2)}
    assert [axes.get_ylabel() for axes in plots.trace(matrix, "w[1,0]").axes[::2]] == ["w[1, 0]"]


def test_rank_draws_each_chain_s_histogram():
    draws = some_draws()
    figure = plots.rank(draws, n_bins=10)
    assert [axes.get_title() for axes in figure.axes] == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    bars = figure.axes[0].containers
    ranks = draws["mu"].flatten().argsort().argsort().view(4, 300)
    for i, container in enumerate(bars):
        counts, _ = np.histogram(ranks[i], bins=10, range=(0, 1200))
        heights = [bar.get_height() for bar in container]
        np.testing.assert_allclose(heights, np.minimum(counts / 30 / 2, 0.95))
        assert container[0].get_y() == 3 - i, "chain 0 is the uppermost"


def test_rank_of_equal_draws_favours_no_chain():
    """Of constant draws every chain has ranks all over; in order of the chains chain 0 would have the lowest."""
    figure = plots.rank({"one": torch.ones(2, 1000)}, n_bins=10)
    heights = np.array([[bar.get_height() for bar in container] for container in figure.axes[0].containers])
    assert (np.abs(heights - 0.5) < 0.2).all()


def test_rank_ecdf_has_one_line_a_chain_in_the_band_of_equal_chains():
    draws = {"mu": torch.randn(4, 300)}
    figure = plots.rank_ecdf(draws, prob=0.95)
    (axes,) = figure.axes
    values = draws["mu"]
    n_kept = min(300, int(diagnostics.ess_bulk(values.T[None]).min()))
    kept = values[:, torch.linspace(0, 299, n_kept).round().long()]
    law = chain_law(n_kept, 4 * n_kept)
    lower, upper = law.band(0.05 / 4)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx((upper / n_kept - law.shares).max())
    assert corners[:, 1].min() == pytest.approx((lower / n_kept - law.shares).min())
    ranks = kept.flatten().argsort().argsort().view(4, n_kept)
    lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("chain")]
    assert len(lines) == 4
    for chain, line in zip(ranks.numpy(), lines, strict=True):
        expected = [(chain < place).mean() - place / (4 * n_kept) for place in law.places]
        np.testing.assert_allclose(line.get_ydata()[1:], expected, atol=1e-12)


def test_rank_ecdf_shows_a_chain_that_differs():
    values = torch.randn(4, 300)
    values[2] += 1.0
    (axes,) = plots.rank_ecdf({"mu": values}).axes
    lowest = axes.collections[0].get_paths()[0].vertices[:, 1].min()
    lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("chain")]
    assert [bool(line.get_ydata().min() < lowest) for line in lines] == [False, False, True, False]


def test_pair_marks_divergences():
    draws = some_draws()
    figure = plots.pair(draws, ["mu", "theta[0]", "theta[1]"])
    assert len(figure.axes) == 6  # the lower half of 3 x 3
    scatter = next(axes for axes in figure.axes if axes.get_ylabel() == "theta[0]")
    points, crosses = scatter.get_lines()
    np.testing.assert_array_equal(points.get_xdata(), draws["mu"].flatten())
    np.testing.assert_array_equal(points.get_ydata(), draws["theta"][..., 0].flatten())
    np.testing.assert_array_equal(crosses.get_xdata(), draws["mu"][1, [5, 70]])
    np.testing.assert_array_equal(crosses.get_ydata(), draws["theta"][1, [5, 70], 0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["diverging"]
    many = plots.pair({"a": torch.randn(4, 5000), "b": torch.randn(4, 5000)})
    assert 3000 <= len(many.axes[1].get_lines()[0].get_xdata()) <= 4000 and many.legends == []


@pytest.mark.parametrize("by_chain", [False, True])
def test_forest_shows_intervals(by_chain):
    draws = some_draws(n_chains=2)
    (axes,) = plots.forest(draws, prob=0.8, by_chain=by_chain).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    wide, narrow, middle = axes.get_lines()[:3]
    shown = (draws["mu"][0] if by_chain else draws["mu"]).numpy()
    np.testing.assert_allclose(wide.get_xdata(), np.quantile(shown, [0.1, 0.9]))
    np.testing.assert_allclose(narrow.get_xdata(), np.quantile(shown, [0.25, 0.75]))
    np.testing.assert_allclose(middle.get_xdata(), np.quantile(shown, 0.5))
    assert len(axes.get_lines()) == 3 * 4 * (2 if by_chain else 1)
    note = axes.texts[0].get_text().split()
    assert note[0] == f"{diagnostics.rhat(draws['mu']).item():.2f}"
    assert note[1] == f"{diagnostics.ess_bulk(draws['mu']).item():.0f}"


def test_calibration_draws_ranks_in_their_band():
    ranks = {"mu": torch.randint(0, 100, (200,)), "tau": torch.zeros(200, dtype=torch.long)}
    figure = plots.calibration(ranks, 100, prob=0.9)
    first, second = figure.axes
    lower, upper = rank_law(200, 100).band(0.1)
    shares = np.arange(1, 101) / 100
    corners = first.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx((upper / 200 - shares).max())
    assert corners[:, 1].min() == pytest.approx((lower / 200 - shares).min())
    line = first.get_lines()[1].get_ydata()
    np.testing.assert_allclose(line[1:], [(ranks["mu"] < i).double().mean() - i / 100 for i in range(1, 101)])
    np.testing.assert_allclose(second.get_lines()[1].get_ydata()[1:], 1 - shares)
    with pytest.raises(ValueError, match=r"the ranks of 'mu' must be of shape \[n\] and from 0 to 49"):
        plots.calibration(ranks, 50)
    with pytest.raises(ValueError, match="from 1 to 60 quantities, but got 0"):
        plots.calibration({}, 50)


def test_pictures_of_draws_say_what_they_cannot_draw():
    draws = some_draws()
    with pytest.raises(ValueError, match=r"no draws of 'thta', but of 'mu', 'theta'. Did you mean 'theta'\?"):
        plots.trace(draws, ["thta"])
    with pytest.raises(ValueError, match=r"there is no 'theta\[7\]': the shape of 'theta' is \[3\]"):
        plots.forest(draws, ["theta[7]"])
    with pytest.raises(ValueError, match="rank shows from 1 to 30 quantities, but there are 40. Name nodes or elements"):
        plots.rank({"w": torch.randn(2, 10, 40)})
    with pytest.raises(ValueError, match="at least two quantities, but got 'mu' alone"):
        plots.pair(draws, "mu")
    with pytest.raises(ValueError, match="1 of the 20 draws of 'mu' are not finite"):
        plots.trace({"mu": torch.tensor([[1.0, float("inf"), *8 * [2.0]], 10 * [3.0]])})
    with pytest.raises(ValueError, match="compares chains, but got one"):
        plots.rank_ecdf({"mu": torch.randn(1, 100)})
    with pytest.raises(ValueError, match=r"up to 32 chains, but there are 64: draws.select\(chains=range\(8\)\)"):
        plots.rank({"mu": torch.randn(64, 10)})
    with pytest.raises(ValueError, match="between 0.5 and 1, got 0.3"):
        plots.forest(draws, prob=0.3)
    with pytest.raises(ValueError, match=r"shape \[chain, draw, \*shape\], but 'mu' has \[10\]"):
        plots.trace({"mu": torch.randn(10)})


@pytest.mark.parametrize("picture", [plots.trace, plots.rank, plots.rank_ecdf, plots.pair, plots.forest])
def test_every_picture_of_draws_is_written(picture, tmp_path):
    draws = some_draws()
    before = torch.get_rng_state()
    picture(draws, ["mu", "theta[1]"], title="A title").savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert torch.get_rng_state().equal(before), "pictures use no random numbers of the caller"
