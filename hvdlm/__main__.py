"""`python -m hvdlm` is the command `hvdlm`."""

from hvdlm.cli import main

main()
