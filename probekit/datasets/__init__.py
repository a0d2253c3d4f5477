"""Labelled images by name, path or arrays."""

from probekit.datasets.catalogue import list_datasets, load_dataset
from probekit.datasets.records import Dataset, Split, Splits
from probekit.datasets.splits import stratified_holdout

__all__ = ["Dataset", "Split", "Splits", "list_datasets", "load_dataset", "stratified_holdout"]
