"""A run's life outside its numbers: how it is stopped, watched and logged."""
