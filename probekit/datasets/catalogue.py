"""`load_dataset`: the table of data sets known by name, and how names, paths and arrays are told apart."""

import inspect
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from igpt_model.arguments import checked
from probekit.datasets import arrays, csv_list, folder, hub_datasets, npy, parquet, tars
from probekit.datasets.listing import expand
from probekit.datasets.parts import Found, assemble
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError, did_you_mean, explained
from probekit.runtime.imports import import_object
from probekit.runtime.written_options import read_values, split_options


@dataclass(frozen=True)
class Entry:
    """A data set known by name: a note, where to get it, and its loader ("" for the forms of `OWN`)."""

    name: str
    note: str
    where: str
    loader: str = ""
    needs_root: bool = True


EMBEDDED = "embedded (scikit-learn)"
IMAGENET = "image-net.org/download-images.php, with an account"
FETCH = "probekit datasets fetch"
ENTRIES = (
    Entry("digits", "1,797 handwritten digits, 8x8, 10 classes", EMBEDDED, "digits:load_centred", False),
    Entry(
        "wandering-digits", "digits in 4 greys, each at one place of 12x12", EMBEDDED, "digits:load_wandering", False
    ),
    Entry(
        "wandering-digits-25", "the same splits, training digits at all 25", EMBEDDED, "digits:load_wandering", False
    ),
    Entry(
        "fashion-mnist",
        "70,000 grey pictures of clothes, 28x28",
        f"{FETCH}, or dataset-fashion-mnist",
        "published:load_fashion",
    ),
    Entry("cifar10", "50,000 + 10,000 photographs, 32x32, 10 classes", FETCH, "published:load_cifar"),
    Entry("cifar100", "50,000 + 10,000 photographs, 32x32, 100 classes", FETCH, "published:load_cifar"),
    Entry("stl10", "5,000 + 8,000 photographs, 96x96, 10 classes", FETCH, "published:load_stl10"),
    Entry("imagenet32", "ImageNet at 32x32, 1,000 classes", IMAGENET, "published:load_imagenet"),
    Entry("imagenet64", "ImageNet at 64x64, 1,000 classes", IMAGENET, "published:load_imagenet"),
    Entry("openai-tokens", "the token arrays released with iGPT, 32x32", f"{FETCH} (CIFAR-10)", "openai_tokens:load"),
    Entry("folder", "images as SPLIT/CLASS/NAME or CLASS/NAME", "yours: FOLDER, FILE.zip, '*.zip'"),
    Entry("npz", "train_images, train_labels, test_images, ...", "yours: FILE.npz"),
    Entry("csv", "a table that lists images: path,label[,split]", "yours: FILE.csv"),
    Entry("parquet", "encoded images, as datasets writes them", "yours: FILE.parquet or FOLDER"),
    Entry("webdataset", "tars in webdataset's layout: KEY.jpg, KEY.cls", "yours: FILE.tar or FOLDER"),
)
FORMS = (
    "a folder or zip of images (SPLIT/CLASS/NAME)",
    "FILE.npz, FILE.npy or a folder of .npy arrays with labels.npy (CIFAR-10-C)",
    "FILE.csv (path,label[,split])",
    "FILE.parquet or a folder of them",
    "FILE.tar, 'train-{0000..0012}.tar' or a folder of them (webdataset)",
    "hf-data:NAME[:CONFIG]",
    "package.module:function",
)


@dataclass(frozen=True)
class Form:
    """A file format for the user's own data: the function that reads it, its suffixes, and a test for folders. Options
    of that function follow a #, as in birds.csv#label=species."""

    read: Callable[..., Found]
    suffixes: tuple[str, ...] = ()
    in_folder: Callable[[str], bool] = lambda path: False

    def means(self, path: str, files: Sequence[Path]) -> bool:
        """Whether `path` is a folder of this form, or one of the `files` that it expands to is."""
        if os.path.isdir(path):
            return self.in_folder(path)
        return any(file.name.lower().endswith(self.suffixes) and file.is_file() for file in files)


