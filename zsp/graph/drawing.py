r"""Drawings of dependency graphs, as SVG text or as PNG through matplotlib.

Circles are random variables, shaded where they are observed; diamonds are functions of their parents; a rounded
rectangle is a plate, which stands for as many copies of what is inside as the number in its corner says. A name such as
``theta_tilde`` or ``z1`` is written as the symbol that it spells, :math:`\tilde\theta` and :math:`z_1`; in an SVG its
full name shows under the pointer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from zsp.extras import require
from zsp.graph.layout import LABEL_FONT, Layout, Point, label_box
from zsp.graph.symbols import ACCENTS, FONT, GREEK, latex_symbol, symbol

if TYPE_CHECKING:
    from zsp.graph.layout import Arrow

__all__ = ["Picture"]

SHADE = "#d5d8dc"
HEAD_LENGTH, HEAD_WIDTH = 9.0, 7.0


class Picture:
    """A drawing of a graph; it shows itself in a notebook.

    Args:
        layout: where everything goes.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def svg(self) -> str:
        """The drawing as the text of an SVG file."""
        layout = self.layout
        size = f"{layout.width:.0f}", f"{layout.height:.0f}"
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
            f'viewBox="0 0 {layout.width:.1f} {layout.height:.1f}">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        for frame in layout.frames:
            lines.append(
                f'<rect class="plate" x="{frame.x0:.1f}" y="{frame.y0:.1f}" width="{frame.x1 - frame.x0:.1f}" '
                f'height="{frame.y1 - frame.y0:.1f}" rx="8" fill="none" stroke="black" stroke-width="1"/>'
            )
        for arrow in layout.arrows:
            shaft, head = _shaft_and_head(arrow)
            (x, y), *rest = shaft
            curves = " ".join(
                "C " + " ".join(f"{a:.1f},{b:.1f}" for a, b in rest[i : i + 3]) for i in range(0, len(rest), 3)
            )
            lines.append(
                f'<g class="edge"><title>{escape(arrow.parent)} → {escape(arrow.child)}</title>'
                f'<path d="M {x:.1f},{y:.1f} {curves}" fill="none" stroke="black" stroke-width="1.2"/>'
                f'<polygon points="{_points(head)}" fill="black"/></g>'
            )
        for shape in layout.shapes:
            fill = SHADE if shape.is_observed else "white"
            style = f'fill="{fill}" stroke="black" stroke-width="1.3"'
            if shape.is_diamond:
                outline = f'<polygon points="{_points(_diamond(shape))}" {style}/>'
            else:
                centre, radii = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}"', f'rx="{shape.rx:.1f}" ry="{shape.ry:.1f}"'
                outline = f"<ellipse {centre} {radii} {style}/>"
            kind = "deterministic" if shape.is_diamond else "stochastic"
            lines.append(
                f'<g class="node {kind}{" observed" if shape.is_observed else ""}"><title>{escape(shape.name)}</title>'
                f"{outline}{_svg_text(shape.name, shape.x, shape.y)}</g>"
            )
        for frame in layout.frames:
            _, _, right, bottom = label_box(frame)
            lines.append(
                f'<text x="{right:.1f}" y="{bottom - 2:.1f}" text-anchor="end" font-family="serif" '
                f'font-size="{LABEL_FONT:g}">{escape(frame.label)}</text>'
            )
        return "\n".join([*lines, "</svg>"]) + "\n"

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> None:
        """Write the drawing.

        Args:
            path: ends in ``.svg`` or ``.png``.

        Raises:
            ValueError: for another ending.
            ImportError: for a PNG without matplotlib.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        elif ending == ".png":
            self._save_png(path)
        else:
            raise ValueError(
                f"a graph is drawn as .svg or .png, but the path {str(path)!r} ends in {ending!r}. For other formats, "
                "give zsp.graph.to_dot(graph) to Graphviz."
            )

    def _save_png(self, path: Path, scale: float = 2.0) -> None:
        purpose = "drawing a graph as PNG"
        figures = require("matplotlib.figure", extra="plot", purpose=purpose)
        patches = require("matplotlib.patches", extra="plot", purpose=purpose)
        paths = require("matplotlib.path", extra="plot", purpose=purpose)
        layout = self.layout
        # one unit of the layout is one point, 1/72 inch; no pyplot, whose figures are global
        figure = figures.Figure(figsize=(layout.width / 72, layout.height / 72), dpi=72 * scale, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, layout.width)
        axes.set_ylim(layout.height, 0)
        axes.axis("off")
        for frame in layout.frames:
            # the box's style grows it by pad on each side
            corner, size = (frame.x0 + 8, frame.y0 + 8), (frame.x1 - frame.x0 - 16, frame.y1 - frame.y0 - 16)
            axes.add_patch(
                patches.FancyBboxPatch(corner, *size, boxstyle="round,pad=8,rounding_size=8", fill=False, linewidth=1)
            )
            _, _, right, bottom = label_box(frame)
            axes.text(right, bottom - 2, frame.label, ha="right", va="baseline", fontsize=LABEL_FONT, family="serif")
        for arrow in layout.arrows:
            shaft, head = _shaft_and_head(arrow)
            codes = [paths.Path.MOVETO] + [paths.Path.CURVE4] * (len(shaft) - 1)
            axes.add_patch(patches.PathPatch(paths.Path(shaft, codes), fill=False, linewidth=1.2, capstyle="butt"))
            axes.add_patch(patches.Polygon(head, facecolor="black", linewidth=0))
        for shape in layout.shapes:
            style: dict[str, Any] = {"facecolor": SHADE if shape.is_observed else "white", "edgecolor": "black"}
            if shape.is_diamond:
                axes.add_patch(patches.Polygon(_diamond(shape), linewidth=1.3, **style))
            else:
                centre = (shape.x, shape.y)
                axes.add_patch(patches.Ellipse(centre, 2 * shape.rx, 2 * shape.ry, linewidth=1.3, **style))
            is_word = symbol(shape.name) is None
            text = shape.name.replace("$", r"\$") if is_word else f"${latex_symbol(shape.name)}$"
            font = {"family": "serif", "fontsize": 0.9 * FONT if is_word else FONT, "math_fontfamily": "cm"}
            axes.text(shape.x, shape.y, text, ha="center", va="center_baseline" if is_word else "center", **font)
        figure.savefig(path, format="png")


def _points(points: list[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _diamond(shape: Any) -> list[Point]:
    return [
        (shape.x, shape.y - shape.ry),
        (shape.x + shape.rx, shape.y),
        (shape.x, shape.y + shape.ry),
        (shape.x - shape.rx, shape.y),
    ]


def _svg_text(name: str, x: float, y: float) -> str:
    found = symbol(name)
    common = f'x="{x:.1f}" y="{y + 0.32 * FONT:.1f}" text-anchor="middle" font-family="serif"'
    if found is None:
        return f'<text {common} font-size="{0.9 * FONT:g}">{escape(name)}</text>'
    letter, accent, subscript = found
    text = f"<tspan>{GREEK.get(letter, letter)}{ACCENTS.get(accent, '')}</tspan>"
    if subscript:
        style = "italic" if len(subscript) == 1 and not subscript.isdigit() else "normal"
        size = f'dy="{0.25 * FONT:g}" font-size="{0.65 * FONT:g}"'
        text += f'<tspan {size} font-style="{style}">{escape(subscript)}</tspan>'
    return f'<text {common} font-size="{FONT:g}" font-style="italic">{text}</text>'


def _shaft_and_head(arrow: Arrow) -> tuple[list[Point], list[Point]]:
    """The arrow's curve, ended inside its head, and the head's three corners."""
    points = arrow.points
    tip, behind = points[-1], next(p for p in arrow.sampled(48)[::-1] if math.dist(p, points[-1]) >= HEAD_LENGTH * 0.9)
    length = math.dist(tip, behind)
    along = ((tip[0] - behind[0]) / length, (tip[1] - behind[1]) / length)
    base = (tip[0] - HEAD_LENGTH * along[0], tip[1] - HEAD_LENGTH * along[1])
    side = (-along[1] * HEAD_WIDTH / 2, along[0] * HEAD_WIDTH / 2)
    inside = (tip[0] - HEAD_LENGTH * 0.6 * along[0], tip[1] - HEAD_LENGTH * 0.6 * along[1])
    moved = (inside[0] - tip[0], inside[1] - tip[1])
    shaft = [*points[:-2], (points[-2][0] + moved[0], points[-2][1] + moved[1]), inside]
    return shaft, [tip, (base[0] + side[0], base[1] + side[1]), (base[0] - side[0], base[1] - side[1])]
