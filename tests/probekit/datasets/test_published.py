"""Published formats: tiny files written here in the official layout, read back and compared."""

import gzip
import io
import pickle
import shlex
import struct
import tarfile

import numpy as np
import pytest

from igpt_model.palette import Palette
from probekit.datasets import list_datasets, load_dataset
from probekit.datasets.fetch import REMOTES
from probekit.datasets.images import hash_image
from probekit.datasets.published import DEBIAN
from probekit.datasets.restricted_pickle import loads
from probekit.runtime.errors import UserError

RNG = np.random.default_rng(0)


def batch(n, n_classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % n_classes


def planar(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def packed(folder, target):
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, folder.name)


def same(split, images, labels):
    assert np.array_equal(np.stack(split.images(0, len(split))), images[split.row_ids])
    assert np.array_equal(split.labels, labels[split.row_ids])


def write_cifar10(root, kind):
    parts = {f"data_batch_{i}": batch(20, 10, i) for i in range(1, 6)} | {"test_batch": batch(20, 10, 9)}
    folder = root / ("cifar-10-batches-py" if kind == "python" else "cifar-10-batches-bin")
    folder.mkdir()
    for name, (images, labels) in parts.items():
        if kind == "python":
            value = {"data": planar(images), "labels": labels.tolist(), "batch_label": "one"}
            (folder / name).write_bytes(pickle.dumps(value, protocol=2))
        else:
            records = np.concatenate([labels[:, None].astype(np.uint8), planar(images)], 1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    train = [parts[f"data_batch_{i}"] for i in range(1, 6)]
    return folder, np.concatenate([t[0] for t in train]), np.concatenate([t[1] for t in train]), parts["test_batch"]


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar10(tmp_path, kind):
    folder, images, labels, test = write_cifar10(tmp_path, kind)
    archive = tmp_path / "packed" / f"cifar-10-{kind}.tar.gz"
    archive.parent.mkdir()
    packed(folder, archive)
    ids = set()
    for root in (tmp_path, folder, archive, archive.parent):
        data = load_dataset("cifar10", root=root, verify=False)
        assert [len(data.splits[s]) for s in data.splits] == [90, 10, 20]
        same(data.splits["train"], images, labels)
        same(data.splits["val"], images, labels)
        same(data.splits["test"], *test)
        ids.add(data.splits["train"].id)
    assert len(ids) == 1
    with pytest.raises(UserError, match="md5"):
        load_dataset("cifar10", root=archive)
    assert data.classes[6] == "frog"


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("level", ["fine", "coarse"])
def test_cifar100(tmp_path, kind, level):
    images, fine = batch(300, 100, 0)
    coarse = fine // 5
    folder = tmp_path / ("cifar-100-python" if kind == "python" else "cifar-100-binary")
    folder.mkdir()
    names = {"fine": [f"f{k}" for k in range(100)], "coarse": [f"c{k}" for k in range(20)]}
    for split in ("train", "test"):
        if kind == "python":
            value = {"data": planar(images), "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            (folder / split).write_bytes(pickle.dumps(value, protocol=2))
        else:
            heads = np.stack([coarse, fine], 1).astype(np.uint8)
            (folder / f"{split}.bin").write_bytes(np.concatenate([heads, planar(images)], 1).tobytes())
    if kind == "python":
        meta = {f"{key}_label_names": value for key, value in names.items()}
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    else:
        for key, value in names.items():
            (folder / f"{key}_label_names.txt").write_text("\n".join(value) + "\n")
    data = load_dataset("cifar100", root=tmp_path, labels=level)
    same(data.splits["train"], images, fine if level == "fine" else coarse)
    assert data.classes == tuple(names[level])


def test_cifar10_by_name_from_a_pair_of_zips(tmp_path):
    import zipfile

    from PIL import Image

    images, labels = batch(40, 2, 0)
    for split, rows in (("train", range(30)), ("test", range(30, 40))):
        with zipfile.ZipFile(tmp_path / f"cifar10-{split}.zip", "w") as archive:
            for i in rows:
                buffer = io.BytesIO()
                Image.fromarray(images[i]).save(buffer, "png")
                archive.writestr(f"{split}/{'ab'[labels[i]]}/{i:02d}.png", buffer.getvalue())
    data = load_dataset("cifar10", root=tmp_path)
    assert data.name == "cifar10"
    hashes = np.concatenate([split.image_hashes for split in data.splits.values()])
    assert sorted(hashes.tolist()) == sorted(map(hash_image, images))


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed_up", [True, False])
def test_fashion_mnist_is_read_packed_or_not(tmp_path, packed_up):
    images = RNG.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            name = f"{part}-{kind}-ubyte"
            (tmp_path / (name + ".gz" * packed_up)).write_bytes(gzip.compress(content) if packed_up else content)
    data = load_dataset("fashion-mnist", root=tmp_path, verify=False)
    same(data.splits["train"], np.repeat(images[..., None], 3, 3), labels)
    same(data.splits["test"], np.repeat(images[..., None], 3, 3), labels)
    if packed_up:
        with pytest.raises(UserError, match="published file"):
            load_dataset("fashion-mnist", root=tmp_path)
    (tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed_up)).write_bytes(
        gzip.compress(idx(images)[:-5]) if packed_up else idx(images)[:-5]
    )
    with pytest.raises(UserError, match="its header says"):
        _ = load_dataset("fashion-mnist", root=tmp_path, verify=False).splits["train"]


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = load_dataset("fashion-mnist")
    assert [len(data.splits[s]) for s in data.splits] == [54000, 6000, 10000]
    assert np.bincount(data.splits["test"].labels).tolist() == [1000] * 10
    assert data.splits["test"].labels[:5].tolist() == [9, 2, 1, 1, 6]


@pytest.mark.parametrize("fold", [None, 3])
def test_stl10_is_stored_column_by_column(tmp_path, fold):
    images = RNG.integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    labels = np.arange(40) % 10
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split in ("train", "test"):
        # written value by value from the published description: planes, each column-major
        content = b"".join(image[:, :, c].tobytes(order="F") for image in images for c in range(3))
        (folder / f"{split}_X.bin").write_bytes(content)
        (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "fold_indices.txt").write_text("\n".join(" ".join(str(j) for j in range(i, 40, 2)) for i in range(10)))
    packed(folder, tmp_path / "stl10_binary.tar.gz")
    for root in (tmp_path, tmp_path / "stl10_binary.tar.gz"):
        data = load_dataset("stl10", root=root, fold=fold, verify=False)
        same(data.splits["train"], images, labels)
        same(data.splits["test"], images, labels)
    rows = np.concatenate([data.splits[s].row_ids for s in ("train", "val")])
    assert sorted(rows) == list(range(40) if fold is None else range(3, 40, 2))


@pytest.mark.parametrize("side", [32, 64])
def test_downsampled_imagenet_is_read_at_every_side(tmp_path, side):
    images = RNG.integers(0, 256, (50, side, side, 3), dtype=np.uint8)
    labels = np.arange(50) % 5
    for i in range(1, 11):
        part = slice(5 * i - 5, 5 * i)
        value = {"data": planar(images[part]), "labels": (labels[part] + 1).tolist(), "mean": np.zeros(3)}
        (tmp_path / f"train_data_batch_{i}").write_bytes(pickle.dumps(value))
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": planar(images), "labels": (labels + 1).tolist()}))
    data = load_dataset(f"imagenet{side}", root=tmp_path)
    same(data.splits["train"], images, labels)
    same(data.splits["test"], images, labels)
    assert len(data.classes) == 1000
    with pytest.raises(UserError, match="#batches=1,1 names a batch twice"):
        load_dataset(f"imagenet{side}#batches=1,1", root=tmp_path)
    few = load_dataset(f"imagenet{side}", root=tmp_path, batches=[1, 2])
    assert len(few.splits["train"]) + len(few.splits["val"]) == 10
    other = 96 - side
    with pytest.raises(UserError, match=f"does not contain images of {other}"):
        _ = load_dataset(f"imagenet{other}", root=tmp_path).splits["train"]


def test_openai_tokens_decode_and_encode_back(tmp_path):
    palette = Palette(RNG.uniform(-1, 1, (512, 3)).astype(np.float32))
    np.save(tmp_path / "kmeans_centers.npy", palette.centres_V3)
    tokens, labels = {}, np.arange(30) % 10
    for split in ("tr", "va", "te"):
        tokens[split] = RNG.integers(0, 512, (30, 1024))
        np.save(tmp_path / f"cifar10_{split}X.npy", tokens[split])
        np.save(tmp_path / f"cifar10_{split}Y.npy", np.eye(10, dtype=np.float32)[labels])
    data = load_dataset("openai-tokens", root=tmp_path)
    assert data.provenance["palette_hash"] == palette.hash
    for name, split in (("train", "tr"), ("val", "va"), ("test", "te")):
        rows = data.splits[name]
        assert np.array_equal(rows.labels, labels)
        again = palette.encode(np.stack(rows.images(0, 30)))
        assert np.mean(again == tokens[split]) > 0.999
    np.save(tmp_path / "cifar10_teY.npy", np.ones((30, 10)))
    with pytest.raises(UserError, match="not one-hot"):
        _ = load_dataset("openai-tokens", root=tmp_path).splits["test"]


class Trap:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_pickles_cannot_run_code(tmp_path, capsys):
    with pytest.raises(UserError, match=r"builtins\.print"):
        loads(pickle.dumps({"data": Trap()}), "batch")
    assert capsys.readouterr().out == ""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in range(6):
        assert np.array_equal(loads(pickle.dumps({"data": array}, protocol), "b")["data"], array)


def test_python_2_pickles_are_read():
    """As Python 2 with NumPy 1 wrote CIFAR: numpy.core.multiarray, array bytes as a str."""
    text = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        b"U\x01b\x87Rq\x05(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\xfe\x80\x09tbU\x06labelsq\x08]q\t(K\x03K\x07eu."
    )
    value = loads(text, "data_batch_1")
    assert value["data"].tolist() == [[1, 254], [128, 9]]
    assert value["labels"] == [3, 7]


@pytest.mark.parametrize("name", [e.name for e in list_datasets() if e.needs_root and e.name != "fashion-mnist"])
def test_a_missing_or_empty_root_is_one_sentence(name, tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(UserError) as caught:
            load_dataset(name, root=root)
        assert "\n" not in str(caught.value)
        assert name not in REMOTES or f"`probekit datasets fetch {name} --root " in str(caught.value)


def test_damaged_archives_are_named(tmp_path):
    folder, *_ = write_cifar10(tmp_path, "binary")
    (folder / "data_batch_2.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"data_batch_2\.bin has 5 bytes"):
        _ = load_dataset("cifar10", root=folder).splits["train"]
    archive = tmp_path / "cut" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    header = bytearray(tarfile.TarInfo("data_batch_1.bin").tobuf())
    header[124:136] = b"\xff" + b"\x7f" * 11  # a negative size in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    for content in (gzip.compress(b"nothing like a tar")[:-9], gzip.compress(header + bytes(1024))):
        archive.write_bytes(content)
        with pytest.raises(UserError, match="not a complete archive"):
            _ = load_dataset("cifar10", root=archive, verify=False).splits["train"]


def test_a_changed_byte_of_an_archive_that_is_not_verified_is_found_by_its_checksum(tmp_path):
    folder, images, *_ = write_cifar10(tmp_path, "binary")
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(folder, folder.name)
    content = bytearray(gzip.compress((tmp_path / "plain.tar").read_bytes(), 0))  # stored: a byte is a value
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(content)
    splits = load_dataset("cifar10", root=archive, verify=False).splits
    assert len(splits["train"]) + len(splits["val"]) == len(images)
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"not a complete archive .CRC check failed"):
        _ = load_dataset("cifar10", root=archive, verify=False).splits["train"]


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "openai-tokens"])
def test_commands_in_messages_are_quoted_for_a_shell(tmp_path, name):
    folder = tmp_path / "my data; $HOME"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        load_dataset(name, folder)
    command = str(caught.value).split("`")[1]
    assert shlex.split(command) == ["probekit", "datasets", "fetch", name, "--root", str(folder)]
