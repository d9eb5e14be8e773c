"""Where the nodes, plates and arrows of a graph's drawing go: a layered layout, parents above their children.

1. The layer of a node is the length of the longest path to it; a node without parents stands just above its first
   child (Sugiyama, Tagawa & Toda 1981, "Methods for visual understanding of hierarchical system structures").
2. Nodes and the plates inside a plate are blocks. Blocks that have a layer in common stand side by side, so that a
   plate holds exactly its nodes; long arrows keep a place in each layer that they pass.
3. Blocks are ordered by the barycentre of their neighbours, from several starts; the drawing with the fewest arrows
   through shapes, then crossings, then the shortest arrows, is kept.
4. An arrow is straight where that touches nothing, otherwise the first of a few curves that does not.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zsp.graph.symbols import FONT, text_width

if TYPE_CHECKING:
    import networkx

    from zsp.graph.dependencies import Plate

__all__ = ["Arrow", "Frame", "Layout", "PlateTree", "Shape", "lay_out", "plate_tree"]

Point = tuple[float, float]

RADIUS = 22.0  # of a node with a short name
LABEL_FONT = 12.0
PAD = 13.0  # between a plate's border and what is inside
LABEL_HEIGHT = 16.0  # for the size in a plate's corner
COLUMN_GAP = 26.0
ROW_GAP = 40.0
CLEARANCE = 5.0  # between an arrow and the shapes that it passes
MARGIN = 14.0
N_STARTS = 12
N_ORDERING_SWEEPS, N_ALIGNING_SWEEPS = 6, 16
MAX_PLACES = 300  # of long arrows; with more of them, they find their way without


@dataclass
class Shape:
    """A node: an ellipse (a circle if its name is short) or a diamond, by its centre and half axes."""

    name: str
    x: float
    y: float
    rx: float
    ry: float
    is_diamond: bool
    is_observed: bool

    def contains(self, point: Point, margin: float = 0.0) -> bool:
        """Whether a point is inside, or nearer than ``margin`` (up to rounding at a diamond's corners)."""
        dx, dy = abs(point[0] - self.x), abs(point[1] - self.y)
        if self.is_diamond:
            grown = margin * math.hypot(1 / self.rx, 1 / self.ry)
            return dx / self.rx + dy / self.ry < 1 + grown
        return (dx / (self.rx + margin)) ** 2 + (dy / (self.ry + margin)) ** 2 < 1


@dataclass
class Arrow:
    """An edge as cubic Bezier segments: the first point, then three points for each segment."""

    parent: str
    child: str
    points: list[Point]

    def sampled(self, n: int = 24) -> list[Point]:
        """Points along the arrow, n for each segment."""
        return _sampled(self.points, n)


@dataclass
class Frame:
    """A plate: a rectangle around its nodes, with its size in the lower right corner."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str
    nodes: tuple[str, ...]


@dataclass
class Layout:
    """A drawing's geometry; x goes right and y down, from 0 to ``width`` and ``height``."""

    shapes: list[Shape]
    arrows: list[Arrow]
    frames: list[Frame]
    width: float
    height: float


@dataclass
class PlateTree:
    """A plate with the names that are in no plate inside it; the root is the whole drawing."""

    label: str
    own: list[str]
    children: list[PlateTree] = field(default_factory=list)

    def names(self) -> list[str]:
        """All names inside, also in inner plates."""
        return [*self.own, *(name for child in self.children for name in child.names())]


def plate_tree(names: Iterable[str], plates: Sequence[Plate]) -> PlateTree:
    """Plates inside plates. Of two that overlap in part, the smaller is split in two of the same size.

    Args:
        names: all nodes.
        plates: their plates.

    Returns:
        The root, which stands for no plate.
    """
    root = PlateTree("", list(names))
    for plate in sorted(plates, key=lambda plate: -len(plate.nodes)):  # sorted() keeps the order of equals
        _insert(root, plate.label, list(plate.nodes))
    return root


def _insert(tree: PlateTree, label: str, names: list[str]) -> None:
    for child in tree.children:
        inside = set(child.names())
        shared = [name for name in names if name in inside]
        if shared:
            _insert(child, label, shared)
            names = [name for name in names if name not in inside]
    if names:
        tree.own = [name for name in tree.own if name not in names]
        tree.children.append(PlateTree(label, names))


# -- placing the shapes -----------------------------------------------------------------------------------------------


def lay_out(graph: networkx.DiGraph) -> Layout:
    """The geometry of a graph's drawing.

    Args:
        graph: made by ``model.graph(...)``; only ``kind``, ``is_observed`` and ``graph.graph["plates"]`` are read.

    Returns:
        The layout. The same graph always has the same one.
    """
    placing = _Placing(graph)
    best = None
    generator = random.Random(0)
    for start in range(N_STARTS if len(graph) <= 40 else 2):
        layout = placing.place(None if start == 0 else generator)
        cost = _cost(layout)
        if best is None or cost < best[0]:
            best = (cost, layout)
        if best[0][:2] == (0, 0) and start >= 3:
            break
    assert best is not None
    return best[1]


class _Placing:
    """The parts of a layout that do not depend on the order in the layers."""

    def __init__(self, graph: networkx.DiGraph) -> None:
        self.graph = graph
        self.layer = _layers(graph)
        self.tree = plate_tree(graph, graph.graph.get("plates", []))
        self.size: dict[str, Point] = {}
        for name, node in graph.nodes(data=True):
            width = text_width(name)
            if node["kind"] == "deterministic":
                ry = RADIUS + 3
                # a text of half sizes (w, h) fits into a diamond if w / rx + h / ry <= 1
                self.size[name] = (max(ry, (width / 2 + 2) / (1 - 0.36 * FONT / ry)), ry)
            else:
                self.size[name] = (max(RADIUS, width / 2 + 9), RADIUS)
        self.neighbours: dict[str, list[str]] = {name: [] for name in graph}
        self.via: dict[tuple[str, str], list[str]] = {}
        self.extra: dict[int, list[str]] = {}  # id of a plate -> places of long arrows in it
        n_places = sum(self.layer[child] - self.layer[parent] - 1 for parent, child in graph.edges)
        for parent, child in graph.edges:
            between: list[str] = []
            home = id(_home(self.tree, parent, child))
            passed = range(self.layer[parent] + 1, self.layer[child]) if n_places <= MAX_PLACES else ()
            for layer in passed:
                place = f"{parent}\0{child}\0{layer}"
                self.layer[place] = layer
                self.size[place] = (4.0, 4.0)
                self.neighbours[place] = []
                self.extra.setdefault(home, []).append(place)
                between.append(place)
            self.via[parent, child] = between
            chain = [parent, *between, child]
            for a, b in itertools.pairwise(chain):
                self.neighbours[a].append(b)
                self.neighbours[b].append(a)
        self.y = self._rows()

    def _rows(self) -> list[float]:
        """The height of each layer: room for the borders of plates that begin and end between two."""
        n = max(self.layer.values(), default=0) + 1
        begins, ends = [0.0] * (n + 1), [0.0] * (n + 1)
        half = [0.0] * n
        for name in self.graph:
            half[self.layer[name]] = max(half[self.layer[name]], self.size[name][1])

        def visit(tree: PlateTree, above: dict[int, float], below: dict[int, float]) -> tuple[int, int]:
            layers = [self.layer[name] for name in tree.names()]
            first, last = min(layers, default=0), max(layers, default=0)
            if tree is not self.tree:
                above = {**above, first: above.get(first, 0.0) + PAD}
                below = {**below, last: below.get(last, 0.0) + PAD + LABEL_HEIGHT}
                begins[first] = max(begins[first], above[first])
                ends[last] = max(ends[last], below[last])
            for child in tree.children:
                visit(child, above, below)
            return first, last

        visit(self.tree, {}, {})
        y = [MARGIN + begins[0] + (half[0] if half else 0.0)]
        for layer in range(1, n):
            y.append(y[-1] + half[layer - 1] + ends[layer - 1] + ROW_GAP + begins[layer] + half[layer])
        self.height = y[-1] + half[-1] + ends[n - 1] + MARGIN
        return y

    def place(self, generator: random.Random | None) -> Layout:
        """A layout from one first order: that of declaration, or a random one."""
        names = list(self.neighbours)
        x = {name: 60.0 * i if generator is None else generator.uniform(0, 400) for i, name in enumerate(names)}
        for sweep in range(N_ORDERING_SWEEPS):
            self._place_block(self.tree, x, ("up", "down", "both")[sweep % 3], 0.9)  # not on top of each other
        for _ in range(N_ALIGNING_SWEEPS):
            self._place_block(self.tree, x, "both", 0.6)  # all move at once: whole steps would swing
        shift = MARGIN - self._extent(self.tree, x)[0]
        for name in x:
            x[name] += shift
        shapes = []
        for name, node in self.graph.nodes(data=True):
            rx, ry = self.size[name]
            is_diamond = node["kind"] == "deterministic"
            shapes.append(Shape(name, x[name], self.y[self.layer[name]], rx, ry, is_diamond, bool(node["is_observed"])))
        frames: list[Frame] = []
        self._frames(self.tree, x, frames)
        arrows = _route(self.graph, shapes, frames, {
            edge: [(x[place], self.y[self.layer[place]]) for place in between] for edge, between in self.via.items()
        })  # fmt: skip
        return _fitted(Layout(shapes, arrows, frames, self._extent(self.tree, x)[1] + MARGIN, self.height))

    def _place_block(self, tree: PlateTree, x: dict[str, float], wanted_from: str, step: float) -> None:
        """Give x coordinates to everything inside a plate, inner plates first."""
        blocks: list[list[str]] = []
        extents: list[tuple[float, float]] = []
        for child in tree.children:
            self._place_block(child, x, wanted_from, step)
            blocks.append(self._inside(child))
            extents.append(self._extent(child, x))
        for name in (*tree.own, *self.extra.get(id(tree), ())):
            blocks.append([name])
            extents.append((x[name] - self.size[name][0], x[name] + self.size[name][0]))
        centre = [(left + right) / 2 for left, right in extents]
        half = [(right - left) / 2 for left, right in extents]
        near = set(self._inside(tree))
        wanted = [c + step * self._pull(block, x, wanted_from, near) for c, block in zip(centre, blocks, strict=True)]
        layers = [{self.layer[name] for name in block} for block in blocks]
        spans = [(min(s), max(s)) for s in layers]
        order = sorted(range(len(blocks)), key=lambda i: (wanted[i], i))

        def side_by_side(i: int, j: int) -> bool:
            return spans[i][0] <= spans[j][1] and spans[j][0] <= spans[i][1]

        def apart(i: int, j: int) -> float:
            return half[i] + half[j] + COLUMN_GAP

        # the mean of the leftmost and the rightmost solution satisfies the same inequalities
        rightwards, leftwards = list(wanted), list(wanted)
        for n, i in enumerate(order):
            for j in order[:n]:
                if side_by_side(i, j):
                    rightwards[i] = max(rightwards[i], rightwards[j] + apart(i, j))
        for n, i in reversed(list(enumerate(order))):
            for j in order[n + 1 :]:
                if side_by_side(i, j):
                    leftwards[i] = min(leftwards[i], leftwards[j] - apart(i, j))
        for i, block in enumerate(blocks):
            move = (rightwards[i] + leftwards[i]) / 2 - centre[i]
            for name in block:
                x[name] += move

    def _inside(self, tree: PlateTree) -> list[str]:
        names = [*tree.own, *self.extra.get(id(tree), ())]
        return names + [name for child in tree.children for name in self._inside(child)]

    def _pull(self, block: list[str], x: dict[str, float], wanted_from: str, near: set[str]) -> float:
        """How far the block is from the middle of its neighbours: those in the same plate if there are any."""
        members = set(block)
        pulls: list[float] = []
        far_pulls: list[float] = []
        for name in block:
            for other in self.neighbours[name]:
                is_above = self.layer[other] < self.layer[name]
                if other not in members and (wanted_from == "both" or (wanted_from == "up") == is_above):
                    (pulls if other in near else far_pulls).append(x[other] - x[name])
        pulls = pulls or far_pulls
        return sum(pulls) / len(pulls) if pulls else 0.0

    def _extent(self, tree: PlateTree, x: dict[str, float]) -> tuple[float, float]:
        edges = [self._extent(child, x) for child in tree.children]
        edges += [
            (x[name] - self.size[name][0], x[name] + self.size[name][0])
            for name in (*tree.own, *self.extra.get(id(tree), ()))
        ]
        pad = 0.0 if tree is self.tree else PAD
        lefts, rights = [left for left, _ in edges], [right for _, right in edges]
        return min(lefts, default=0.0) - pad, max(rights, default=0.0) + pad

    def _frames(self, tree: PlateTree, x: dict[str, float], frames: list[Frame]) -> tuple[float, float]:
        """Append the frames of the plates inside, outer ones first; give the top and bottom of what is inside."""
        position = len(frames)
        inner = [self._frames(child, x, frames) for child in tree.children]
        rows = [(self.y[self.layer[name]], self.size[name][1]) for name in tree.own]
        top = min([y - ry for y, ry in rows] + [top for top, _ in inner], default=0.0)
        bottom = max([y + ry for y, ry in rows] + [bottom for _, bottom in inner], default=0.0)
        if tree is not self.tree:
            top, bottom = top - PAD, bottom + PAD + LABEL_HEIGHT
            left, right = self._extent(tree, x)
            frames.insert(position, Frame(left, top, right, bottom, tree.label, tuple(tree.names())))
        return top, bottom


def _layers(graph: networkx.DiGraph) -> dict[str, int]:
    import networkx

    layer: dict[str, int] = {}
    for name in networkx.topological_sort(graph):
        layer[name] = 1 + max((layer[parent] for parent in graph.predecessors(name)), default=-1)
    for name in graph:
        if graph.in_degree(name) == 0 and graph.out_degree(name) > 0:
            layer[name] = min(layer[child] for child in graph.successors(name)) - 1
    return layer


def _home(tree: PlateTree, parent: str, child: str) -> PlateTree:
    """The innermost plate that holds both."""
    for inner in tree.children:
        names = inner.names()
        if parent in names and child in names:
            return _home(inner, parent, child)
    return tree


# -- routing the arrows -----------------------------------------------------------------------------------------------


def label_box(frame: Frame) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a plate's size."""
    width = 0.62 * LABEL_FONT * len(frame.label)
    return frame.x1 - 7 - width, frame.y1 - 6 - LABEL_FONT, frame.x1 - 7, frame.y1 - 6


def _route(
    graph: networkx.DiGraph, shapes: list[Shape], frames: list[Frame], via: dict[tuple[str, str], list[Point]]
) -> list[Arrow]:
    by_name = {shape.name: shape for shape in shapes}
    boxes = [label_box(frame) for frame in frames]
    arrows = []
    for parent, child in graph.edges:
        start, end = by_name[parent], by_name[child]
        others = [shape for shape in shapes if shape is not start and shape is not end]
        best: tuple[int, list[Point]] | None = None
        for candidate in _candidates(start, end, via[parent, child]):
            points = _clipped(candidate, start, end)
            hits = 0
            for point in _sampled(points, 24):
                hits += 4 * sum(shape.contains(point, CLEARANCE) for shape in others)
                hits += sum(left < point[0] < right and top < point[1] < bottom for left, top, right, bottom in boxes)
            if best is None or hits < best[0]:
                best = (hits, points)
            if hits == 0:
                break
        assert best is not None
        arrows.append(Arrow(parent, child, best[1]))
    return arrows


def _candidates(start: Shape, end: Shape, via: list[Point]) -> Iterator[list[Point]]:
    """Curves from centre to centre, the simplest first."""
    a, b = (start.x, start.y), (end.x, end.y)
    yield _arc(a, b, 0.0)
    for bend in (0.08, -0.08, 0.16, -0.16):
        yield _arc(a, b, bend)
    yield _vertical([a, b])
    if via:
        yield _smooth([a, *via, b])
        yield _vertical([a, *via, b])
    for bend in (0.25, -0.25, 0.35, -0.35, 0.5, -0.5, 0.7, -0.7):
        yield _arc(a, b, bend)


def _arc(a: Point, b: Point, bend: float) -> list[Point]:
    """A curve whose control points stand off the line by ``bend`` times its length."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    off = (-dy * bend, dx * bend)
    return [
        a,
        (a[0] + dx / 3 + off[0], a[1] + dy / 3 + off[1]),
        (a[0] + 2 * dx / 3 + off[0], a[1] + 2 * dy / 3 + off[1]),
        b,
    ]


def _vertical(through: list[Point]) -> list[Point]:
    """A curve that is vertical at each point."""
    points = [through[0]]
    for a, b in itertools.pairwise(through):
        middle = (a[1] + b[1]) / 2
        points += [(a[0], middle), (b[0], middle), b]
    return points


def _smooth(through: list[Point]) -> list[Point]:
    """A Catmull-Rom curve."""
    points = [through[0]]
    ends = [through[0], *through, through[-1]]
    for before, a, b, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        points += [
            (a[0] + (b[0] - before[0]) / 6, a[1] + (b[1] - before[1]) / 6),
            (b[0] - (after[0] - a[0]) / 6, b[1] - (after[1] - a[1]) / 6),
            b,
        ]
    return points


def _clipped(points: list[Point], start: Shape, end: Shape) -> list[Point]:
    """The part of a curve between the borders of the shapes at its ends."""
    first = points[:4]
    t = _crossing(lambda t: start.contains(_at(first, t), 1.0))
    points = [*_split(first, t)[1], *points[4:]]
    last = points[-4:]
    t = _crossing(lambda t: end.contains(_at(last, 1 - t), 1.5))
    return [*points[:-4], *_split(last, 1 - t)[0]]


def _crossing(is_inside: Callable[[float], bool]) -> float:
    """Where a curve that is inside at 0 first leaves."""
    n = 64
    outside = next((i / n for i in range(1, n) if not is_inside(i / n)), None)
    if outside is None:
        return 0.5
    low, high = outside - 1 / n, outside
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if is_inside(middle) else (low, middle)
    return high


def _split(points: list[Point], t: float) -> tuple[list[Point], list[Point]]:
    """A cubic Bezier segment as two (de Casteljau's algorithm)."""
    first, last = [points[0]], [points[-1]]
    while len(points) > 1:
        points = [(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for a, b in itertools.pairwise(points)]
        first.append(points[0])
        last.append(points[-1])
    return first, last[::-1]


def _at(points: list[Point], t: float) -> Point:
    s = 1 - t
    weights = (s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t)
    return (
        sum(w * p[0] for w, p in zip(weights, points, strict=True)),
        sum(w * p[1] for w, p in zip(weights, points, strict=True)),
    )


def _sampled(points: list[Point], n: int) -> list[Point]:
    found = [points[0]]
    for i in range(0, len(points) - 1, 3):
        found += [_at(points[i : i + 4], (k + 1) / n) for k in range(n)]
    return found


def _fitted(layout: Layout) -> Layout:
    """The same with room for arrows that bend beyond the shapes."""
    along = [point for arrow in layout.arrows for point in arrow.sampled(8)]
    left = min((x for x, _ in along), default=MARGIN)
    move = max(0.0, MARGIN / 2 - left)
    right = max((x for x, _ in along), default=0.0)
    layout.width = max(layout.width, right + MARGIN / 2) + move
    if move:
        for shape in layout.shapes:
            shape.x += move
        for frame in layout.frames:
            frame.x0, frame.x1 = frame.x0 + move, frame.x1 + move
        for arrow in layout.arrows:
            arrow.points = [(x + move, y) for x, y in arrow.points]
    return layout


def _cost(layout: Layout) -> tuple[int, int, float]:
    """Points of arrows inside shapes, crossings and heads that touch, total length."""
    paths = [arrow.sampled(6) for arrow in layout.arrows]
    hits = 0
    for arrow, path in zip(layout.arrows, paths, strict=True):
        others = [shape for shape in layout.shapes if shape.name not in (arrow.parent, arrow.child)]
        hits += sum(shape.contains(point, 2.0) for shape in others for point in path)
    crossings = sum(_cross(p, q) for i, p in enumerate(paths) for q in paths[:i]) if len(paths) <= 80 else 0
    heads = [arrow.points[-1] for arrow in layout.arrows]
    crossings += sum(math.dist(a, b) < 12 for i, a in enumerate(heads) for b in heads[:i])
    length = sum(math.dist(a, b) for path in paths for a, b in itertools.pairwise(path))
    return hits, crossings, length + layout.width / 2


def _cross(p: list[Point], q: list[Point]) -> bool:
    def side(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    for a, b in itertools.pairwise(p):
        for c, d in itertools.pairwise(q):
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False