HUB = "hf-data:"
# tried in this order; the first match reads the file or folder
OWN: dict[str, Form] = {
    HUB: Form(hub_datasets.read, in_folder=hub_datasets.in_folder),
    "csv": Form(csv_list.read, (".csv", ".tsv")),
    "parquet": Form(parquet.read, (".parquet",), parquet.in_folder),
    "webdataset": Form(tars.read, tars.SUFFIXES, tars.in_folder),
    "npy": Form(npy.read, (".npy",), npy.in_folder),
    "npz": Form(arrays.read_npz, (".npz",)),
    "folder": Form(folder.read, (".zip",), os.path.isdir),
}
COMMON = {n for n, p in inspect.signature(assemble).parameters.items() if p.kind is p.KEYWORD_ONLY}


def list_datasets() -> list[Entry]:
    """The data sets known by name, in the order of the documentation."""
    return list(ENTRIES)


@checked
def load_dataset(
    source: Any, root: str | Path | None = None, tests: Mapping[str, Any] | None = None, **options: Any
) -> Dataset:
    """Load a labelled image data set.

    Parameters
    ----------
    source : str, path, tuple, dict or torch Dataset
        A name from `list_datasets()`; the path of an image folder, zip archive (or quoted glob of archives), .npz,
        .csv, .parquet or .tar; `hf-data:NAME[:CONFIG]`; `package.module:function`, a function that returns any of
        these or a data set class like torchvision's; `(images, labels)`, a torch Dataset, or a dict of them by split.
        Options may follow a path: `birds.parquet#label=species#image=photo`; those of the call come first.
    root : path, optional
        Folder (or file) of a data set known by name, for those that are not embedded.
    tests : mapping of name to source, optional
        Further test sets, each given like `source`: other images of the same classes, or of some of them. They become
        splits with these names (`probekit.datasets.shifted.with_tests`).
    **options
        Passed to the loader, for example `split_seed`, or `skip_corrupt=True` to leave out image files that cannot be
        decoded (they are listed in the provenance).

    Returns
    -------
    Dataset

    Raises
    ------
    UserError
        The name is unknown (the message lists the known ones), or the source cannot be read.
    """
    if tests:
        from probekit.datasets.shifted import with_tests

        further = {name: load_dataset(test) for name, test in tests.items()}
        return with_tests(load_dataset(source, root, **options), further)
    if not options.get("skip_corrupt", True):
        options.pop("skip_corrupt")
    if isinstance(source, Dataset):
        if options:
            raise UserError(f"{source.name} is already loaded and takes no option {', '.join(options)}; leave it out.")
        return source
    if not isinstance(source, str | Path):
        _check_options(arrays.load_objects, type(source).__name__, options, COMMON)
        return arrays.load_objects(source, **options)
    root = None if root is None else os.path.expanduser(str(root))
    text, written = split_options(str(source))
    options = written | options
    if not text.strip():
        raise UserError(f"An empty data set name was given; give {'; '.join(FORMS)}.")
    # names too long for a path, folders without permissions, files that disappear
    with explained(f"{text[:80]!r} cannot be read", "check the path and its permissions", OSError):
        for entry in ENTRIES:
            if entry.name == text:
                return _read_entry(entry, root, options)
        if (found := _read_path(text, root, options)) is not None:
            return found
    exists = os.path.exists(os.path.expanduser(text))
    if re.match(r"[A-Za-z]:[\\/]", text) and not exists:
        raise UserError(f"{text} does not exist; check the path.")
    if re.match(r"(igpt|hf|timm|torch|tokens|random):|(pixels|histogram)(:\d+)?$", text) and not exists:
        raise UserError(f"{text!r} is an encoder, not a data set; `probekit extract ENCODER DATASET` takes it first.")
    if ":" in text and not text.startswith("file:") and not exists:
        value = import_object(text)
        if callable(value):
            return load_dataset(arrays.call(value, text, root, options))
        return load_dataset(value, root, **options)
    known = ", ".join(entry.name for entry in ENTRIES)
    state = "is not in a supported format" if exists else "is neither a known name nor an existing path"
    hint = did_you_mean(text, [entry.name for entry in ENTRIES])
    raise UserError(f"The data set {text!r} {state}.{hint} Give {'; '.join(FORMS)}; or one of the names {known}.")


