"""The two ways in which a command ends on purpose, and their exit codes."""

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
