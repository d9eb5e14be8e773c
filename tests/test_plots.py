import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from zsp import plots


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
