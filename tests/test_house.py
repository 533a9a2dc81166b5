"""The house rules, checked on the syntax trees of the sources."""

import ast
import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("hvdlm", "preprocessing", "perf", "jobs") for path in (ROOT / part).rglob("*.py"))

# From bottom to top: a room may import rooms that stand before it. Rooms that stand together do not know each other.
LAYERS = """
    errors | partition | tables | numerals | json_members | first_bytes | host | files | config | launch | world
    | tokenizer optim checkpoint session | sync | data | compute | models | scoring exchange decoding | records | tasks
    | parallel | train | inference | preprocessing perf jobs serve | doctor | cli | __main__
"""
FLOORS = {room: floor for floor, rooms in enumerate(LAYERS.split("|")) for room in rooms.split()}

# library -> where it may be imported, files and folders. doctor.py examines each of them.
HOMES = {
    "h5py": {"hvdlm/data/", "hvdlm/doctor.py", "perf/bench_reading.py"},
    "horovod": {"hvdlm/world/horovod.py", "hvdlm/sync/horovod.py", "hvdlm/doctor.py"},
    "mpi4py": {"hvdlm/world/mpi.py", "hvdlm/doctor.py"},
    "jinja2": {"perf/templates.py", "jobs/render.py", "hvdlm/serve/chat.py"},
    "lm_eval": {"hvdlm/inference/lm_eval_adapter.py"},
    "matplotlib": {
        "perf/pictures.py",
        "perf/curves/pictures.py",
        "hvdlm/data/inspection.py",
        "hvdlm/inference/inspect/pictures.py",
        "hvdlm/scoring/confusion.py",
    },
    "sacrebleu": {"hvdlm/scoring/text.py"},
    "starlette": {"hvdlm/serve/"},
    "uvicorn": {"hvdlm/serve/"},
}
FORBIDDEN_NAMES = ("utils", "common", "manager", "handler", "factory", "helper", "helpers", "base")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported_names(path):
    """(absolute module, name) of all that a file imports, inside functions too."""
    package = name_of(path).split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def module_of(path):
    """The module below hvdlm that a file is: hvdlm/data/shards.py is data.shards, jobs/site.py jobs.site."""
    parts = name_of(path).removesuffix(".py").removeprefix("hvdlm/").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def house_imports(path):
    """The modules of ours that a file imports, as `module_of` names them, but for itself."""
    for module, name in imported_names(path):
        inside = module.removeprefix("hvdlm.")
        for found in (f"{inside}.{name}" if module != "hvdlm" else name, inside):
            if found in MODULES and found != module_of(path):
                yield found
                break


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_libraries_stay_in_their_homes(path):
    for module, _ in imported_names(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or name_of(path).startswith(tuple(homes)), f"{module} belongs to {homes}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_only_go_down(path):
    """Neither up, nor sideways between rooms of one floor, such as the stages."""
    own = module_of(path).split(".")[0]
    for module in house_imports(path):
        room = module.split(".")[0]
        is_down = room == own or FLOORS[room] < FLOORS[own]
        floors = f"of LAYERS {own} stands on floor {FLOORS[own]}, {room} on {FLOORS[room]}"
        assert is_down, f"{name_of(path)} imports {module}: {floors}"


def test_no_imports_run_in_a_circle():
    """Between files; not even inside functions."""
    ahead = {module_of(path): set(house_imports(path)) for path in SOURCES if module_of(path)}
    while free := {module for module, needs in ahead.items() if not needs & ahead.keys()}:
        ahead = {module: needs for module, needs in ahead.items() if module not in free}
    assert not ahead, f"these import each other, or stand on such: {ahead}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_edges_read_the_environment_and_the_command_line(path):
    """What a process was told from outside is known to cli, launch, world and doctor; the rest gets arguments."""
    name = name_of(path)
    is_edge = name in ("hvdlm/doctor.py", "hvdlm/__main__.py") or name.startswith(
        ("hvdlm/cli/", "hvdlm/launch/", "hvdlm/world/")
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert is_edge or (node.value.id, node.attr) not in {
                ("sys", "argv"),
                ("os", "environ"),
                ("os", "getenv"),
            }, name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert path.stem not in FORBIDDEN_NAMES
    if path.name == "__init__.py":  # a line on what lives there, and its face
        kinds = {type(node) for node in tree.body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Assign}, kinds
        assigned = {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
        assert assigned <= {"__all__", "__version__"}, assigned


def test_the_formatter_has_no_exceptions():
    for path in (*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")):
        assert "# fmt:" not in path.read_text().replace('"# fmt:"', ""), name_of(path)


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


def imported(path):
    name = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return importlib.import_module(name if name.startswith("hvdlm") else f"hvdlm.{name}")


IMPORTABLE = [path for path in SOURCES if path.stem != "__main__"]


@pytest.mark.parametrize("path", IMPORTABLE, ids=name_of)
def test_examples_in_docstrings_are_true(path):
    assert doctest.testmod(imported(path)).failed == 0


def patterns_in(value):
    """The compiled patterns in a module's dict, and in the lists, tuples and dicts there."""
    if isinstance(value, re.Pattern):
        yield value.pattern
    elif isinstance(value, dict):
        for pair in value.items():
            yield from patterns_in(pair)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from patterns_in(item)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there no such pattern can be compiled")
@pytest.mark.parametrize("path", IMPORTABLE, ids=name_of)
def test_patterns_can_be_compiled_by_python_3_10(path):
    """It has no possessive repeats (`*+`) and no atomic groups; all else of later versions mypy and ruff know."""
    for pattern in patterns_in(list(vars(imported(path)).values())):
        parsed = str(re._parser.parse(pattern))
        assert "POSSESSIVE_REPEAT" not in parsed, pattern
        assert "ATOMIC_GROUP" not in parsed, pattern
