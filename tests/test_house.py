"""The house rules, checked on the syntax trees of the sources."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("hvdlm", "preprocessing", "perf", "jobs") for path in (ROOT / part).rglob("*.py"))

# library -> where it may be imported. doctor.py examines each of them.
HOMES = {
    "h5py": {"hvdlm/shards.py", "hvdlm/mpio.py", "hvdlm/doctor.py", "perf/bench_reading.py"},
    "horovod": {"hvdlm/world/horovod.py", "hvdlm/sync/horovod.py", "hvdlm/doctor.py"},
    "mpi4py": {"hvdlm/world/mpi.py"},
    "jinja2": {"perf/report.py", "jobs/render.py"},
    "matplotlib": {"perf/report.py", "hvdlm/inspection.py"},
}
STAGES = ("preprocessing", "perf", "jobs")
FORBIDDEN_NAMES = ("utils", "common", "manager", "handler", "factory", "helper", "helpers", "base")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Absolute module names that a file imports, inside functions too."""
    package = name_of(path).split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*parents, *([node.module] if node.module else [])])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_libraries_stay_in_their_homes(path):
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or name_of(path) in homes, f"{module} belongs to {homes}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_stages_are_joined_by_the_cli_alone(path):
    own = name_of(path).split("/")[0]
    if name_of(path).startswith("hvdlm/cli/"):
        return
    for module in imports(path):
        for stage in STAGES:
            if stage != own:
                assert not module.startswith((f"hvdlm.{stage}", stage + ".")), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_edges_read_the_environment_and_the_command_line(path):
    """What a process was told from outside is known to cli, world and doctor; the rest gets arguments."""
    name = name_of(path)
    is_edge = name in ("hvdlm/doctor.py", "hvdlm/__main__.py") or name.startswith(("hvdlm/cli/", "hvdlm/world/"))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert is_edge or (node.value.id, node.attr) not in {
                ("sys", "argv"),
                ("os", "environ"),
                ("os", "getenv"),
            }, name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text)) or path.name == "__init__.py"
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{name_of(path)}:{node.lineno} {node.name}"


def test_every_horovod_collective_is_named():
    """Unnamed ones are numbered by each process: one more on one rank, and all ranks wait for ever."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_collective = node.func.attr.rstrip("_") in ("allreduce", "allgather", "broadcast", "alltoall")
                if is_collective and "hvd" in ast.unparse(node.func.value):
                    assert any(keyword.arg == "name" for keyword in node.keywords), ast.unparse(node)


def test_nothing_is_unpickled_from_files():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "np.load"):
                assert ast.unparse(node.func) == "np.load", name_of(path)
                assert not any(k.arg == "allow_pickle" for k in node.keywords)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_examples_in_docstrings_are_true(path):
    name = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name if name.startswith("hvdlm") else f"hvdlm.{name}")
    assert doctest.testmod(module).failed == 0
