"""The graph of a net against hand-written ones, textbook facts about it, and the geometry of its drawing."""

import math
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import networkx
import numpy as np
import pytest
import torch
from torch import nn

import zsp
import zsp.graph
from zsp.graph.layout import Layout, label_box, lay_out
from zsp.models import build_vae

SVG = "{http://www.w3.org/2000/svg}"


def edges(graph):
    return {f"{parent}->{child}" for parent, child in graph.edges}


def graph_of(declare, **values):
    """The graph of a model written as a function of the net."""

    def model():
        bn = zsp.BayesianNet()
        declare(bn)
        return bn

    return zsp.MetaBayesianNet(model, reuse_variables=True).graph(**values)


def edges_of(declare, **values):
    return edges(graph_of(declare, **values))


def gradient_of_a_square(a):
    a = a.detach().requires_grad_(True)
    return torch.autograd.grad(a**2, a)[0]


def words(text):
    return set(text.split())


# -- models with hand-written graphs ----------------------------------------------------------------------------------


@zsp.meta_bayesian_net()
def linear_regression(x):
    bn = zsp.BayesianNet()
    alpha = bn.gamma("alpha", 1.0, 1.0)
    w = bn.normal("w", torch.zeros(x.shape[-1]), std=alpha, group_ndims=1)
    b = bn.normal("b", 0.0, std=1.0)
    bn.normal("y", x @ w + b, std=0.1, group_ndims=1)
    return bn


@zsp.meta_bayesian_net()
def eight_schools(sigma):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=5.0)
    tau = bn.half_cauchy("tau", 5.0)
    theta_tilde = bn.normal("theta_tilde", torch.zeros(8), std=1.0, group_ndims=1)
    theta = bn.deterministic("theta", mu + tau * theta_tilde)
    bn.normal("y", theta, std=sigma, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="generator", reuse_variables=True)
def hierarchical_vae(n, n_samples=None):
    bn = zsp.BayesianNet()
    z2 = bn.normal("z2", torch.zeros(n, 3), std=1.0, group_ndims=1, n_samples=n_samples)
    hidden = torch.dropout(torch.relu(zsp.module("hidden", nn.Linear, 3, 7)(z2)), 0.5, True)
    z1 = bn.normal("z1", zsp.module("mean", nn.Linear, 7, 5)(hidden), std=1.0, group_ndims=1)
    logits = zsp.module("decoder", nn.Sequential, nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 11))(z1)
    bn.bernoulli("x", bn.deterministic("x_logits", logits), group_ndims=1)
    return bn


@zsp.meta_bayesian_net()
def lda(n_docs, n_words, n_topics, n_vocabulary):
    bn = zsp.BayesianNet()
    phi = bn.dirichlet("phi", torch.ones(n_topics, n_vocabulary), group_ndims=1)
    theta = bn.dirichlet("theta", torch.ones(n_docs, n_topics), group_ndims=1)
    z = bn.categorical("z", theta.log()[:, None].expand(n_docs, n_words, n_topics), group_ndims=2)
    bn.categorical("w", phi.log()[z.long()], group_ndims=2)
    return bn


@zsp.meta_bayesian_net()
def hmm(n_steps):
    bn = zsp.BayesianNet()
    transition = bn.dirichlet("A", torch.ones(3, 3), group_ndims=1)
    mu = bn.normal("mu", torch.zeros(3), std=3.0, group_ndims=1)
    z = bn.categorical("z0", torch.zeros(3))
    bn.normal("x0", mu[z.long()], std=1.0)
    for t in range(1, n_steps):
        z = bn.categorical(f"z{t}", transition.log()[z.long()])
        bn.normal(f"x{t}", mu[z.long()], std=1.0)
    return bn


@zsp.meta_bayesian_net()
def crossed():
    bn = zsp.BayesianNet()
    person = bn.normal("person", torch.zeros(5, 1), std=1.0, group_ndims=2)
    item = bn.normal("item", torch.zeros(1, 4), std=1.0, group_ndims=2)
    bn.bernoulli("answer", person - item, group_ndims=2)
    return bn


