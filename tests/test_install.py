"""`pip install .` in a plain venv, without make, MPI and Horovod: what works there, and what says why it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from harness import ROOT, make_text, preprocess_values, run_values, write_config
from test_report import make_record

from hvdlm.perf.record import write_record

SOURCES = ("hvdlm", "preprocessing", "perf", "jobs", "tests", "setup.py", "pyproject.toml")
HIDDEN = ("mpi4py", "horovod", "hvdlm", "__editable__")
# An h5py that was built for parallel HDF5 asks for mpi4py when it is loaded, one from PyPI does not.
LEND_MPI4PY_TO_H5PY = """
import sys
sys.path += {folders}
import h5py
sys.path = [folder for folder in sys.path if folder not in {folders}]
for name in [name for name in sys.modules if name.split(".")[0] == "mpi4py"]:
    del sys.modules[name]
"""


def pip(*words: str | Path) -> None:
    quiet = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*quiet, *map(str, words)], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder in what it builds, and packs what an earlier build left there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source")
    (found,) = folder.glob("hvdlm-*.whl")
    return found


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the wheel and this environment's libraries but those of HIDDEN; nothing is downloaded."""
    home = tmp_path_factory.mktemp("plain")
    venv.create(home, symlinks=True)
    pip("--python", home / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = home.glob("lib/python*/site-packages")
    lenders = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    borrowed = home / "borrowed"
    borrowed.mkdir()
    for path in (path for lender in lenders for path in lender.iterdir()):
        if not path.name.startswith(HIDDEN) and path.suffix != ".pth" and not (borrowed / path.name).exists():
            (borrowed / path.name).symlink_to(path)
    (packages / "lend_mpi4py.py").write_text(LEND_MPI4PY_TO_H5PY.format(folders=[str(path) for path in lenders]))
    (packages / "borrowed.pth").write_text(f"{borrowed}\nimport lend_mpi4py\n")
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder but for texts and configs."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "texts").mkdir()
    for number in range(20):
        (folder / "texts" / f"{number}.txt").write_text(make_text(number, 300), encoding="utf-8")
    write_config(folder / "data.yaml", preprocess_values("texts", Path("data")))
    write_config(folder / "run.yaml", run_values(Path("data"), Path("run")))
    return folder


def hvdlm(plain: Path, folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The installed command: no program but the venv's is on PATH, so there is no mpirun."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = str(plain / "bin")
    command = [plain / "bin" / "hvdlm", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
    return done


def test_the_wheel_has_what_is_read_beside_the_code_and_no_tests(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    data = {path for path in ROOT.glob("*/**/*") if path.suffix in (".j2", ".rules") or path.parent.name == "sites"}
    data = {path.relative_to(ROOT) for path in data if path.parts[len(ROOT.parts)] in SOURCES}
    assert len(data) > 10
    for path in data:
        assert (path if path.parts[0] == "hvdlm" else "hvdlm" / path).as_posix() in packed
    assert {name.split("/")[0] for name in packed if "dist-info" not in name} == {"hvdlm"}
    assert not [name for name in packed if "test" in name.split("/")[-1].split("_")]


def test_one_process_does_the_whole_way(plain, folder):
    assert "preprocess" in hvdlm(plain, folder, "--help").stdout
    assert "20 documents" in hvdlm(plain, folder, "preprocess", "data.yaml").stdout
    trained = hvdlm(plain, folder, "train", "run.yaml", "world=serial", "train.steps=4", "--json")
    assert json.loads(trained.stdout)["step"] == 4
    (folder / "records").mkdir()
    for ranks in (1, 2):
        write_record(folder / "records", make_record(ranks, 24, 0, 1.0))
    hvdlm(plain, folder, "report", ".")
    assert (folder / "report.html").stat().st_size > 1000
    assert "generic-cpu" in hvdlm(plain, folder, "sites").stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["train", "run.yaml", "world=mpi"], "mpi4py cannot load an MPI (No module named 'mpi4py')"),
        (["train", "run.yaml", "world=horovod"], "Horovod cannot be imported (No module named 'horovod')"),
        (["train", "run.yaml", "sync.kind=horovod"], "sync: horovod needs world: horovod, this is serial"),
        (["scale", "run.yaml"], "no mpirun beside this Python or on PATH"),
        (["launch", "-np", "2", "--", "train", "run.yaml"], "--launcher auto: not found here"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_what_needs_mpi_or_horovod_says_so_in_a_line(plain, folder, words, error):
    said = hvdlm(plain, folder, *words, code=2).stderr.splitlines()
    assert said[-1].startswith(f"hvdlm: error: {error}")
    assert not any("error" in line or "Traceback" in line for line in said[:-1])


def test_the_doctor_examines_what_is_there(plain, folder):
    said = hvdlm(plain, folder, "doctor", code=1).stdout
    assert "ok   torch" in said
    assert "BAD  horovod" in said
