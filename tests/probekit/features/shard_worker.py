"""One rank of a two-process extraction: python shard_worker.py OUT [refused|shared], with torchrun's environment."""

import sys
from dataclasses import replace

from feature_fakes import LinearEncoder, dataset

from probekit.features.extract import extract
from probekit.runtime.errors import UserError

if __name__ == "__main__":
    data, case = dataset(), sys.argv[2:]
    if case == ["shared"]:
        test = replace(data.splits["train"], row_ids=data.splits["train"].row_ids + 100)
        data = replace(data, splits={**data.splits, "test": test})
    try:
        extract(LinearEncoder(), data, sys.argv[1], batch_size=8)
    except UserError as error:
        if case != ["refused"]:
            raise
        sys.stderr.write(f"{error}\n")