HMM_EDGES = "A->z1 A->z2 A->z3 z0->z1 z1->z2 z2->z3 mu->x0 mu->x1 mu->x2 mu->x3 z0->x0 z1->x1 z2->x2 z3->x3"
MODELS = {
    "linear_regression": (
        lambda: linear_regression(torch.ones(9, 2)), dict(y=torch.ones(9)), "alpha->w w->y b->y",
    ),
    "eight_schools": (
        lambda: eight_schools(torch.ones(8)), dict(y=torch.ones(8)), "mu->theta tau->theta theta_tilde->theta theta->y",
    ),
    "hierarchical_vae": (
        lambda: hierarchical_vae(4), dict(x=torch.ones(4, 11)), "z2->z1 z1->x_logits x_logits->x",
    ),
    "lda": (lambda: lda(6, 11, 4, 30), dict(w=torch.zeros(6, 11)), "theta->z z->w phi->w"),
    "hmm": (lambda: hmm(4), {f"x{t}": torch.zeros(()) for t in range(4)}, HMM_EDGES),
    "crossed": (crossed, dict(answer=torch.ones(5, 4)), "person->answer item->answer"),
    "shipped_vae": (lambda: build_vae(6, 2, 5).generator.bind(n=3), dict(x=torch.ones(3, 6)), "z->x_mean z->x"),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request):
    make, observed, expected = MODELS[request.param]
    return make(), observed, words(expected)


def test_graph_equals_the_hand_written_one_in_any_configuration(case):
    model, observed, expected = case
    free = model.graph()
    assert edges(free) == expected
    assert edges(model.graph(**observed)) == expected
    bn = model.observe()
    everything = {n: bn[n].tensor.detach() for n in free if free.nodes[n]["kind"] == "stochastic"}
    given = model.graph(**everything)
    assert edges(given) == expected
    assert list(given) == list(bn.nodes)  # the order of declaration
    assert [given.nodes[n]["order"] for n in given] == list(range(len(given)))
    assert all(given.nodes[n]["is_observed"] == (n in everything) for n in given)
    assert networkx.is_directed_acyclic_graph(given)


def test_attributes_of_nodes():
    graph = hierarchical_vae(4, n_samples=3).graph(x=torch.ones(4, 11))
    z1, logits, x = graph.nodes["z1"], graph.nodes["x_logits"], graph.nodes["x"]
    assert (z1["kind"], z1["distribution"], z1["is_observed"], z1["shape"]) == (
        "stochastic",
        "normal",
        False,
        (3, 4, 5),
    )
    assert (z1["sample_shape"], z1["batch_shape"], z1["event_shape"], z1["group_ndims"]) == ((3,), (4, 5), (), 1)
    assert (logits["kind"], logits["distribution"], logits["batch_shape"]) == ("deterministic", None, (4, 11))
    assert (x["is_observed"], x["shape"], x["sample_shape"], x["batch_shape"]) == (True, (4, 11), (3,), (4, 11))
    theta = lda(6, 11, 4, 30).graph().nodes["theta"]
    assert (theta["batch_shape"], theta["event_shape"]) == ((6,), (4,))


def test_plates():
    def plates(name):
        make, _, _ = MODELS[name]
        return {(plate.label, *plate.nodes) for plate in make().graph().graph["plates"]}

    assert plates("eight_schools") == {("8", "theta_tilde", "theta", "y")}
    assert plates("linear_regression") == {("2", "w"), ("9", "y")}
    assert plates("hierarchical_vae") == {("4", "z2", "z1", "x_logits", "x")}
    assert plates("lda") == {("6", "theta", "z", "w"), ("11", "z", "w"), ("4", "phi")}
    assert plates("crossed") == {("5", "person", "answer"), ("4", "item", "answer")}


# -- what counts as a dependence --------------------------------------------------------------------------------------


def two_normals(bn):
    return bn.normal("a", 0.0, std=1.0), bn.normal("b", torch.ones(()), std=1.0)


