"""Words of a command line of ours, for those who start one."""

from __future__ import annotations

from collections.abc import Iterable


def import_words(files: Iterable[str]) -> list[str]:
    """Files of a user's own families, tasks and syncs.

    >>> import_words(["a.py", "b.py"])
    ['--import', 'a.py', '--import', 'b.py']
    """
    return [word for file in files for word in ("--import", file)]
