"""Download published data sets: resumable, verified by checksum, and renamed into place only when complete."""

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from igpt_model.atomic import write_text
from probekit.datasets.openai_tokens import BASE as OPENAI
from probekit.datasets.published import CIFAR, FASHION, STL10, md5_of
from probekit.runtime.errors import UserError, did_you_mean

BLOCK = 1 << 20
TIMEOUT_S = 60
Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all


@dataclass(frozen=True)
class Remote:
    """One file to download, with its md5 if one was published."""

    url: str
    name: str
    md5: str | None = None


TORONTO = "https://www.cs.toronto.edu/~kriz/"
ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
REMOTES: dict[str, tuple[Remote, ...]] = {
    **{name: (Remote(TORONTO + pair[0].name, pair[0].name, pair[0].md5),) for name, pair in CIFAR.items()},
    "stl10": (Remote("http://ai.stanford.edu/~acoates/stl10/" + STL10.name, STL10.name, STL10.md5),),
    "fashion-mnist": tuple(Remote(f"{ZALANDO}{stem}.gz", f"{stem}.gz", md5s[0]) for stem, md5s in FASHION.items()),
    # no checksums were published for these
    "openai-tokens": (
        Remote(f"{OPENAI}color-clusters/kmeans_centers.npy", "kmeans_centers.npy"),
        *(
            Remote(f"{OPENAI}datasets/cifar10_{split}{kind}.npy", f"cifar10_{split}{kind}.npy")
            for split in ("tr", "va", "te")
            for kind in "XY"
        ),
    ),
}


def fetch(name: str, root: str | Path, progress: Progress | None = None) -> list[Path]:
    """Download a data set's files into `root`; files that are already there and correct are kept.

    `progress` is called with (file name, bytes so far, total bytes or None). Raises `UserError` if the data set cannot
    be fetched, a file is not the published one, or the download failed (the next call resumes it).
    """
    if name not in REMOTES:
        raise UserError(
            f"{name} cannot be fetched, but {', '.join(REMOTES)} can; `probekit datasets` lists sources of others."
            f"{did_you_mean(name, REMOTES)}"
        )
    return [download(remote, Path(os.path.expanduser(root)) / remote.name, progress) for remote in REMOTES[name]]


def download(remote: Remote, target: Path, progress: Progress | None = None) -> Path:
    """Download one file, resuming from `target`.partial if that exists."""
    if target.is_file():
        if remote.md5 is None or md5_of(target) == remote.md5:
            return target
        raise UserError(f"{target} exists but is not the published file; move it away and fetch again.")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(remote, partial, progress)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", None) or error
        raise UserError(f"{remote.url} could not be fetched ({why}); the next try resumes where it stopped.") from error
    except OSError as error:
        raise UserError(f"{target} could not be written ({error.strerror or error}); choose another --root.") from error
    if remote.md5 is not None and (found := md5_of(partial)) != remote.md5:
        _etag(partial).unlink(missing_ok=True)
        partial.unlink()
        raise UserError(f"{remote.url} gave a file with md5 {found} instead of {remote.md5}; download it again.")
    os.replace(partial, target)
    _etag(partial).unlink(missing_ok=True)
    return target


def _etag(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def _receive(remote: Remote, partial: Path, progress: Progress | None) -> None:
    start = partial.stat().st_size if partial.is_file() else 0
    version = _etag(partial).read_text() if _etag(partial).is_file() else None
    if start and not version and not remote.md5:
        start = 0  # without either, a change of the file between the two parts would go unnoticed
    request = urllib.request.Request(remote.url, headers={"User-Agent": "igpt-probekit"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # nothing left to send: the partial file is complete, or from another version, which the checksum detects
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return None
        partial.unlink()
        return _receive(remote, partial, progress)
    with response:
        if response.status != 206:
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if response.headers.get("ETag"):
            write_text(_etag(partial), response.headers["ETag"])
        if total is not None and shutil.disk_usage(partial.parent).free < total - start:
            raise UserError(
                f"{partial.parent} has too little space for {remote.name} ({total - start} bytes needed); free some, "
                "or choose another --root."
            )
        with open(partial, "ab" if start else "wb") as file:
            done = start
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                if progress:
                    progress(remote.name, done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")
    return None