@pytest.mark.parametrize(
    "read",
    [
        lambda a: a.item(),
        lambda a: float(a),
        lambda a: bool(a > 0),
        lambda a: a.tolist(),
        lambda a: a.detach().numpy(),
        lambda a: np.asarray(a) + 1,
        lambda a: math.exp(a),
        lambda a: torch.allclose(a, torch.zeros(())),
        lambda a: torch.equal(a, torch.zeros(())),
        lambda a: a in [1.0, 2.0],
        lambda a: [0, 1][(a > 0).long()],
        lambda a: [1 for _ in range(int(a.abs()))],
        lambda a: np.from_dlpack(a),
    ],
)
def test_what_is_read_counts_for_everything_declared_later(read):
    def declare(bn):
        a, _ = two_normals(bn)
        bn.normal("before", 0.0, std=1.0)
        read(a)
        bn.normal("after", 0.0, std=1.0)
        bn.deterministic("last", torch.zeros(()))

    assert edges_of(declare) == words("a->after a->last")


@pytest.mark.parametrize(
    "look", [lambda a: repr(a), lambda a: str(a), lambda a: f"{a:.2f}", lambda a: a.shape, lambda a: (a.dim(), a.dtype)]
)
def test_printing_and_shapes_are_no_reads(look):
    def declare(bn):
        a, _ = two_normals(bn)
        look(a)
        bn.normal("after", 0.0, std=1.0)

    assert edges_of(declare) == set()


def test_a_branch_on_a_value():
    def declare(bn):
        a, b = two_normals(bn)
        x = bn.normal("x", b, std=1.0) if a.item() > 0 else bn.normal("x", 2 * b, std=1.0)
        bn.normal("y", x, std=1.0)

    for a in (-1.0, 1.0):
        assert edges_of(declare, a=a) == words("a->x b->x a->y x->y")


def test_what_distributions_look_at_is_no_read():
    def declare(bn):
        a, _ = two_normals(bn)
        x = bn.stochastic("x", torch.distributions.Normal(a, 1.0, validate_args=True))
        bn.multinomial("m", torch.stack([x, x]), n_experiments=3)
        bn.normal("later", 0.0, std=1.0)

    assert edges_of(declare) == words("a->x x->m")


@pytest.mark.parametrize(
    "use",
    [
        lambda a, b: a.expand(3).view(3, 1)[1:].sum(),
        lambda a, b: torch.zeros(3).index_put((torch.tensor([1]),), a)[1],
        lambda a, b: torch.zeros(2).add_(a)[0],
        lambda a, b: torch.tensor([a, 1.0])[0],
        lambda a, b: torch.full((), a),
        lambda a, b: torch.as_tensor(a),
        lambda a, b: a.data,
        lambda a, b: torch.vmap(lambda u: (u * 2).sum())(a.expand(2, 3))[0],
        lambda a, b: torch.func.grad(lambda u: u.pow(3).sum())(a),
        lambda a, b: torch.where(a > 0, 1.0, 2.0),
        lambda a, b: gradient_of_a_square(a),
        lambda a, b: torch.arange(3.0)[(a > 0).long()],
        lambda a, b: torch.arange(3.0)[a.sign().long().abs() :].sum(),
        lambda a, b: nn.functional.one_hot((a > 0).long(), 2).to(a.dtype).sum(),
        lambda a, b: torch.einsum("i,i->", a.expand(2), torch.ones(2)),
        lambda a, b: nn.Parameter(torch.zeros(())).detach() + a.to(torch.float32),
        lambda a, b: torch.stack([a, b])[0],
        lambda a, b: (torch.stack([a, b]) * 2 + 1)[0],
        lambda a, b: torch.cat([b[None], a[None]]).flip(0).unbind()[0],
        lambda a, b: torch.stack([b, a])[torch.tensor([1])][0],
    ],
)
def test_computation_is_followed(use):
    def declare(bn):
        a, b = two_normals(bn)
        bn.normal("x", use(a, b), std=1.0)
        bn.normal("later", 0.0, std=1.0)

    assert edges_of(declare) == {"a->x"}


