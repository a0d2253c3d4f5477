"""Features of every layer, in one HDF5 file: made in one pass, resumed after any crash, verified byte by byte."""
