"""The shape of the package: imports point one way, and importing it changes nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports from its own layer and those above it here. A package stands for all of its modules; a new module
# or package goes where it belongs.
LAYERS = (
    ("zsp.extras",),
    ("zsp.datasets", "zsp.tensor_like", "zsp.distributions"),
    (
        "zsp.bayesian_net",
        "zsp.checks",
        "zsp.execution",
        "zsp.graph",
        "zsp.meta_bayesian_net",
        "zsp.node",
        "zsp.registration",
        "zsp.variables",
    ),
    ("zsp.inference",),
    ("zsp.evaluation",),
    ("zsp.plots",),
    ("zsp.check",),
    ("zsp",),  # zsp/__init__.py: the public names, by which models and all below them go
    ("zsp.models", "zsp.pyro"),
    ("zsp.__main__", "zsp.demo"),
)
OUTSIDE = ("tests", "tutorials", "benchmarks", "tools")


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    while module:
        for i, modules in enumerate(LAYERS):
            if module in modules:
                return i
        module = module.rpartition(".")[0] if module.count(".") > 1 else ""
    return None


def imports(tree, module, is_package, modules):
    """(line, imported module, for types only) of every import, also inside functions."""
    found = []

    def visit(node, for_types):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, for_types)
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((node.lineno, full if full in modules else base, for_types))
        for child in ast.iter_child_nodes(node):
            visit(child, for_types)

    visit(tree, False)
    return found


def read(root=ROOT):
    """module -> its imports, for all modules of zsp."""
    paths = {module_name(path, root): path for path in sorted((root / "zsp").rglob("*.py"))}
    return {
        module: imports(ast.parse(path.read_text()), module, path.name == "__init__.py", paths)
        for module, path in paths.items()
    }


def upward(graph):
    """One line for every import of a layer below in LAYERS, of tests or tutorials, and every module without a layer."""
    wrong = [f"{module} has no layer: add it to LAYERS" for module in graph if layer(module) is None]
    for module, found in graph.items():
        for line, imported, _ in found:
            if imported.partition(".")[0] in OUTSIDE:
                wrong.append(f"{module}:{line} imports {imported}, which is no part of the package")
            elif imported in graph and (layer(imported) or 0) > (layer(module) or 0):
                wrong.append(f"{module}:{line} imports {imported} from a layer above it")
    return wrong


def cycle(graph):
    """A list of modules, each of which imports the next and the last the first; None if there is no such list."""
    edges = {
        module: [imported for _, imported, for_types in found if imported in graph and not for_types]
        for module, found in graph.items()
    }
    done = set()

    def search(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        for imported in edges[module]:
            if found := search(imported, [*path, module]):
                return found
        done.add(module)
        return None

    return next(filter(None, (search(module, []) for module in edges)), None)


def test_imports_point_one_way():
    graph = read()
    assert len(graph) > 10 and graph["zsp.inference"], "the modules were read"
    assert upward(graph) == []


def test_there_is_no_import_cycle():
    assert cycle(read()) is None


@pytest.mark.parametrize(
    "path, text, expected",
    [
        ("extras.py", "from zsp import plots", "zsp.extras:1 imports zsp.plots from a layer above it"),
        ("distributions/normal.py", "from ..bayesian_net import BayesianNet", "zsp.bayesian_net from a layer above"),
        ("inference/elbo.py", "def f():\n    import zsp.models.vae", "zsp.inference.elbo:2 imports zsp.models.vae"),
        ("inference/elbo.py", "import zsp", "imports zsp from a layer above"),
        ("graph.py", "from zsp import elbo", "imports zsp from a layer above"),
        ("models/vae.py", "from tutorials import vae", "imports tutorials, which is no part"),
        ("misc.py", "", "zsp.misc has no layer: add it to LAYERS"),
    ],
)
def test_an_import_of_a_layer_above_is_found(tmp_path, path, text, expected):
    package(tmp_path, {"models/vae.py": "", "bayesian_net.py": "", "plots.py": "", path: text})
    (found,) = upward(read(tmp_path))
    assert expected in found


def test_cycles_are_found_and_imports_for_types_are_none(tmp_path):
    package(tmp_path, {"checks.py": "from .graph import g", "graph.py": "def f():\n    from zsp import checks"})
    assert sorted(cycle(read(tmp_path))) == ["zsp.checks", "zsp.graph"]
    package(tmp_path, {"graph.py": "if TYPE_CHECKING:\n    from zsp import checks"})
    assert cycle(read(tmp_path)) is None
    assert upward(read(tmp_path)) == []


def package(root, files):
    for path, text in {"__init__.py": "", **files}.items():
        (root / "zsp" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "zsp" / path).write_text(text)


IMPORT = """
import json, logging, random, sys, warnings
import numpy, torch, torch.distributions, torch.distributions.kl

