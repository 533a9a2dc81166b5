"""`hvdlm infer`: what a model makes of each record of a file, by any number of ranks."""