def test_a_choice_by_a_value_depends_on_all_that_could_be_chosen():
    def declare(bn):
        means = torch.stack(two_normals(bn))
        k = bn.categorical("k", torch.zeros(2))
        bn.normal("x", means[k.long()], std=1.0)
        bn.normal("y", means.gather(0, k.long()[None])[0], std=1.0)
        bn.normal("first", means[0], std=1.0)

    for k in (0, 1):
        assert edges_of(declare, k=k) == words("a->x b->x k->x a->y b->y k->y a->first")


def test_in_place_and_views():
    def declare(bn):
        a, b = two_normals(bn)
        states = torch.zeros(3)
        states[0] = a
        states[1:2].add_(b)
        bn.normal("x0", states[0], std=1.0)
        bn.normal("x1", states[1], std=1.0)
        bn.normal("x2", states[2], std=1.0)
        bn.normal("all", states.sum(), std=1.0)
        states.zero_()
        bn.normal("none", states.sum(), std=1.0)
        k = bn.categorical("k", torch.zeros(3))
        states[k.long()] = a
        bn.normal("any", states[0], std=1.0)

    assert edges_of(declare) == words("a->x0 b->x1 a->all b->all k->any a->any")


def test_chain_through_a_preallocated_tensor():
    def declare(bn):
        z = torch.zeros(4)
        for t in range(4):
            z[t] = bn.normal(f"z{t}", z[t - 1] if t else 0.0, std=1.0)

    assert edges_of(declare) == words("z0->z1 z1->z2 z2->z3")


def test_deterministic_nodes_end_an_edge():
    def declare(bn):
        a, b = two_normals(bn)
        h = a * b
        bn.deterministic("h", h)  # the returned tensor is not used
        g = bn.deterministic("g", torch.exp(h))
        bn.normal("x", h.view(1)[0], std=1.0)
        bn.normal("y", g + a, std=1.0)
        first = bn.deterministic("same", a)
        bn.normal("z", first, std=1.0)
        bn.deterministic("constant", torch.zeros(2))

    assert edges_of(declare) == words("a->h b->h h->g h->x g->y a->y a->same same->z")


def test_name_for_a_part_of_another_node():
    def declare(bn):
        z = bn.normal("z", torch.zeros(3), std=1.0, group_ndims=1)
        part = z[0]
        bn.deterministic("part", part)
        bn.normal("x", part, std=1.0)
        bn.normal("y", z[0], std=1.0)

    assert edges_of(declare) == words("z->part part->x z->y")


def test_one_tensor_given_for_two_nodes_and_used_as_a_constant():
    shared = torch.ones(())

    def declare(bn):
        a, b = two_normals(bn)
        bn.normal("x", a + shared, std=1.0)
        bn.normal("y", b + shared, std=1.0)
        bn.normal("z", shared, std=1.0)

    assert edges_of(declare, a=shared, b=shared) == words("a->x b->y")
    assert shared == 1.0


def test_values_through_views_of_the_net_masks_and_other_nets():
    def declare(bn):
        a, b = two_normals(bn)
        bn.normal("view", bn["a"] * 2, std=1.0)
        bn.normal("masked", torch.zeros(2), std=1.0, mask=(b > 0).expand(2))
        inner = zsp.BayesianNet({"u": a})
        u = inner.normal("u", b, std=1.0)  # its value is a's; b is only its mean
        v = inner.normal("v", u, std=1.0)
        bn.normal("x", v, std=1.0)

    assert edges_of(declare) == words("a->view b->masked a->x")


def test_transforms_and_closures_of_distributions():
    def declare(bn):
        a, b = two_normals(bn)
        base = torch.distributions.Normal(torch.zeros(()), 1.0)
        affine = torch.distributions.transforms.AffineTransform(a, 2.0)
        bn.stochastic("x", torch.distributions.TransformedDistribution(base, [affine]))
        components = torch.distributions.Normal(torch.stack([a, b]), 1.0)
        mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), components)
        bn.stochastic("y", mixture)

    expected = words("a->x a->y b->y")
    assert edges_of(declare) == expected
    assert edges_of(declare, x=0.5, y=0.5) == expected


