"""Locate a published data set's files under a root: in an extracted folder, or inside the official archive."""

import hashlib
import shlex
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt_model.checked_json import open_regular, read_bytes
from igpt_model.hashing import hash_file
from probekit.runtime.errors import UserError, first_line


@dataclass(frozen=True)
class Archive:
    """A published archive: its file name, md5, and the folder that it contains."""

    name: str
    md5: str
    folder: str


@dataclass(frozen=True)
class Files:
    """A data set's files, in an extracted folder or in an archive."""

    place: Path
    archive: Archive | None

    def read(self, *names: str) -> list[bytes]:
        """Contents of the named files."""
        if self.archive is None:
            missing = [name for name in names if not (self.place / name).is_file()]
            if missing:
                raise UserError(f"{self.place} lacks {', '.join(missing)}; extract the official archive again.")
            return [read_bytes(self.place / name, 4 << 30) for name in names]
        try:
            with tarfile.open(self.place, "r:*") as tar:
                found: dict[str, bytes] = {}
                for member in tar:  # one pass: compressed archives do not allow random access
                    name = member.name.rpartition("/")[2]
                    if name in names and name not in found and member.isfile():
                        content = tar.extractfile(member)
                        assert content is not None
                        found[name] = content.read()
                while tar.fileobj.read(1 << 20):  # gzip verifies its checksum at the end, which tarfile does not reach
                    pass
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.place} is not a complete archive ({first_line(error)}); download it again."
            ) from error
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(f"{self.place} lacks {', '.join(missing)}; download the official archive again.")
        return [found[name] for name in names]

    def provenance(self, *names: str, verify: bool = True) -> dict[str, Any]:
        """Path and checksums; an archive's md5 is compared with the published one."""
        if self.archive is None:
            hashes = {name: hash_file(self.place / name) for name in names if (self.place / name).is_file()}
            return {"path": str(self.place), "checksums": hashes}
        md5 = md5_of(self.place)
        if verify and md5 != self.archive.md5:
            raise UserError(
                f"{self.place} has md5 {md5}, but the published archive has {self.archive.md5}; download it again "
                "(verify=False skips this check)."
            )
        return {"path": str(self.place), "md5": md5, "official": md5 == self.archive.md5}


def md5_of(path: str | Path) -> str:
    """The md5 of a file, the checksum published for older data sets."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fetch_command(name: str, root: str | Path) -> str:
    """The command that downloads a data set, for messages, with the path quoted for a shell."""
    return f"`probekit datasets fetch {name} --root {shlex.quote(str(root))}`"


def not_found(name: str) -> UserError:
    """The error for a data set known by name when no folder was given."""
    return UserError(f"{name} not found. Run `probekit datasets fetch {name} --root DIR`, then pass `--root DIR`.")


def locate(
    name: str, root: str | Path | None, archives: Sequence[Archive], markers: Sequence[str]
) -> tuple[Files, str]:
    """The extracted folder or archive under `root`, and its marker. Each archive has one marker: a file that identifies
    its extracted folder."""
    if root is None:
        raise not_found(name)
    root = Path(root)
    for archive, marker in zip(archives, markers, strict=True):
        for folder in (root, root / archive.folder):
            if (folder / marker).is_file():
                return Files(folder, None), marker
    for archive, marker in zip(archives, markers, strict=True):
        for path in (root, root / archive.name):
            if path.name == archive.name and path.is_file():
                return Files(path, archive), marker
    names = " or ".join(archive.name for archive in archives)
    raise UserError(
        f"{root} does not contain {name} ({names}, or its extracted files); fetch it with {fetch_command(name, root)}."
    )
