"""Raw text to tokenized HDF5 shards: documents, plan (which knows no rank), build (the MPI shell)."""
