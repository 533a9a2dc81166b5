"""Files that appear whole or not at all, and what is written into them."""

import errno
import json
import math
import os

import numpy as np
import pytest

from hvdlm.data.manifest import ShardEntry
from hvdlm.files import read_json, read_text, sync_folder, to_json, write_text_durably


def test_json_has_null_for_what_is_not_finite():
    """RFC 8259 has no NaN: other programs refuse it."""
    value = {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": np.float64("nan")}, "e": "NaN", "f": 7}
    expected = {"a": None, "b": [None, [1.5, None]], "c": {"d": None}, "e": "NaN", "f": 7}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected
    assert to_json({"a": 0.1}, indent=1) == json.dumps({"a": 0.1}, indent=1)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    """A pipe or a device would be read for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match="is no regular file"):
            read_text(tmp_path / name)
    (tmp_path / "text").write_text("äb")
    (tmp_path / "link").symlink_to("text")
    assert read_text(tmp_path / "link", limit=3) == "äb"
    with pytest.raises(ValueError, match="larger than 2 bytes"):
        read_text(tmp_path / "text", limit=2)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "\ufeff{}", '{"a": 1} b'])
def test_json_that_is_none_is_a_value_error(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file")


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error: '.*/file'$"):
        write_text_durably(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_at_all_is_no_fault(tmp_path, monkeypatch, number):
    """As on some network file systems; a real error is one."""

    def refuse(file):
        raise OSError(number, "no such call")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


@pytest.mark.parametrize("name", ["../x.h5", "/etc/x.h5", "a/b.h5", ".h5", "x", "..", "a\n.h5"])
def test_a_shards_name_is_never_a_path(name):
    with pytest.raises(ValueError, match="file"):
        ShardEntry(file=name, num_tokens=1, num_documents=1, num_bytes=1, checksum="")
