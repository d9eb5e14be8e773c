"""Pictures of results, drawn with matplotlib (the extra ``plot``).

Every function returns a :class:`matplotlib.figure.Figure` of its own and leaves pyplot's state alone::

    figure = zsp.plots.image_grid(images, (28, 28), title="Samples")
    figure.savefig("samples.png")
"""

from zsp.plots.curves import curve
from zsp.plots.forests import forest
from zsp.plots.images import image_grid, reconstructions
from zsp.plots.pairs import pair
from zsp.plots.points import latent_space
from zsp.plots.ranks import calibration, rank, rank_ecdf
from zsp.plots.reliability import reliability
from zsp.plots.traces import trace

__all__ = [
    "calibration",
    "curve",
    "forest",
    "image_grid",
    "latent_space",
    "pair",
    "rank",
    "rank_ecdf",
    "reconstructions",
    "reliability",
    "trace",
]