def test_modules_are_left_as_they_were():
    @zsp.meta_bayesian_net(scope="net", reuse_variables=True)
    def net():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(5, 3), std=1.0, group_ndims=1)
        h = zsp.module("norm", nn.BatchNorm1d, 3)(z)
        bn.normal("x", zsp.module("cell", nn.LSTM, 3, 2)(h)[0], std=1.0, group_ndims=1)
        return bn

    model = net()
    assert edges(model.graph()) == {"z->x"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert edges(model.graph()) == {"z->x"}
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.observe()  # nothing of the tracer stays
    assert zsp.execution.current_tracer() is None


def test_sampling_by_rows_of_a_given_input():
    model = linear_regression(torch.ones(9, 2))
    graph = model.graph(x=torch.ones(5, 2), y=torch.ones(5))
    assert graph.nodes["y"]["shape"] == (5,) and edges(graph) == words("alpha->w w->y b->y")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_needed_value_that_was_not_given():
    def declare(bn):
        scale = bn.flat("scale", (2,), support=torch.distributions.constraints.positive)
        bn.normal("x", torch.zeros(2), std=scale)

    with pytest.raises(ValueError, match=r"needs a value of node 'scale' \(flat\).*graph\(scale=\.\.\.\)"):
        graph_of(declare)
    assert edges_of(declare, scale=torch.ones(2)) == {"scale->x"}

    def in_a_list(bn):
        bn.normal("x", torch.stack([torch.zeros(()), bn.flat("loc")]), std=1.0)

    with pytest.raises(ValueError, match="needs a value of node 'loc'"):
        graph_of(in_a_list)

    graph = graph_of(lambda bn: bn.flat("alone", (2,)))  # nobody uses it
    assert graph.nodes["alone"]["shape"] is None


def test_bad_values_and_names():
    model = eight_schools(torch.ones(8))
    with pytest.raises(ValueError, match="'z'"):
        model.graph(z=1.0)
    with pytest.raises(ValueError, match="tau"):
        model.graph(tau=-1.0)
    graph = model.graph()
    with pytest.raises(KeyError, match="no node 'thet'.*Did you mean 'theta'"):
        zsp.graph.ancestors(graph, "thet")
    with pytest.raises(ValueError, match="'mu' is in two"):
        zsp.graph.is_d_separated(graph, "mu", "y", given="mu")
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        zsp.graph.draw(graph, "graph.pdf")


# -- questions to a graph ---------------------------------------------------------------------------------------------


def chain(bn):
    bn.normal("c", bn.normal("b", bn.normal("a", 0.0, std=1.0), std=1.0), std=1.0)


def fork(bn):
    b = bn.normal("b", 0.0, std=1.0)
    bn.normal("a", b, std=1.0)
    bn.normal("c", b, std=1.0)


def collider(bn):
    b = bn.normal("b", bn.normal("a", 0.0, std=1.0) + bn.normal("c", 0.0, std=1.0), std=1.0)
    bn.normal("d", b, std=1.0)


def test_d_separation_of_the_textbook():
    for declare in (chain, fork):
        graph = graph_of(declare)
        assert not zsp.graph.is_d_separated(graph, "a", "c")
        assert zsp.graph.is_d_separated(graph, "a", "c", given="b")
    graph = graph_of(collider)
    assert zsp.graph.is_d_separated(graph, "a", "c")
    assert not zsp.graph.is_d_separated(graph, "a", "c", given="b")
    assert not zsp.graph.is_d_separated(graph, "a", "c", given=["d"])  # a descendant of the collider


def test_relatives():
    graph = eight_schools(torch.ones(8)).graph()
    assert zsp.graph.ancestors(graph, "y") == ["mu", "tau", "theta_tilde", "theta"]
    assert zsp.graph.descendants(graph, "tau") == ["theta", "y"]
    assert zsp.graph.markov_blanket(graph, "tau") == ["mu", "theta_tilde", "theta"]
    assert zsp.graph.topological_order(graph) == ["mu", "tau", "theta_tilde", "theta", "y"]


def test_factorization():
    assert zsp.graph.factorization(graph_of(fork)) == "p(b, a, c) = p(b) p(a | b) p(c | b)"
    graph = eight_schools(torch.ones(8)).graph()
    assert zsp.graph.factorization(graph) == (
        "p(mu, tau, theta_tilde, y) = p(mu) p(tau) p(theta_tilde) p(y | theta), theta = f(mu, tau, theta_tilde)"
    )
    assert zsp.graph.factorization(graph, latex=True) == (
        r"p(\mu, \tau, \tilde{\theta}, y) = p(\mu) \, p(\tau) \, p(\tilde{\theta}) \, p(y \mid \theta), "
        r"\quad \theta = f(\mu, \tau, \tilde{\theta})"
    )
    from zsp.graph.symbols import latex_symbol

    assert [latex_symbol(n) for n in ("z1", "x_t", "log_std", "y_mean", "50%")] == [
        "z_{1}", "x_{t}", r"\mathrm{log\_std}", r"y_{\mathrm{mean}}", r"\mathrm{50\%}",
    ]  # fmt: skip


def test_dot():
    text = zsp.graph.to_dot(eight_schools(torch.ones(8)).graph(y=torch.ones(8)))
    assert '"theta" [shape=diamond];' in text and '"y" [shape=ellipse, style=filled' in text
    assert 'label="8"' in text and '"mu" -> "theta";' in text and text.count("{") == text.count("}") == 2


# -- drawing ----------------------------------------------------------------------------------------------------------


def random_graph(seed, n=9):
    """A random graph with a plate for a random half, and one inside it."""
    generator = random.Random(seed)
    graph = networkx.DiGraph()
    names = [f"x{i}" for i in range(n - 2)] + ["a_long_name", "another_rather_long_name"]
    for i, name in enumerate(names):
        kind = generator.choice(["stochastic", "stochastic", "deterministic"])
        graph.add_node(name, kind=kind, is_observed=False, order=i)
        for parent in generator.sample(names[:i], min(i, generator.choice([0, 1, 1, 2]))):
            graph.add_edge(parent, name)
    outer = tuple(generator.sample(names, n // 2))
    graph.graph["plates"] = [zsp.graph.Plate((12,), outer), zsp.graph.Plate((3, 4), outer[:2])]
    return graph


def assert_geometry(layout: Layout, graph, arrows_clear=True):
    shapes = {shape.name: shape for shape in layout.shapes}
    assert set(shapes) == set(graph) and {(a.parent, a.child) for a in layout.arrows} == set(graph.edges)
    for shape in layout.shapes:
        assert shape.rx < shape.x < layout.width - shape.rx
        assert shape.ry < shape.y < layout.height - shape.ry
        for other in layout.shapes:
            if other is not shape:
                assert abs(shape.x - other.x) > shape.rx + other.rx or abs(shape.y - other.y) > shape.ry + other.ry
    for frame in layout.frames:
        inside = {
            s.name for s in layout.shapes if frame.x0 < s.x + s.rx and s.x - s.rx < frame.x1
            and frame.y0 < s.y + s.ry and s.y - s.ry < frame.y1
        }  # fmt: skip
        assert inside == set(frame.nodes)
        left, top, right, bottom = label_box(frame)
        assert frame.x0 < left < right < frame.x1 and frame.y0 < top < bottom < frame.y1
        assert all(
            s.y + s.ry < top or s.x + s.rx < left or s.x - s.rx > right or s.y - s.ry > bottom for s in shapes.values()
        )
        for other in layout.frames:  # nested or apart
            if other is not frame and set(other.nodes) & set(frame.nodes):
                outer, inner = (frame, other) if len(frame.nodes) > len(other.nodes) else (other, frame)
                assert outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1
    for arrow in layout.arrows:
        path = arrow.sampled(40)
        start, end = shapes[arrow.parent], shapes[arrow.child]
        assert start.contains(path[0], 3.0) and not start.contains(path[0])  # begins and ends at the borders
        assert end.contains(path[-1], 3.0) and not end.contains(path[-1])
        assert all(0 <= x <= layout.width and 0 <= y <= layout.height for x, y in path)
        if arrows_clear:
            others = [shape for shape in layout.shapes if shape not in (start, end)]
            assert not any(shape.contains(point) for shape in others for point in path), arrow


def test_layout_of_the_models(case):
    model, observed, _ = case
    graph = model.graph(**observed)
    assert_geometry(lay_out(graph), graph)


@pytest.mark.parametrize("seed", range(12))
def test_layout_of_random_graphs(seed):
    graph = random_graph(seed)
    assert_geometry(lay_out(graph), graph)


def test_layout_is_the_same_each_time():
    graph = random_graph(0)
    assert zsp.graph.draw(graph).svg() == zsp.graph.draw(graph).svg()


def test_labels_fit():
    image = pytest.importorskip("matplotlib.textpath")
    from matplotlib.font_manager import FontProperties

    from zsp.graph.symbols import FONT, latex_symbol, symbol

    graph = random_graph(3)
    for name in ("theta_tilde_12", "x_logits", "W", "mu"):
        graph.add_node(name, kind="deterministic" if len(name) > 2 else "stochastic", is_observed=False, order=99)
    for shape in lay_out(graph).shapes:
        text = shape.name if symbol(shape.name) is None else f"${latex_symbol(shape.name)}$"
        size = 0.9 * FONT if symbol(shape.name) is None else FONT
        path = image.TextPath((0, 0), text, prop=FontProperties(family="serif", size=size, math_fontfamily="cm"))
        box = path.get_extents()
        for corner in ((1, 1), (1, -1)):
            point = (shape.x + corner[0] * box.width / 2, shape.y + corner[1] * box.height / 2)
            assert shape.contains(point), shape.name


def test_svg_and_png(case, tmp_path):
    model, observed, _ = case
    graph = model.graph(**observed)
    picture = zsp.graph.draw(graph, tmp_path / "graph.svg")
    root = ElementTree.fromstring((tmp_path / "graph.svg").read_text(encoding="utf-8"))
    assert picture._repr_svg_() == picture.svg()
    nodes = {g.findtext(f"{SVG}title"): g for g in root.iter(f"{SVG}g") if g.get("class", "").startswith("node")}
    assert set(nodes) == set(graph)
    for name, element in nodes.items():
        is_diamond = graph.nodes[name]["kind"] == "deterministic"
        outline = element.find(f"{SVG}polygon" if is_diamond else f"{SVG}ellipse")
        assert (outline.get("fill") != "white") == graph.nodes[name]["is_observed"]
    n_edges = sum(g.get("class") == "edge" for g in root.iter(f"{SVG}g"))
    assert n_edges == graph.number_of_edges()
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert set(texts) == {plate.label for plate in graph.graph["plates"]}

    matplotlib_image = pytest.importorskip("matplotlib.image")
    zsp.graph.draw(graph, tmp_path / "graph.png")
    pixels = matplotlib_image.imread(tmp_path / "graph.png")[..., :3]
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(picture.layout.width / picture.layout.height, rel=0.02)
    assert 0.01 < (pixels < 0.5).mean() < 0.2  # black lines on white
    grey = (np.abs(pixels - np.array([0xD5, 0xD8, 0xDC]) / 255).max(-1) < 0.02).any()
    assert grey == any(graph.nodes[name]["is_observed"] for name in graph)


def test_names_that_markup_would_take_for_its_own():
    def declare(bn):
        a = bn.normal("a<b&c", 0.0, std=1.0)
        bn.normal("$x_{1", a, std=1.0)

    picture = zsp.graph.draw(graph_of(declare))
    titles = [e.text for e in ElementTree.fromstring(picture.svg()).iter(f"{SVG}title")]
    assert "a<b&c" in titles and "$x_{1" in titles


def test_large_graphs_are_drawn():
    graph = hmm(30).graph()
    layout = zsp.graph.draw(graph).layout
    assert_geometry(layout, graph, arrows_clear=False)


def test_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "zsp\[plot\]"'):
        zsp.graph.draw(graph_of(chain), tmp_path / "graph.png")


def test_importing_zsp_imports_no_networkx():
    code = "import sys, zsp, zsp.graph; sys.exit('networkx' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
