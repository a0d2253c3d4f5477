"""The palette converts RGB pixels to tokens and back; pixels are scaled only here.

Pixels are scaled to [-1, 1] (`x / 127.5 - 1`); a pixel's token is its nearest centre by squared distance, as in the
released code. Letters in shapes: B images, P pixels per side, T = P*P tokens, V colours, N pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.arguments import checked, plain_array
from igpt_model.atomic import write_bytes
from igpt_model.errors import UserError
from igpt_model.hashing import hash_arrays
from igpt_model.ranges import Range, check_at_least, check_range
from igpt_model.whole_files import load_npy

_SAMPLE = 1 << 17  # pixels for k-means; on CIFAR-10 twice or half as many change the error by 1 %, as the seed does
_EDGE = 16  # the table of all 2^24 colours is filled on demand in cubes of 16 x 16 x 16
_UNKNOWN = 65535  # marks unfilled entries of the table; also the last index of the largest possible palette
_AT_ONCE = 1 << 17  # pixels per block, so that their table addresses stay in the cache until they are used


def to_unit(colours: np.ndarray) -> np.ndarray:
    """Scale uint8 colours to [-1, 1], in float64."""
    return np.asarray(colours, np.float64) / 127.5 - 1.0


class Palette:
    """A palette of V colours; encodes images to tokens exactly and decodes tokens to images.

    Parameters
    ----------
    centres_V3 : array (V, 3)
        The colours, RGB in [-1, 1], kept as float32. V may be 1 to 65,536.
    """

    def __init__(self, centres_V3: Any) -> None:
        centres = plain_array(centres_V3, "the centres of a palette").astype(np.float32)
        if centres.ndim != 2 or centres.shape[1] != 3 or not 1 <= len(centres) <= 1 << 16:
            raise UserError(f"The centres have shape {centres.shape}; a palette needs (V, 3) with 1 <= V <= 65536.")
        if not np.isfinite(centres).all() or np.abs(centres).max() > 1.001:
            raise UserError("Palette centres must be finite and within [-1, 1]; scale RGB values by x / 127.5 - 1.")
        centres.setflags(write=False)
        self.centres_V3 = centres
        self._table: np.ndarray | None = None
        self._filled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.centres_V3)

    def __repr__(self) -> str:
        return f"Palette({len(self)} colours, {self.hash[:8]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Palette) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __getstate__(self) -> dict[str, Any]:
        # only the centres are pickled; the table has 32 MB and is rebuilt on demand
        return {"centres_V3": self.centres_V3, "_table": None, "_filled": None}

    @property
    def hash(self) -> str:
        """Hash of the centres, 32 hexadecimal digits."""
        return hash_arrays({"centres": self.centres_V3})

    @classmethod
    @checked
    def fit(cls, images: Any, n_colours: int, seed: int = 0, sample: int = _SAMPLE) -> "Palette":
        """Cluster pixels by seeded k-means (k-means++ start, Lloyd iterations; scikit-learn).

        Images with at most `n_colours` distinct colours get exactly those colours; if there are fewer, the palette is
        padded with copies of the last colour, which no pixel is assigned to.

        Parameters
        ----------
        images : uint8 array (N, H, W, 3) or a list of (H, W, 3)
        n_colours : int
            Number of colours V; 512 is the paper's 9 bits.
        seed : int
            Of the pixels that are drawn and of k-means.
        sample : int
            Number of pixels drawn without replacement, if there are more. The paper does not state its number.

        Returns
        -------
        Palette
            Colours sorted from dark to bright.
        """
        if not 1 <= n_colours <= 1 << 16:
            raise UserError(f"n_colours is {n_colours}; give a number from 1 to 65536.")
        check_at_least(sample=(sample, 1))
        check_range("seed", seed, Range(0))
        packed, counts = _count_colours(images, n_colours, seed, sample)
        colours = np.stack([packed >> 16, (packed >> 8) & 255, packed & 255], 1).astype(np.uint8)
        if len(colours) <= n_colours:
            centres = np.concatenate([colours, np.repeat(colours[-1:], n_colours - len(colours), 0)])
            centres_V3 = to_unit(centres)
        else:
            from sklearn.cluster import KMeans
            from threadpoolctl import threadpool_limits

            state = int(np.random.default_rng([seed, 512]).integers(2**32))
            with threadpool_limits(1):  # several threads would add their parts in varying order
                kmeans = KMeans(n_colours, n_init=1, max_iter=100, random_state=state)
                centres_V3 = kmeans.fit(to_unit(colours), None, counts).cluster_centers_
        order = np.argsort(centres_V3.sum(1), kind="stable")
        return cls(centres_V3[order])

    @classmethod
    @checked
    def rgb_grid(cls, n: int) -> "Palette":
        """Return a fixed palette of n evenly spread colours, for models without training images.

        If n is a cube (8, 27, 64, 512, ...) it is the regular grid, otherwise a Weyl sequence with irrational
        steps.
        """
        if not 1 <= n <= 1 << 16:
            raise UserError(f"n is {n}; give a number of colours from 1 to 65536.")
        side = round(n ** (1 / 3))
        if side**3 == n:
            axis = np.linspace(-1, 1, side) if side > 1 else np.zeros(1)
            return cls(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3))
        golden = 1.2207440846057596  # the root of x^4 = x + 1: the three-dimensional golden ratio
        steps = golden ** -np.arange(1.0, 4.0)
        return cls(2 * ((0.5 + np.arange(n)[:, None] * steps) % 1.0) - 1)

    @checked
    def encode(self, images_BHW3: Any) -> np.ndarray:
        """Map each pixel to the index of its nearest colour; ties go to the lowest index.

        Distances are float64 sums of squares in [-1, 1], cached in a table over all 2^24 colours that is filled on
        demand, so the result does not depend on the batch.

        Parameters
        ----------
        images_BHW3 : uint8 array (B, H, W, 3)

        Returns
        -------
        uint16 array (B, H*W), raster order
        """
        images = plain_array(images_BHW3, "images")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"The images are {images.dtype} {images.shape}; expected uint8 (B, H, W, 3).")
        if self._table is None or self._filled is None:
            self._table = np.full((256, 256, 256), _UNKNOWN, np.uint16)
            self._filled = np.zeros((256 // _EDGE,) * 3, bool)
        tokens = np.empty((len(images), images.shape[1] * images.shape[2]), np.uint16)
        flat, pixels_N3 = tokens.reshape(-1), np.ascontiguousarray(images).reshape(-1, 3)
        table, places = self._table.reshape(-1), np.empty(min(_AT_ONCE, len(flat)), np.intp)
        for start in range(0, len(flat), _AT_ONCE):
            found = flat[start : start + _AT_ONCE]
            address = _address(pixels_N3[start : start + _AT_ONCE], places[: len(found)])
            # all addresses are in range; "wrap" avoids the copy that NumPy makes to check them
            np.take(table, address, out=found, mode="wrap")
            if found.max() == _UNKNOWN:
                unknown = np.flatnonzero(found == _UNKNOWN)
                self._fill(address[unknown])
                found[unknown] = table[address[unknown]]
        return tokens

    def _fill(self, address: np.ndarray) -> None:
        """Fill the cubes that contain these colours."""
        assert self._table is not None
        assert self._filled is not None
        touched = np.zeros_like(self._filled)
        touched[(address >> 16) // _EDGE, ((address >> 8) & 255) // _EDGE, (address & 255) // _EDGE] = True
        nearest, tokens = np.empty((_EDGE,) * 3), np.empty((_EDGE,) * 3, np.uint16)
        all_3V = np.ascontiguousarray(self.centres_V3.T, np.float64)
        for blue, green, red in np.argwhere(touched & ~self._filled).tolist():
            corner = np.array([red, green, blue]) * _EDGE
            index, centres_3V = _candidates(all_3V, corner, _EDGE)
            axis = to_unit(corner[:, None] + np.arange(_EDGE))
            r, g, b = (axis[:, None, :] - centres_3V[:, :, None]) ** 2
            red_and_green = r[:, None, :] + g[:, :, None]
            nearest.fill(np.inf)
            for token, b_B, rg_GR in zip(index, b, red_and_green, strict=True):
                distance = rg_GR + b_B[:, None, None]
                # strictly nearer, so that ties keep the lower index
                np.copyto(tokens, token, where=distance < nearest, casting="unsafe")
                np.minimum(nearest, distance, out=nearest)
            places = tuple(slice(at * _EDGE, (at + 1) * _EDGE) for at in (blue, green, red))
            self._table[places] = tokens
            self._filled[blue, green, red] = True

    @checked
    def decode(self, tokens_BT: Any, resolution: int | None = None) -> np.ndarray:
        """Turn tokens into images: `rint(127.5 * (c + 1))` of each token's colour.

        Parameters
        ----------
        tokens_BT : integer array or tensor (B, T)
        resolution : int, optional
            Pixels per side; the square root of T if not given.

        Returns
        -------
        uint8 array (B, P, P, 3)
        """
        tokens = plain_array(tokens_BT, "tokens")
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise UserError(f"The tokens are {tokens.dtype} {tokens.shape}; expected integers of shape (B, T).")
        side = resolution or round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise UserError(f"{tokens.shape[1]} tokens do not make a square image of {side} pixels per side.")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise UserError(f"Tokens run from {tokens.min()} to {tokens.max()}; the palette has {len(self)} colours.")
        colours = np.clip(np.rint(127.5 * (self.centres_V3.astype(np.float64) + 1)), 0, 255).astype(np.uint8)
        return colours[tokens].reshape(len(tokens), side, side, 3)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the centres as a safetensors file, atomically."""
        from safetensors.numpy import save

        write_bytes(path, save({"centres": self.centres_V3}))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Palette":
        """Read a palette written by `save`, or a `.npy` file of centres (V, 3) in [-1, 1] such as OpenAI's."""
        from safetensors.numpy import load_file

        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; give the path of a palette.")
        if Path(path).suffix == ".npy":
            return cls(load_npy(path))
        try:
            centres = load_file(path)["centres"]
        except Exception as error:
            raise UserError(f"{path} is not a palette in safetensors or npy format ({str(error)[:200]}).") from error
        return cls(centres)


