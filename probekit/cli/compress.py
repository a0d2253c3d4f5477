"""`probekit compress`: the same features in less space."""

from pathlib import Path

from probekit.cli.console import say


def compress(file: Path, /, *, method: str = "gzip", level: int | None = None, out: Path | None = None) -> None:
    """Rewrite a complete feature file in compressed chunks; features, id and checksums stay the same.

    Parameters
    ----------
    file
        The feature file.
    method
        gzip or lzf (readable with h5py alone), zstd or blosc2 (need `pip install hdf5plugin`).
    level
        How hard to compress: 1 to 9 for gzip, 1 to 22 for zstd, 0 to 9 for blosc2.
    out
        Where to write; over the original unless given.
    """
    from probekit.features.compress import compress as compress_file

    before = file.stat().st_size if file.exists() else 0
    written = compress_file(file, method, level, out).path
    after = written.stat().st_size
    say(f"{written}: {before:,} bytes became {after:,}")
