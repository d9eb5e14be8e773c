"""Write docs/distributions.md and its pictures from the table of distributions: ``python tools/distributions_page.py``.

With ``--check`` nothing is written: the exit status is 1 if the text of the page would change.

Everything on the page comes from the rows: their docstrings, arguments and scipy equivalents, and the parameters of the
test table for the pictures. The names in torch and Pyro are those of their classes with the same name, or in
:data:`OTHER_NAMES`.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.distributions.table import CASES, Case  # noqa: E402
from zsp.distributions import NodeMethods, NodeType  # noqa: E402
from zsp.distributions.node_type import TABLE  # noqa: E402

__all__ = ["PAGE", "main", "page"]

PAGE = ROOT / "docs" / "distributions.md"
PICTURES = ROOT / "docs" / "images" / "distributions"

OTHER_NAMES = {
    "fold_normal": "FoldedDistribution",
    "bin_concrete": "RelaxedBernoulli",
    "concrete": "RelaxedOneHotCategorical",
    "exp_concrete": "ExpRelaxedCategorical",
    "mixture": "MixtureSameFamily",
    "flow": "TransformedDistribution",
    "flat": "ImproperUniform",
    "multivariate_normal_cholesky": "MultivariateNormal",
}

HEAD = """# Distributions

<!-- Written by `python tools/distributions_page.py`; change the docstrings of the rows instead. -->

One row is one method of a net, `bn.normal("x", mean=0., std=1.)`, with ZhuSuan's argument names. The classes, such as
`zsp.distributions.Normal`, have torch's argument names and can be used anywhere. Every row also takes `n_samples`,
`group_ndims`, `total_size` and `mask`. The pictures show three settings of the parameters: densities of numbers,
probabilities of whole numbers, and draws of two entries of vectors and matrices.
"""


def rows() -> list[tuple[NodeType, list[str]]]:
    """Every row of the table, in its order, with its aliases."""
    names: dict[str, list[str]] = {}
    for name, method in vars(NodeMethods).items():
        if not name.startswith("_"):
            names.setdefault(method.__name__, []).append(name)
    return [(TABLE[row], [name for name in found if name != row]) for row, found in names.items()]


def page() -> str:
    """The text of the page."""
    found = rows()
    index = " · ".join(f"[{row.name}](#{row.name})" for row, _ in found)
    return "\n".join([HEAD, index, "", *(section(row, aliases) for row, aliases in found)])


def section(row: NodeType, aliases: list[str]) -> str:
    """The part of the page on one row."""
    summary, formulas, arguments = read(row.build.__doc__ or "")
    also = f" Also named {', '.join(f'`{name}`' for name in aliases)}." if aliases else ""
    if any(f"`{name}`" in summary for name in aliases):
        also = ""
    lines = [f"## {row.name}", ""]
    case = next((case for case in CASES if case.name == row.name), None)
    if case is not None and drawable(case):
        lines += [f"![{row.name}](images/distributions/{row.name}.svg)", ""]
    lines += [summary + also, ""]
    for formula in formulas:
        lines += ["$$" + formula + "$$", ""]
    lines += [
        "| zsp, in a net | zsp, a class | torch | Pyro | scipy |",
        "|---|---|---|---|---|",
        f"| {' | '.join(spellings(row))} |",
        "",
        *(f"- `{name}`: {text}" for name, text in arguments),
        "",
    ]
    return "\n".join(lines)


def spellings(row: NodeType) -> list[str]:
    """How the distribution is made in zsp's two ways, in torch, in Pyro and in scipy; a dash where it is not there."""
    import pyro.distributions

    name = class_name(row)
    other = OTHER_NAMES.get(row.name, name)
    cells = [call(f"bn.{row.name}", list(row.arguments)), signature(zsp_class(row))]
    in_torch = getattr(torch.distributions, other, None)
    in_pyro = getattr(pyro.distributions, other, None)
    cells += [signature(in_torch), signature(in_pyro), f"`{row.scipy}`" if row.scipy else "–"]
    return cells


def zsp_class(row: NodeType) -> type:
    """The class that a row makes: what its function is annotated to return."""
    name = class_name(row)
    return getattr(sys.modules[row.build.__module__], name)


def class_name(row: NodeType) -> str:
    """The name of the class that a row makes."""
    return str(inspect.signature(row.build).return_annotation)


def signature(made: type | None) -> str:
    """A call of a class by its argument names."""
    if made is None:
        return "–"
    given = list(inspect.signature(made.__init__).parameters.values())[1:]  # type: ignore[misc]
    hidden = {"validate_args", "args", "kwargs", "is_sparse"}
    return call(made.__name__, [parameter.name for parameter in given if parameter.name not in hidden])


def call(name: str, arguments: list[str]) -> str:
    """A call as code."""
    return f"`{name}({', '.join(arguments)})`"


