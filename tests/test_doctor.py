"""The doctor on this installation, and on ones that are broken in a known way."""

import json

import pytest

from hvdlm import doctor


def test_this_installation_is_well(job):
    report = json.loads(job(0, "doctor", "--json").stdout.splitlines()[-1])
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert "allreduce over mpi4py (2 ranks) and horovod (2 ranks)" in checks["2 ranks"]["detail"]
    assert "MPI" in checks["horovod"]["detail"]


def test_a_horovod_of_another_torch_is_named(tmp_path, monkeypatch):
    import horovod

    (tmp_path / "metadata.json").write_text('{"pytorch": "1.0.0"}')
    monkeypatch.setattr(horovod, "__file__", str(tmp_path / "__init__.py"))
    (check,) = list(doctor._horovod())
    assert not check.ok
    assert check.detail.startswith("was built for torch 1.0.0, this is ")
    assert check.remedy == "make setup"


def test_a_failed_hello_names_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "start_command", lambda ranks, command, **options: ["false", "-np", "2"])
    (check,) = list(doctor._hello_of_two())
    assert (check.ok, check.detail) == (False, "false -np 2 failed: no output")


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
