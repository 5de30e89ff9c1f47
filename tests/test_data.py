"""The data: files, folders of images, MNIST from the cache or the web, and the drawn digits."""

import gzip
import hashlib
import io
import os
import pickle
import random
import re
import struct
import sys
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gan

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
OTHERS = 255 - PIXELS
RGB = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3), np.uint8)
LEVELS = np.arange(256).reshape(4, 8, 8)  # every value that a pixel can have

no_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def idx(array):
    """Return an IDX file's bytes."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def npy(array):
    """Return an .npy file's bytes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(text):
    """Return the bytes of an .npy file with this header and few pixels."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(100)


def npz(*arrays, save=np.savez, **named):
    """Return an .npz file's bytes."""
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def archive(compression=zipfile.ZIP_STORED, **members):
    """Return the bytes of a zip file; a__txt= is its member a.txt."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in members.items():
            written.writestr(name.replace("__", "."), content)
    return file.getvalue()


def changed(content, place, value=None):
    """Return content with one byte changed."""
    value = content[place] ^ 255 if value is None else value
    return content[:place] + bytes([value]) + content[place:][1:]


def png(side, rows):
    """Return the bytes of a black .png whose header claims a square and that holds some rows."""
    result = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(rows * (1 + side // 8)), 1)
    for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        result += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return result


def save(path, picture, **options):
    """Write a picture, or bytes, to path in folders that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path, **options)


def plain(color, mode="L", size=(8, 8)):
    """Return a picture of one color."""
    return Image.new(mode, size, color)


def files(folder):
    """Return {name: bytes} of every file below folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_mapped(array):
    """Return whether the array's memory is a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.fixture
def load(small):
    """Return a function that loads the images at a path."""

    def load(data, **settings):
        small(DATA=str(data), **settings)
        images = gan.load_images()[1]
        assert images.dtype == np.uint8 and images.ndim == 4
        return images

    return load


@pytest.fixture
def refuse(load):
    """Return a function that returns what a path's Problem says, and checks that it is short."""

    def refuse(data):
        began = time.monotonic()
        with pytest.raises(gan.Problem) as caught:
            load(data)
        assert time.monotonic() - began < 5
        assert caught.value.status == 2
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


