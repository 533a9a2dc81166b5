"""A model over several ranks: the mesh, layers over ranks, the pipeline's schedule and executor."""
