"""The parts of the set-up script that decide something."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("setup_env", Path(__file__).parent.parent / "scripts" / "setup_env.py")
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)


@pytest.mark.parametrize(
    ("guard", "standard"), [("< 201402L", 14), ("< 201703L", 17), ("< 202002L", 20), ("is not asked for", 17)]
)
def test_the_standard_comes_from_the_headers(guard, standard):
    assert setup_env.cxx_standard(f"#if !defined(_MSC_VER) && __cplusplus {guard}") == standard


def test_the_standard_of_the_installed_torch():
    import torch

    header = Path(torch.__file__).parent / "include/ATen/ATen.h"
    assert setup_env.cxx_standard(header.read_text()) in (17, 20)


def test_horovod_is_patched_where_it_must_be(tmp_path):
    files = {
        "CMakeLists.txt": "set(CMAKE_CXX_STANDARD 14)\n",
        "horovod/torch/CMakeLists.txt": "set(CMAKE_CXX_STANDARD 14)\n",
        "horovod/common/ops/cuda/CMakeLists.txt": "set(CMAKE_CUDA_STANDARD 11)\n",
        "horovod/runner/mpi_run.py": "_NO_BINDING_ARGS = ['-bind-to none', '-map-by slot']\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    setup_env.patch_horovod(tmp_path, 20)
    *cxx, cuda, runner = [(tmp_path / name).read_text() for name in files]
    assert cxx == ["set(CMAKE_CXX_STANDARD 20)\n"] * 2
    assert cuda == "set(CMAKE_CUDA_STANDARD 17)\n"
    assert runner == "_NO_BINDING_ARGS = ['--bind-to none', '--map-by slot']\n"


def test_another_horovod_is_not_patched_silently(tmp_path):
    for name in ("CMakeLists.txt", "horovod/torch/CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# nothing to set\n")
    with pytest.raises(setup_env.SetupError, match="has no C\\+\\+ standard to set"):
        setup_env.patch_horovod(tmp_path, 17)


def test_a_failing_step_says_what_mends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "LOGS", tmp_path)
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    with pytest.raises(setup_env.SetupError, match=r"thing failed \(whole log: thing.log\); do this"):
        setup_env.run("thing", ["sh", "-c", "echo the reason; exit 3"], remedy="do this")
    assert "the reason" in capsys.readouterr().err
