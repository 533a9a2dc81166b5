"""The two ways in which a command ends on purpose, and their exit codes."""

import errno
import re

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: asked to stop, the same command resumes


class UserError(ValueError):
    """Something only the user can mend; the message is one line: place, fault, remedy.

    `on_all_ranks` is true once every rank raises the same error, so that one of them may print it and
    all may leave MPI in peace.
    """

    on_all_ranks = False

    @classmethod
    def shared(cls, message: str) -> "UserError":
        """For an error that every rank raises, having come to it from the same numbers."""
        error = cls(message)
        error.on_all_ranks = True
        return error


class StoppedOnRequest(Exception):
    """The run was asked to stop, has saved its state, and resumes by the same command."""


def line_of(error: OSError, name: object) -> str:
    """What became of a file, as one line, with the remedy for a full disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "; make space and run the same command again" if full else ""
    return f"{name}: {error.strerror or str(error).splitlines()[0]}{remedy}"


_LACK_OF_MEMORY = re.compile(r"allocate memory|out of memory|Storage size calculation overflowed|array is too big")


def lack_of_memory(error: BaseException) -> UserError | None:
    """The one line for an error of numpy or torch that says that something is too large; None for any other."""
    if isinstance(error, UserError) or not (isinstance(error, MemoryError) or _LACK_OF_MEMORY.search(str(error))):
        return None
    tried = re.search(r"(?:allocate|tried to allocate) ([0-9.]+ ?[a-zA-Z]+)", str(error))
    how_much = f" ({tried[1]} at once)" if tried else ""
    return UserError(
        f"not enough memory{how_much}: make model.width, model.layers, train.micro_batch or data.seq_len smaller, or "
        "take a node or GPU with more"
    )
