"""Features of every layer in one HDF5 file: extracted in one pass, resumable after a crash, checksummed throughout."""