# Files ------------------------------------------------------------------------------------------
FORMS = {
    "plain-idx3-ubyte": idx(PIXELS),
    "any.name": idx(PIXELS),
    "with-channels.idx": idx(PIXELS[..., np.newaxis]),
    "idx.gz": gzip.compress(idx(PIXELS)),
    "x_train.npz": npz(OTHERS, images=OTHERS, x_train=PIXELS),
    "images.npz": npz(OTHERS, images=PIXELS),
    "first.npz": npz(PIXELS, OTHERS),
    "packed.npz": npz(PIXELS, save=np.savez_compressed),
    "with-a-text.npz": archive(readme__txt="hello", a__npy=npy(PIXELS)),
    "three.npy": npy(PIXELS),
    "four.npy": npy(PIXELS[..., np.newaxis]),
    "fortran.npy": npy(np.asfortranarray(PIXELS)),
    "UPPER.NPY": npy(PIXELS),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_in_any_form_gives_its_images(load, tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    assert np.array_equal(load(tmp_path / name), PIXELS[..., np.newaxis])


@pytest.mark.parametrize(
    "name, content", {"a.npy": npy(RGB), "a.npz": npz(RGB), "a.idx": idx(RGB)}.items()
)
def test_a_file_of_rgb_images_gives_three_channels(load, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(load(tmp_path / name), RGB)


@pytest.mark.parametrize("content", [npy(PIXELS), npy(RGB), idx(PIXELS)])
def test_an_unpacked_file_of_pixels_stays_on_disk(load, tmp_path, content):
    path = tmp_path / ("a.npy" if content[:6] == b"\x93NUMPY" else "a.idx")
    path.write_bytes(content)
    assert is_mapped(load(path))


NUMBERS = {
    "float64": (LEVELS / 255, LEVELS),
    "float32": (np.float32(LEVELS / 127.5 - 1), LEVELS),
    "float16": (np.float16(LEVELS / 255), LEVELS),
    "int16": (np.int16(LEVELS * 200 - 20000), LEVELS),
    "uint16": (np.uint16(LEVELS * 257), LEVELS),
    "int64": (LEVELS, LEVELS),
    "bool": (LEVELS > 127, 255 * (LEVELS > 127)),
    "big-endian": ((LEVELS * 100).astype(">i2"), LEVELS),
    "big-endian-float": ((LEVELS / 255).astype(">f4"), LEVELS),
    "fortran": (np.asfortranarray(LEVELS / 255), LEVELS),
    "many": (np.arange(3060).reshape(-1, 1, 1), np.rint(np.linspace(0, 255, 3060))),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_another_type_are_scaled_to_pixels(load, tmp_path, kind):
    array, expected = NUMBERS[kind]
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(load(tmp_path / "a.npy").ravel(), expected.ravel())
    np.savez(tmp_path / "a.npz", array)
    assert np.array_equal(load(tmp_path / "a.npz").ravel(), expected.ravel())


@pytest.mark.parametrize(
    "name",
    [
        "train-images-idx3-ubyte",
        "train-images.idx3-ubyte",
        "train-images-idx3-ubyte.gz",
        "emnist-letters-train-images-idx3-ubyte.gz",
    ],
)
def test_a_folder_with_the_files_of_mnist_gives_its_training_images(load, tmp_path, name):
    packed = gzip.compress if name.endswith(".gz") else bytes
    folder = tmp_path / "My data (new)"
    save(folder / name, packed(idx(PIXELS)))
    save(folder / name.replace("train", "t10k"), packed(idx(OTHERS)))
    save(folder / name.replace("images", "labels").replace("3", "1"), packed(idx(PIXELS[:, 0, 0])))
    assert np.array_equal(load(folder), PIXELS[..., np.newaxis])
    assert gan.load_images()[0] == "My-data-new"


def test_a_folder_named_like_a_file_of_mnist_does_not_hide_the_file(load, tmp_path):
    # Some archives of MNIST unpack like this.
    save(tmp_path / "train-images-idx3-ubyte" / "train-images-idx3-ubyte", idx(OTHERS))
    save(tmp_path / "train-images.idx3-ubyte", idx(PIXELS))
    assert np.array_equal(load(tmp_path), PIXELS[..., np.newaxis])


@pytest.mark.parametrize(
    "file, name",
    {
        "dots.npy": "dots",
        "two.dots.npy": "two",
        "a b_c.npy": "a-b-c",
        "mnist.npz.npy": "mnist",
        "\u732b.npy": None,
        ".npy": None,
        "-": None,
        "long" * 20: None,
    }.items(),
)
def test_a_run_is_named_after_its_data_in_plain_letters(load, tmp_path, file, name):
    (tmp_path / file).write_bytes(npy(PIXELS))
    load(tmp_path / file)
    result = gan.load_images()[0]
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9-]{0,40}", result)
    assert name is None or result == name


LATE_NAN = np.linspace(0, 1, 1500).reshape(-1, 1, 1)
LATE_NAN[1400] = np.nan
BAD = {
    "empty": b"",
    "text.txt": b"no images at all\n",
    "magic.idx": changed(idx(PIXELS), 0, 1),
    "floats.idx": changed(idx(PIXELS), 2, 13),
    "dimensions.idx": changed(idx(PIXELS), 3, 5),
    "short.idx": idx(PIXELS)[:-1],
    "long.idx": idx(PIXELS) + b"\0",
    "head.idx": idx(PIXELS)[:9],
    "magic-only.idx": idx(PIXELS)[:4],
    "none.idx": idx(PIXELS[:0]),
    "terabytes.idx": b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**12, 2**12),
    "overflow.idx": b"\0\0\x08\x03" + b"\xff" * 12,
    "labels-idx1-ubyte": idx(PIXELS[:, 0, 0]),
    "rgba.idx": idx(np.zeros((2, 3, 3, 4), np.uint8)),
    "labels-idx1-ubyte.gz": gzip.compress(idx(PIXELS[:, 0, 0])),
    "truncated.gz": gzip.compress(idx(PIXELS))[:-100],
    "checksum.gz": changed(gzip.compress(idx(PIXELS)), -6),
    "damaged.gz": changed(gzip.compress(idx(PIXELS)), 2000),
    "head.gz": gzip.compress(idx(PIXELS))[:5],
    "text.gz": gzip.compress(b"no images at all\n"),
    "short.gz": gzip.compress(idx(PIXELS)[:-1]),
    "long.gz": gzip.compress(idx(PIXELS) + b"\0"),
    "terabytes.gz": gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**12, 2**12)),
    "truncated.npz": npz(PIXELS)[:-100],
    "damaged.npz": changed(npz(PIXELS), 2000),
    "nothing.npz": archive(),
    "text.npz": archive(readme__txt="hello"),
    "labels.npz": npz(np.arange(9)),
    "damaged-lzma.npz": changed(archive(zipfile.ZIP_LZMA, a__npy=npy(PIXELS)), 60),
    "terabytes.npz": archive(
        a__npy=npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 999, 999)}")
    ),
    "not-a-zip.npz": b"PK\3\4 but nothing else",
    "strings.npy": npy(np.full((2, 3, 3), "one")),
    "dates.npy": npy(np.zeros((2, 3, 3), "M8[s]")),
    "records.npy": npy(np.zeros((2, 3, 3), [("a", "u1")])),
    "complex.npy": npy(np.zeros((2, 3, 3), complex)),
    "scalar.npy": npy(np.uint8(7)),
    "one.npy": npy(np.arange(9)),
    "two.npy": npy(PIXELS[0]),
    "five.npy": npy(PIXELS[..., np.newaxis, np.newaxis]),
    "rgba.npy": npy(np.zeros((2, 3, 3, 4), np.uint8)),
    "no-images.npy": npy(PIXELS[:0]),
    "no-pixels.npy": npy(PIXELS[:, :0]),
    "nan.npy": npy(np.where(LEVELS == 77, np.nan, LEVELS)),
    "late-nan.npy": npy(LATE_NAN),
    "infinite.npy": npy(np.where(LEVELS == 77, -np.inf, LEVELS)),
    "truncated.npy": npy(PIXELS)[:-1],
    "head.npy": npy(PIXELS)[:20],
    "terabytes.npy": npy_header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 999, 999)}"
    ),
    "negative.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 5, 5)}"),
    "unclosed.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 5"),
    "long-head.npy": npy_header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 5)}" + 20000 * " "
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_problem_that_names_it(refuse, tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    assert name in refuse(tmp_path / name)


# NumPy reads a lopsided header as one of Python 2, and warns; floats may be changed to huge ones.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "content",
    [
        idx(PIXELS),
        gzip.compress(idx(PIXELS)),
        npy(PIXELS),
        npy(LEVELS / 255),
        npz(PIXELS),
        npz(PIXELS, save=np.savez_compressed),
    ],
    ids=["idx", "gz", "npy", "floats", "npz", "packed"],
)
def test_damage_of_any_kind_is_at_most_a_problem(load, tmp_path, content):
    chance = random.Random(0)
    path = tmp_path / "a.npy"
    for _ in range(150):
        damaged = content[: chance.choice((len(content), chance.randrange(len(content))))]
        for _ in range(chance.randrange(4)):  # most often in the head, which says the most
            place = chance.randrange(min(len(damaged), chance.choice((130, 10**6))) or 1)
            damaged = changed(damaged, place, chance.randrange(256))
        path.write_bytes(damaged)
        try:
            load(path)
        except gan.Problem:
            pass


