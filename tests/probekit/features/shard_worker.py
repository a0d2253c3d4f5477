"""One rank of a two-process extraction: python shard_worker.py OUT, with the environment that torchrun sets."""

import sys

from feature_fakes import LinearEncoder, dataset

from probekit.features.extract import extract

if __name__ == "__main__":
    extract(LinearEncoder(), dataset(), sys.argv[1], batch_size=8)
