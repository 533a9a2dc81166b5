"""Labelled records: raw values become typed ones, and these ids and columns, for shards or for a model at once."""
