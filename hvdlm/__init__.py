"""hvdlm trains language models with MPI and Horovod on HPC clusters."""

__version__ = "0.1.0"
