"""The doctor on this installation, and on ones that are broken in a known way."""

import json
import sys

import pytest

from hvdlm import doctor
from hvdlm.errors import UserError
from hvdlm.launch import installation
from hvdlm.launch.known_errors import known_errors
from hvdlm.world.horovod import load_horovod


def test_this_installation_is_well(job):
    report = json.loads(job(0, "doctor", "--json").stdout.splitlines()[-1])
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "cores", "MPI", "h5py", "libmpi", "extras", "launchers", "interfaces"} < set(checks)
    assert "allreduce over mpi4py (2 ranks) and horovod (2 ranks)" in checks["2 ranks"]["detail"]
    assert "MPI" in checks["horovod"]["detail"]


def test_a_horovod_of_another_torch_is_named(tmp_path, monkeypatch):
    import horovod

    (tmp_path / "metadata.json").write_text('{"pytorch": "1.0.0"}')
    monkeypatch.setattr(horovod, "__file__", str(tmp_path / "__init__.py"))
    (check,) = list(doctor._horovod())
    assert not check.ok
    assert check.detail.startswith("was built for torch 1.0.0, this is ")


def test_a_library_of_an_extra_is_shown_and_its_lack_is_no_fault(monkeypatch):
    requires = ["numpy>=1", 'pyarrow>=14; extra == "text"', "sacrebleu<2.7,>=2.4; extra == 'tasks'"]
    requires += ['numpy>=1; extra == "tasks"', 'lm_eval<0.5; extra == "lm-eval"', 'nowhere; extra == "lint"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requires)
    for there in (True, False):
        monkeypatch.setattr(doctor, "_is_installed", lambda name, there=there: there or name != "sacrebleu")
        (check,) = doctor._extras()
        state = "complete" if there else "without sacrebleu (pip install 'hvdlm[tasks]')"
        assert check.ok and check.detail == (
            f"text (some formats and tokenizers) complete; tasks (BLEU and chrF) {state}; "
            "lm-eval (public benchmarks) complete"
        )


@pytest.mark.parametrize(("prefix", "remedy"), [("/checkout/.venv", "make setup"), ("/home/me/env", "pip install x")])
def test_the_remedy_is_one_that_this_installation_has(prefix, remedy, monkeypatch, tmp_path):
    root = tmp_path / "checkout"
    (root / "hvdlm").mkdir(parents=True)
    (root / "Makefile").touch()
    monkeypatch.setattr(installation, "__file__", str(root / "hvdlm" / "launch" / "installation.py"))
    monkeypatch.setattr(sys, "prefix", f"{tmp_path}{prefix}")
    assert installation.setup_remedy("pip install x") == remedy
    is_ours = remedy == "make setup"
    by_pip = "use a checkout of hvdlm, whose `make setup TORCH=cuda` builds Horovod"
    assert installation.horovod_remedy(for_gpus=True) == ("make setup TORCH=cuda" if is_ours else by_pip)
    cure = next(each.cure_here for each in known_errors() if each.name == "horovod-extension")
    assert cure.startswith("`make setup` builds it" if is_ours else "`make setup` (of a checkout of hvdlm) builds it")
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(UserError, match="make setup, or train" if is_ours else "use a checkout of hvdlm, whose"):
        load_horovod()


def test_ranks_that_do_not_come_up_are_a_line_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "start_command", lambda ranks, command, **options: ["false", "-np", "2"])
    seen, check = doctor._two_ranks()
    assert (seen, check.ok, check.detail) == ([], False, "false -np 2 failed: no output")


def test_without_mpirun_the_libraries_are_examined_all_the_same(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    well = doctor.Check("torch", True, "2.0")
    monkeypatch.setattr(doctor, "_libraries_alone", lambda: [well])
    checks = {check.name: check for check in doctor.examine()}
    assert checks["torch"] == well
    assert "no mpirun" in checks["launchers"].detail
    assert "no mpirun" in checks["2 ranks"].detail


def test_a_library_that_ends_its_process_is_named(monkeypatch):
    said = [{"begins": "torch"}, {"check": {"name": "torch", "ok": True, "detail": "2.0"}}, {"begins": "horovod"}]
    monkeypatch.setattr(doctor, "_listen", lambda command: (-6, said, "\nundefined symbol: MPI_Init\nmore"))
    torch, horovod = doctor._libraries_alone()
    assert torch.ok
    assert (horovod.name, horovod.ok) == ("horovod", False)
    assert horovod.detail == "ends the process with code -6: undefined symbol: MPI_Init"


def test_whatever_a_check_raises_is_its_result():
    def h5py():
        raise SystemError("half\ninstalled")
        yield

    (check,) = doctor._all_of(h5py)
    assert (check.name, check.ok, check.detail) == ("h5py", False, "half; installed")


def test_two_mpi_libraries_are_a_problem(monkeypatch):
    maps = "7f r-xp 0 /a/libmpi.so.40\n7f r-xp 0 /b/libmpi.so.12\n"
    monkeypatch.setattr(doctor.Path, "read_text", lambda self: maps)
    (check,) = list(doctor._one_libmpi())
    assert not check.ok
    assert "/a/libmpi.so.40, /b/libmpi.so.12" in check.detail


@pytest.mark.parametrize("ok", [True, False])
def test_the_text_ends_with_the_verdict(ok):
    text = doctor.to_text([doctor.Check("torch", True, "2.0"), doctor.Check("MPI", ok, "detail", "do this")])
    assert text.endswith("all is well" if ok else "1 of 2 checks failed")
    assert ("remedy: do this" in text) is not ok