def _read_entry(entry: Entry, root: str | None, options: dict[str, Any]) -> Dataset:
    """Load a data set known by name."""
    if not entry.needs_root and root is not None:
        raise UserError(f"{entry.name} is embedded and takes no root, but root={root} was given; leave it out.")
    if not entry.loader:
        if root is None:
            raise UserError(f"No path was given for {entry.name}; pass root=PATH (on the command line --root).")
        return _read_form(entry.name, root, None, options)
    module, function = entry.loader.split(":")
    load: Callable[..., Dataset] = getattr(import_module(f"probekit.datasets.{module}"), function)
    _check_options(load, entry.name, options)
    return checked(load)(entry.name, **({"root": root} if entry.needs_root else {}), **options)


def _read_path(text: str, root: str | None, options: dict[str, Any]) -> Dataset | None:
    """Load a data set from a path or the Hugging Face hub; None if `text` is neither."""
    path = _as_on_disk(os.path.expanduser(text.removeprefix(HUB)))
    files = [] if os.path.isdir(path) else expand(path)
    on_hub = text.startswith(HUB)
    for kind in (HUB, "parquet") if on_hub else OWN:
        if OWN[kind].means(path, files):
            return _read_form(kind, path, root, options)
    return _read_form(HUB, path, root, options) if on_hub else None


def _as_on_disk(path: str) -> str:
    """`path`, or if it does not exist, with each part's accents as on the disk: one character or two (macOS)."""
    found = ""
    for part in () if os.path.exists(path) else Path(path).parts:
        forms = (os.path.join(found, unicodedata.normalize(form, part)) for form in ("NFC", "NFD"))
        found = next(filter(os.path.exists, (os.path.join(found, part), *forms)), "")
        if not found:
            break
    return found or path


def _read_form(kind: str, path: str, root: str | None, options: dict[str, Any]) -> Dataset:
    """Load a data set in one of the forms `OWN`, named after its path; `root` is the cache folder for hub data sets."""
    form, where = OWN[kind], HUB + path if kind == HUB else path
    title = path if kind != HUB or os.path.exists(path) else path.partition(":")[0]
    stem = re.split(r"[*?\[{]", Path(title.rstrip("/")).name)[0]
    for suffix in form.suffixes:
        stem = stem.removesuffix(suffix)
    _check_options(form.read, where, options, COMMON)
    own = {key: value for key, value in options.items() if key not in COMMON}
    found = checked(form.read)(path, **own | ({"root": root} if kind == HUB else {}))
    common = {key: options[key] for key in options.keys() & COMMON}
    return assemble(stem.rstrip("-_.") or Path(path).parent.name or kind, where, found, **common)


def _check_options(load: Callable[..., Any], text: str, options: dict[str, Any], more: Iterable[str] = ()) -> None:
    """Refuse options that `load` does not take, and parse the values of those written as text."""
    known = {*list(inspect.signature(load).parameters)[1:], *more} - {"root"}
    if strange := [name for name in options if name not in known]:
        raise UserError(f"The data set {text!r} takes no option {', '.join(strange)}; leave it out.")
    options.update(read_values(options))


def written_tests(
    texts: Any, root: str | Path | None = None, skip_corrupt: bool = False, decoding: Mapping[str, Any] | None = None
) -> tuple[dict, dict]:
    """Test sets and class maps from texts `NAME=DATASET[#classes=MAP.csv]`, for `with_tests`.

    `root` is passed to data sets known by name, as in `load_dataset`; `decoding` (exif, value_range) is the default for
    image files, which options of a text override (`NAME=FOLDER#exif=apply`).
    """
    from probekit.datasets.shifted import read_class_map

    tests, maps = {}, {}
    for text in texts:
        name, sign, spec = str(text).partition("=")
        if not (name and sign and spec):
            raise UserError(f"--test is {text!r}; expected NAME=DATASET, as in --test v2=imagenetv2.")
        if name in tests:
            raise UserError(f"Two test sets are named {name!r}; give each a different name.")
        place, options = split_options(spec)
        if "classes" in options:
            maps[name] = read_class_map(options.pop("classes"))
        spec = "#".join([place, *(f"{key}={value}" for key, value in options.items())])
        needs_root = any(entry.name == place and entry.needs_root for entry in ENTRIES)
        given: dict[str, Any] = {"root": root} if needs_root else {"skip_corrupt": True} if skip_corrupt else {}
        tests[name] = load_dataset(spec, **given)
        more = {key: value for key, value in (decoding or {}).items() if key not in options}
        if more and "decoding" in tests[name].provenance:
            tests[name] = load_dataset(spec, **given, **more)
    return tests, maps