class Trap:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


PICKLES = {
    "a.npy": npy,
    "first.npz": npz,
    "x_train.npz": lambda array: npz(PIXELS, x_train=array),
    "a.pkl": pickle.dumps,
    "b.npy": pickle.dumps,
    "c.npz": pickle.dumps,
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_objects_never_run(refuse, tmp_path, name):
    trap = tmp_path / "trap"
    array = np.full((2, 3, 3), Trap(trap), object)
    (tmp_path / name).write_bytes(PICKLES[name](array))
    assert name in refuse(tmp_path / name)
    assert not trap.exists()
    pickle.loads(pickle.dumps(array))
    assert trap.exists()  # so the trap was a working one


@pytest.mark.parametrize("name", ["nowhere", "nowhere/a.npy", "a.npy/b", "mnist.npz", "x" * 5000])
def test_a_missing_path_is_a_problem(refuse, tmp_path, name):
    (tmp_path / "a.npy").write_bytes(npy(PIXELS))
    assert name[:20] in refuse(tmp_path / name)


@no_windows
def test_the_home_of_an_unknown_user_is_a_problem(refuse):
    assert "~nobody-has-this-name" in refuse("~nobody-has-this-name/faces")


@no_windows
def test_a_path_in_the_home_folder_is_found(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.npy").write_bytes(npy(PIXELS))
    assert np.array_equal(load("~/a.npy"), PIXELS[..., np.newaxis])


# Folders of images ------------------------------------------------------------------------------
def test_images_of_every_format_in_every_folder_are_read_in_order(load, tmp_path, capsys):
    suffixes = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "PNG", "JPG"]
    order = np.random.default_rng(0).permutation(len(suffixes))
    for i in order:
        path = tmp_path / f"{i}" / "deep" / "deeper" / f"a.{suffixes[i]}"
        save(path, plain(25 * int(i), size=(20 + int(i), 30)))
    for name in ("readme.txt", "Thumbs.db", "png", "a.png.txt", ".DS_Store"):
        save(tmp_path / name, b"no image")
    images = load(tmp_path, IMAGE_SIZE=12)
    assert images.shape == (len(suffixes), 12, 12, 1)
    for i, image in enumerate(images):
        assert np.abs(image.astype(int) - 25 * i).max() <= 4, suffixes[i]
    assert capsys.readouterr().err == ""
    assert np.array_equal(load(tmp_path), images)


def test_one_coloured_image_makes_all_of_them_rgb(load, tmp_path):
    save(tmp_path / "a.png", plain(70))
    save(tmp_path / "b.png", plain((90, 90, 90), "RGB"))
    assert load(tmp_path, IMAGE_SIZE=8).shape == (2, 8, 8, 1)
    save(tmp_path / "c.png", plain((90, 90, 91), "RGB"))
    images = load(tmp_path)
    assert images.shape == (3, 8, 8, 3)
    assert images[:, 0, 0].tolist() == [[70, 70, 70], [90, 90, 90], [90, 90, 91]]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_orientation_of_a_photo_is_applied(load, tmp_path, suffix, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.kron([[0, 80], [160, 250]], np.ones((8, 8))).astype(np.uint8)
    save(tmp_path / f"a.{suffix}", Image.fromarray(stored), exif=exif)
    image = load(tmp_path, IMAGE_SIZE=16)[0, ..., 0]
    assert np.allclose(image, np.rot90(stored, turns), atol=4)


TRANSPARENT_PALETTE = plain(0, "P")
TRANSPARENT_PALETTE.putpalette([255, 0, 0])


MODES = {
    "black-and-white": (plain(1, "1"), "png", {}, 255),
    "palette": (plain((10, 20, 30), "RGB").quantize(4), "png", {}, (10, 20, 30)),
    "cmyk": (plain((0, 255, 255, 0), "CMYK"), "tif", {}, (255, 0, 0)),
    "cmyk-jpg": (plain((0, 0, 0, 155), "CMYK"), "jpg", {}, (100, 100, 100)),
    "alpha": (plain((200, 100, 50, 128), "RGBA"), "png", {}, (100, 50, 25)),
    "invisible": (plain((200, 100, 50, 0), "RGBA"), "webp", {"lossless": True}, 0),
    "grey-alpha": (plain((200, 128), "LA"), "png", {}, 100),
    "palette-alpha": (TRANSPARENT_PALETTE, "gif", {"transparency": 0}, 0),
    "color-key": (plain((9, 8, 7), "RGB"), "png", {"transparency": (9, 8, 7)}, 0),
    "16-bit": (plain(128 * 257, "I;16"), "png", {}, 128),
    "16-bit-tif": (plain(128 * 257, "I;16"), "tif", {}, 128),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_keeps_its_looks(load, tmp_path, mode):
    picture, suffix, options, color = MODES[mode]
    save(tmp_path / f"a.{suffix}", picture, **options)
    images = load(tmp_path, IMAGE_SIZE=8)
    assert np.abs(images.astype(int) - color).max() <= 2
    assert images.shape[-1] == (1 if np.ptp(color) == 0 else 3)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_tiff_of_floats_or_long_integers_is_scaled(load, tmp_path, dtype):
    levels = np.linspace(0, 255, 64).reshape(8, 8)
    save(tmp_path / "a.tif", Image.fromarray((4000 * levels - 300000).astype(dtype)))
    assert np.allclose(load(tmp_path, IMAGE_SIZE=8)[0, ..., 0], levels, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 27])
def test_a_tiff_with_a_number_that_is_none_is_skipped(load, tmp_path, capsys, value, place):
    pixels = np.linspace(0, 1, 64, dtype=np.float32)
    pixels[place] = value
    save(tmp_path / "odd.tif", Image.fromarray(pixels.reshape(8, 8)))
    save(tmp_path / "good.png", plain(70))
    assert np.all(load(tmp_path, IMAGE_SIZE=8) == np.full((1, 8, 8, 1), 70))
    assert "odd.tif" in capsys.readouterr().err


@pytest.mark.parametrize("turned", [False, True])
def test_the_square_in_the_middle_is_cut_out(load, tmp_path, turned):
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 200
    save(tmp_path / "a.png", Image.fromarray(wide.T if turned else wide))
    assert np.all(load(tmp_path, IMAGE_SIZE=16) == 200)


def cut(suffix):
    """Return the first half of an image's bytes."""
    file = io.BytesIO()
    Image.fromarray(RGB[0].repeat(20, 0).repeat(20, 1)).save(file, suffix)
    return file.getvalue()[: len(file.getvalue()) // 2]


BAD_IMAGES = {
    "truncated.png": cut("png"),
    "truncated.jpg": cut("jpeg"),
    "truncated.webp": cut("webp"),
    "truncated.tif": cut("tiff"),
    "text.png": b"no image at all\n",
    "empty.jpg": b"",
    "absurd-head.png": png(80000, 1),
    "absurd.png": png(20000, 20000),
    "too-large.png": png(12000, 12000),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_skipped_with_a_warning_that_names_it(load, tmp_path, capsys, name):
    save(tmp_path / "good.png", plain(70))
    save(tmp_path / "deep" / name, BAD_IMAGES[name])
    assert np.all(load(tmp_path, IMAGE_SIZE=8) == np.full((1, 8, 8, 1), 70))
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "warning" in line and name in line]) == 1


def test_hundreds_of_images_keep_their_order_where_some_are_bad(load, tmp_path):
    good = [i for i in range(250) if i % 9]
    for i in range(250):
        save(tmp_path / f"{i:03}.png", plain(i) if i in good else b"no image at all\n")
    assert load(tmp_path, IMAGE_SIZE=8)[:, 0, 0, 0].tolist() == good


def test_after_three_bad_images_only_their_number_is_told(load, tmp_path, capsys):
    for i in range(7):
        save(tmp_path / f"bad{i}.png", b"no image at all\n")
        save(tmp_path / f"good{i}.png", plain(30 * i))
    assert load(tmp_path, IMAGE_SIZE=8)[:, 0, 0, 0].tolist() == [30 * i for i in range(7)]
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 4
    assert [i for i in range(7) if f"bad{i}.png" in err] == [0, 1, 2]
    assert "7" in err.splitlines()[3]


@pytest.mark.parametrize("content", [{}, {"a.png": b"no image"}, {"readme.txt": b"hello"}])
def test_a_folder_without_a_usable_image_is_a_problem(refuse, tmp_path, content):
    folder = tmp_path / "faces"
    folder.mkdir()
    for name in content:
        save(folder / name, content[name])
    assert "faces" in refuse(folder)


@no_windows
def test_links_pipes_and_folders_with_odd_names_do_no_harm(load, tmp_path):
    save(tmp_path / "good.png", plain(70))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert load(tmp_path, IMAGE_SIZE=8).shape == (1, 8, 8, 1)


# MNIST ------------------------------------------------------------------------------------------
CONTENT = gzip.compress(idx(PIXELS))
DEAD = "http://127.0.0.1:1/"  # nothing listens there
DRAWN = np.zeros((5, 28, 28, 1), np.uint8)


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """Return Keras' cache, not there yet; MNIST is small, and no mirror is alive."""
    small(DATA="mnist")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(gan, "MNIST_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(gan, "MIRRORS", (DEAD,))
    monkeypatch.setattr(gan, "SILENCE", 0.5)
    monkeypatch.setattr(gan, "draw_digits", lambda count: DRAWN)
    return tmp_path / "keras" / "datasets"


@pytest.fixture
def mirrors(cache, monkeypatch):
    """Return a function that sets the mirrors to ones that do what they are called.

    It returns the list of those that were asked, and the numbers of bytes that an endless one sent.
    """
    asked, sent, over = [], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            mirror, _, file = self.path[1:].partition("/")
            asked.append(mirror)
            assert file == gan.MNIST_FILE
            try:
                getattr(self, mirror)()
            except OSError:  # the client is gone
                pass

        def answer(self, content, length=None):
            self.send_response(200)
            self.send_header("Content-Length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def good(self):
            self.answer(CONTENT)

        def missing(self):
            self.send_error(404)

        def wrong(self):
            self.answer(changed(CONTENT, 2000))

        def short(self):
            self.answer(CONTENT[:2000])

        def empty(self):
            self.answer(b"", 0)

        def cut(self):
            self.answer(CONTENT[:2000], len(CONTENT))

        def silent(self):
            self.answer(b"", len(CONTENT))
            over.wait(10)

        def mute(self):
            over.wait(10)

        def trickle(self):
            self.answer(b"", len(CONTENT))
            while not over.wait(0.05):
                self.wfile.write(b"\0")

        def endless(self):
            self.send_response(200)
            self.end_headers()
            while not over.is_set():
                self.wfile.write(bytes(2**18))
                sent.append(2**18)

        def babble(self):
            self.wfile.write(b"this is no HTTP\r\n\r\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def choose(*names):
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(gan, "MIRRORS", tuple(f"{here}/{name}/" for name in names))
        return asked, sent

    yield choose
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def assert_loaded(expected=PIXELS, name="mnist"):
    result, images = gan.load_images()
    assert result == name
    assert np.array_equal(images, expected.reshape(-1, 28, 28, 1))


def test_mnist_npz_in_the_cache_is_used_and_left_as_it_is(cache, capsys):
    labels = PIXELS[:, 0, 0]
    content = npz(x_train=PIXELS, y_train=labels, x_test=OTHERS, y_test=labels)
    save(cache / "mnist.npz", content)
    save(cache / gan.MNIST_FILE, gzip.compress(idx(OTHERS)))
    before = files(cache)
    assert_loaded()
    assert files(cache) == before
    assert capsys.readouterr() == ("", "")


def test_the_idx_file_in_the_cache_is_used_and_left_as_it_is(cache, capsys):
    save(cache / gan.MNIST_FILE, CONTENT)
    assert_loaded()
    assert files(cache) == {gan.MNIST_FILE: CONTENT}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damaged", [b"", b"text", npz(PIXELS)[:-50], npz(np.arange(5))])
def test_a_damaged_mnist_npz_gives_way_to_the_idx_file(cache, capsys, damaged):
    save(cache / "mnist.npz", damaged)
    save(cache / gan.MNIST_FILE, CONTENT)
    assert_loaded()
    assert files(cache) == {"mnist.npz": damaged, gan.MNIST_FILE: CONTENT}
    assert str(cache / "mnist.npz") in capsys.readouterr().err


def test_damaged_files_in_the_cache_are_left_as_they_are(cache, mirrors, capsys):
    damaged = {"mnist.npz": npz(PIXELS)[:-50], gan.MNIST_FILE: CONTENT[:-50]}
    for name, content in damaged.items():
        save(cache / name, content)
    with pytest.raises(gan.NoMnist):
        gan.load_images()
    assert files(cache) == damaged
    mirrors("good")
    assert_loaded()
    after = files(cache)
    assert {name: after.pop(name) for name in damaged} == damaged
    assert list(after.values()) == [CONTENT]
    capsys.readouterr()
    mirrors("missing")
    assert_loaded()
    err = capsys.readouterr().err
    assert all(str(cache / name) in err for name in damaged)


def test_folders_named_like_the_files_of_the_cache_do_no_harm(cache, mirrors):
    for name in ("mnist.npz", gan.MNIST_FILE):
        (cache / name).mkdir(parents=True)
    asked, _ = mirrors("good")
    assert_loaded()
    assert asked == ["good"]


def test_mirrors_are_tried_in_turn_and_mnist_is_kept_for_the_next_time(cache, mirrors):
    asked, _ = mirrors("missing", "wrong", "good", "silent")
    assert_loaded()
    assert asked == ["missing", "wrong", "good"]
    assert files(cache.parent) == {gan.MNIST_FILE: CONTENT}
    mirrors("missing")
    assert_loaded()
    assert len(asked) == 3


@pytest.mark.parametrize(
    "kind", ["silent", "mute", "trickle", "cut", "short", "empty", "babble", "endless"]
)
def test_a_bad_mirror_is_soon_given_up_for_the_next(cache, mirrors, kind):
    mirrors(kind, "good")
    began = time.monotonic()
    assert_loaded()
    assert time.monotonic() - began < 5
    assert files(cache) == {gan.MNIST_FILE: CONTENT}


def test_a_mirror_that_sends_without_end_is_not_listened_to_for_ever(cache, mirrors):
    _, sent = mirrors("endless")
    with pytest.raises(gan.NoMnist):
        gan.load_images()
    time.sleep(0.3)
    before = sum(sent)
    time.sleep(0.3)
    assert sum(sent) == before


def test_addresses_that_are_none_are_passed_over(cache, mirrors, monkeypatch):
    mirrors("good")
    others = DEAD, "http://host.invalid/", "file:///nowhere/", "nonsense://a/", "nonsense"
    monkeypatch.setattr(gan, "MIRRORS", (*others, *gan.MIRRORS))
    assert_loaded()


def test_without_any_mirror_the_message_says_why_and_where_to_put_the_file(cache, mirrors):
    mirrors("missing", "wrong", "silent", "cut")
    with pytest.raises(gan.NoMnist) as problem:
        gan.load_images()
    out = str(problem.value)
    for mirror in gan.MIRRORS:
        assert re.search(re.escape(mirror) + "\n +.*[a-z]{3}", out), "no reason is given"
    assert "404" in out or "Not Found" in out
    assert str(cache / gan.MNIST_FILE) in out
    assert not cache.parent.exists() or files(cache.parent) == {}


def test_a_cache_that_cannot_be_written_does_not_keep_mnist_from_use(cache, mirrors, capsys):
    save(cache.parent, b"a file where the folder should be")
    mirrors("good")
    assert_loaded()
    assert "warning" in capsys.readouterr().err
    assert cache.parent.read_bytes() == b"a file where the folder should be"


@pytest.mark.parametrize("unreadable", ["folder", "file"])
def test_a_cache_that_cannot_be_read_does_not_keep_mnist_from_use(cache, mirrors, unreadable):
    save(cache / "mnist.npz", npz(OTHERS))
    locked = cache.parent if unreadable == "folder" else cache / "mnist.npz"
    mirrors("good")
    locked.chmod(0)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("this user, or Windows, reads files whatever their permissions")
        assert_loaded()
    finally:
        locked.chmod(0o700)


def test_the_wait_for_silent_mirrors_stays_below_forty_seconds():
    assert len(gan.MIRRORS) >= 3
    assert len(gan.MIRRORS) * gan.SILENCE < 40


REAL = os.environ.get("GAN_MNIST")


@pytest.mark.skipif(not REAL, reason="GAN_MNIST does not name a folder with the files of MNIST")
def test_the_real_mnist_has_60000_grey_images(load):
    images = load(REAL)
    assert images.shape == (60000, 28, 28, 1)
    assert images.mean() == pytest.approx(33.3184, abs=1e-3)


# Drawn digits -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits():
    return gan.draw_digits(20000)


def test_drawn_digits_all_differ(digits):
    assert digits.shape == (20000, 28, 28, 1) and digits.dtype == np.uint8
    assert len({digit.tobytes() for digit in digits}) == 20000


def test_drawn_digits_lie_in_the_centre_like_those_of_mnist(digits):
    mean = digits.mean(axis=(0, 3))
    places = np.arange(28)
    centre = mean.sum(1) @ places / mean.sum(), mean.sum(0) @ places / mean.sum()
    assert centre == pytest.approx((13.5, 13.5), abs=1)
    mean[1:-1, 1:-1] = 0
    assert mean.max() < 5  # the border
    assert 15 < digits.mean() < 60  # 33 in MNIST
    assert digits.max() > 250


def test_drawn_digits_are_a_function_of_the_seed(small):
    small(SEED=3)
    first = gan.draw_digits(50)
    assert np.array_equal(gan.draw_digits(50), first)
    small(SEED=4)
    assert not np.array_equal(gan.draw_digits(50), first)


def test_data_can_be_the_drawn_digits(small, monkeypatch):
    monkeypatch.setattr(gan, "draw_digits", lambda count: count)
    small(DATA="digits")
    assert gan.load_images() == ("digits", 20000)


def test_whole_numbers_of_a_small_range_are_scaled_as_other_numbers_are():
    images = gan.as_images(np.arange(16).reshape(1, 4, 4))
    assert (images.min(), images.max()) == (0, 255)


def test_a_run_inside_the_folder_of_images_is_not_read(small, tmp_path):
    small(DATA=str(tmp_path), IMAGE_SIZE=8)
    (tmp_path / "run" / "generated").mkdir(parents=True)
    for name in ("a.png", "run/epoch-000.png", "run/generated/00000.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "run" / "settings.json").write_text("{}")
    assert len(gan.load_images()[1]) == 1