def _candidates(centres_3V: np.ndarray, corner: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the centres that may be nearest to a colour in a cube, and these centres (3, n).

    A centre is excluded if its smallest distance to the cube exceeds the largest distance of another centre.
    """
    low = centres_3V - to_unit(corner)[:, None]
    high = centres_3V - to_unit(corner + edge - 1)[:, None]
    nearest = (np.maximum(0, np.maximum(-low, high)) ** 2).sum(0)
    farthest = (np.maximum(np.abs(low), np.abs(high)) ** 2).sum(0)
    keep = np.flatnonzero(nearest <= farthest.min() + 1e-9)
    return keep, centres_3V[:, keep]


def _address(pixels_N3: np.ndarray, address: np.ndarray) -> np.ndarray:
    """Fill `address`, intp (N,), with each colour's index in the table: red in the low byte, then green, then blue."""
    before_last = address[:-1]
    # the four bytes from a pixel's red, of which the highest is the next pixel's red
    before_last[:] = np.ndarray(len(before_last), "<u4", np.ascontiguousarray(pixels_N3), strides=(3,))
    before_last &= 0xFFFFFF
    red, green, blue = pixels_N3[-1].tolist()
    address[-1] = red | (green << 8) | (blue << 16)
    return address


def _count_colours(images: Any, n_colours: int, seed: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct colours (packed RGB) and their counts, in all images if there are few colours, else in the sample."""
    rng = np.random.default_rng([seed, 511])
    listed = hasattr(images, "__iter__") or hasattr(images, "__getitem__")
    if not listed or getattr(images, "ndim", 1) == 0:
        raise UserError(f"images is of type {type(images).__name__}; give an array of uint8 RGB images.")
    several = [images] if isinstance(images, np.ndarray) else images
    given = [plain_array(image, "an image of a palette") for image in several]
    pictures = all(image.dtype == np.uint8 and image.shape[-1:] == (3,) for image in given)
    if not pictures or not sum(image.size for image in given):
        raise UserError("A palette is fitted to uint8 RGB images, at least one of them.")
    place = np.array([1 << 16, 1 << 8, 1], np.int32)
    packed = np.concatenate([image.reshape(-1, 3).astype(np.int32) @ place for image in given])
    counts = np.bincount(packed)
    if np.count_nonzero(counts) > n_colours and len(packed) > sample:
        drawn = np.bincount(packed[rng.choice(len(packed), sample, replace=False, shuffle=False)])
        if np.count_nonzero(drawn) > n_colours:  # else rare colours were left out: cluster all of them instead
            counts = drawn
    colours = np.flatnonzero(counts)
    return colours, counts[colours].astype(np.float64)