def read(docstring: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The first paragraph, the formulas and the arguments of a row's docstring, as Markdown."""
    text = inspect.cleandoc(docstring)
    summary = markdown(text.split("\n\n")[0])
    formulas = [
        " ".join(line.strip() for line in match.splitlines())
        for match in re.findall(r"^\.\. math:: (.*(?:\n[ ]+.*)*)", text, re.M)
    ]
    arguments: list[tuple[str, str]] = []
    body = re.search(r"^Args:\n((?:    .*\n?)*)", text, re.M)
    for line in body.group(1).splitlines() if body else ():
        if match := re.match(r"    (\w+): (.*)", line):
            arguments.append((match.group(1), markdown(match.group(2))))
        elif arguments:
            arguments[-1] = (arguments[-1][0], f"{arguments[-1][1]} {markdown(line.strip())}")
    return summary, formulas, arguments


def markdown(text: str) -> str:
    """The mark-up of a docstring in Markdown."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return re.sub(r"``([^`]*)``", r"`\1`", text).replace("\n", " ")


# -- pictures ---------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 240, 120, 14
COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c")


def drawable(case: Case) -> bool:
    """Whether there is a picture: of what has draws and a density that is not a point."""
    return case.values is None and case.name != "delta"


def picture(case: Case) -> str:
    """The picture of a row, as SVG."""
    draws = case.draws(4000, seed=1)
    if case.event_shape:
        return scatter(draws[:150].flatten(2).transpose(0, 1), case.discrete)
    # 94 percent of the draws, but at most 4 distances of the quartiles from the median: heavy tails are long
    at = torch.quantile(draws, torch.tensor([0.02, 0.25, 0.5, 0.75, 0.96], dtype=draws.dtype), dim=0)
    reach = 4 * (at[3] - at[1]).clamp(min=1e-3 if not case.discrete else 1)
    low, high = torch.maximum(at[0], at[2] - reach).min().item(), torch.minimum(at[4], at[2] + reach).max().item()
    if case.discrete:
        grid = torch.arange(round(low), round(high) + 1, dtype=torch.float64)
    else:
        grid = torch.linspace(low, high, 160, dtype=torch.float64)
    dist = case.build()
    inside = dist.support.check(grid[:, None].expand(-1, 3))
    safe = torch.where(inside, grid[:, None], draws[0])
    density = torch.where(inside, dist.log_prob(safe).exp(), 0.0)
    # a density without a bound is cut at twice the height that it has nearly everywhere
    top = min(density.max().item(), 2 * torch.quantile(density.max(-1).values, 0.95).item())
    x = MARGIN + (grid - grid[0]) / (grid[-1] - grid[0]) * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - density.clamp(max=top) / top * (HEIGHT - 2 * MARGIN)
    shapes = []
    for i, colour in enumerate(COLOURS):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y[:, i].tolist(), strict=True))
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if case.discrete and len(grid) < 100:
            dots = zip(x.tolist(), y[:, i].tolist(), strict=True)
            shapes += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="{colour}"/>' for a, b in dots]
    return svg(shapes, f"{grid[0]:.3g}", f"{grid[-1]:.3g}")


def scatter(draws: Tensor, is_discrete: bool) -> str:
    """Draws of the two entries that vary most, ``draws [3, n, entries]``."""
    first, second = draws.flatten(0, 1).var(0).topk(2).indices.sort().values.tolist()
    points = draws[..., [first, second]]
    if is_discrete:  # apart from one another
        points = points + 0.25 * (torch.rand(points.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    flat = points.flatten(0, 1)
    low, high = torch.quantile(flat, 0.02, dim=0), torch.quantile(flat, 0.98, dim=0)
    unit = (points - low) / (high - low)
    shapes = []
    for of_one, colour in zip(unit.tolist(), COLOURS, strict=True):
        for a, b in of_one:
            if -0.02 < a < 1.02 and -0.02 < b < 1.02:
                x, y = MARGIN + a * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - b * (HEIGHT - 2 * MARGIN)
                shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" fill="{colour}" fill-opacity="0.6"/>')
    return svg(shapes, f"{low[0]:.3g}", f"{high[0]:.3g}")


def svg(shapes: list[str], left: str, right: str) -> str:
    """A picture with an axis, whose ends are labelled."""
    bottom = HEIGHT - MARGIN
    label = f'y="{HEIGHT - 2}" font-family="sans-serif" font-size="10" fill="#555"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<path d="M{MARGIN} {bottom}H{WIDTH - MARGIN}" stroke="#999"/>',
            *shapes,
            f'<text x="{MARGIN}" {label}>{left}</text>',
            f'<text x="{WIDTH - MARGIN}" {label} text-anchor="end">{right}</text>',
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the page and the pictures, or check the page."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            sys.exit("docs/distributions.md is not that of the table: run python tools/distributions_page.py")
        return
    PICTURES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    wanted = {f"{case.name}.svg": picture(case) for case in CASES if drawable(case)}
    for old in PICTURES.glob("*.svg"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (PICTURES / name).write_text(text)


if __name__ == "__main__":
    main()