def entries(registry):  # those for zsp's own constraints aside, which no code but zsp's meets
    factories = registry._registry.items()
    return hash(frozenset((key, id(value)) for key, value in factories if key.__module__.partition(".")[0] != "zsp"))

def divergences():  # those between zsp's own classes aside
    pairs = torch.distributions.kl._KL_REGISTRY
    return sum(any(c.__module__.partition(".")[0] != "zsp" for c in pair) for pair in pairs)

def state():
    registries = torch.distributions.biject_to, torch.distributions.transform_to
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch seed": torch.initial_seed(),
        "torch random state": hash(bytes(torch.get_rng_state().tolist())),
        "python random state": hash(random.getstate()),
        "validation": torch.distributions.Distribution._validate_args,
        "KL registry": divergences(),
        "KL cache": len(torch.distributions.kl._KL_MEMOIZE),
        "constraint registries": [entries(registry) for registry in registries],
        "attributes of torch": hash(frozenset(vars(torch))),
        "attributes of Tensor": hash(frozenset(vars(torch.Tensor))),
        "attributes of torch.distributions": hash(frozenset(vars(torch.distributions))),
        "attributes of Distribution": hash(frozenset(vars(torch.distributions.Distribution).items())),
        "warning filters": len(warnings.filters),
        "root log handlers": len(logging.getLogger().handlers),
    }

modules, before = set(sys.modules), state()
import zsp
print(json.dumps([before, state(), sorted(set(sys.modules) - modules)]))
"""

ON_DEMAND = {"networkx", "pyro", "tqdm", "matplotlib", "sklearn", "scipy", "pandas", "arviz", "jax", "IPython"}


@pytest.fixture(scope="module")
def fresh_import():
    """(state before, state after, new modules) of `import zsp` after torch in a new process."""
    result = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_zsp_changes_nothing_in_torch(fresh_import):
    before, after, _ = fresh_import
    assert after == before


def test_importing_zsp_leaves_what_is_used_on_demand(fresh_import):
    *_, modules = fresh_import
    assert "zsp.bayesian_net" in modules
    assert {module.partition(".")[0] for module in modules} & ON_DEMAND == set()
    assert [module for module in modules if module.startswith(("torch._dynamo", "torch._inductor"))] == []


def test_names_imported_on_demand_are_those_that_type_checkers_see():
    import zsp.inference

    tree = ast.parse(Path(zsp.inference.__file__).read_text())
    [for_types] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {(node.module, alias.name) for node in for_types.body for alias in node.names}
    assert declared == {(f"zsp.inference.{home}", name) for home, names in zsp.inference._NAMES.items() for name in names}

    tree = ast.parse(Path(zsp.__file__).read_text())
    [for_types] = [node for node in tree.body if isinstance(node, ast.If)]
    assert {alias.name for node in for_types.body for alias in node.names} == set(zsp.inference.__all__)
    assert set(zsp.inference.__all__) < set(zsp.__all__) < set(dir(zsp))
    for name in zsp.__all__:
        assert getattr(zsp, name) is not None
