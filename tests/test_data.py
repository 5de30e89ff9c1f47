"""The data: files, folders of images, MNIST from the cache or the web, and the drawn digits."""

import functools
import gzip
import hashlib
import io
import os
import pickle
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, features

import gan

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
OTHERS = 255 - PIXELS
RGB = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3), np.uint8)
LEVELS = np.arange(256).reshape(4, 8, 8)  # every value that a pixel can have


def idx(array):
    """Return an IDX file's bytes."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def npy(*arrays, save=np.save, **named):
    """Return the bytes of an .npy file, or of one that save writes."""
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


npz = functools.partial(npy, save=np.savez)


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


@pytest.fixture
def load(small, tmp_path_factory):
    """Return a function that loads the images at a path."""
    out = str(tmp_path_factory.mktemp("out"))

    def load(data, **settings):
        small(**{"DATA": str(data), "OUT": out} | settings)
        images = gan.load_images()
        assert images.dtype == np.uint8 and images.ndim == 4
        return images

    return load


# Files ------------------------------------------------------------------------------------------
FORMS = {
    "any.name": idx(PIXELS),
    "idx.gz": gzip.compress(idx(PIXELS)),
    "x_train.npz": npz(OTHERS, images=OTHERS, x_train=PIXELS),
    "images.npz": npz(OTHERS, images=PIXELS),
    "first-of-images.npz": npz(np.arange(6), PIXELS, OTHERS),
    "objects-first.npz": npz(np.array([{}]), PIXELS),
    "flat.npy": npy(PIXELS.reshape(6, 784)),
    "packed.npz": npy(PIXELS, save=np.savez_compressed),
    "three.npy": npy(PIXELS),
    "four.npy": npy(PIXELS[..., np.newaxis]),
    "channels-first.npy": npy(PIXELS[:, np.newaxis]),
    "fortran.npy": npy(np.asfortranarray(PIXELS)),
    "rgb.idx": idx(RGB),
    "rgb.npz": npz(RGB),
    "rgb-first.npy": npy(RGB.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_in_any_form_gives_its_images(load, tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    images = load(tmp_path / name)
    assert np.array_equal(images, RGB if "rgb" in name else PIXELS[..., np.newaxis])
    assert isinstance(images, np.memmap) == name.endswith(".npy")  # so it takes no memory


NUMBERS = {
    "bool": (LEVELS > 127, 255 * (LEVELS > 127)),
    "float64": (LEVELS / 255, LEVELS),
    "float32": (np.float32(LEVELS / 127.5 - 1), LEVELS),
    "int16": ((LEVELS * 200 - 20000).astype(">i2"), LEVELS),
    "uint16": (np.uint16(LEVELS * 257), LEVELS),
    "bytes-of-0-and-1": (np.uint8(LEVELS > 127), 255 * (LEVELS > 127)),
    "few-bits": (np.uint8(LEVELS // 16), LEVELS // 16 * 17),
    "bytes": (np.uint8(LEVELS // 2 + 9), LEVELS // 2 + 9),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_all_numbers_but_bytes_of_full_range_are_stretched_to_pixels(load, tmp_path, kind):
    array, expected = NUMBERS[kind]
    for content in (npy(array), npz(array)):
        path = tmp_path / ("a.npy" if content[:2] == b"\x93N" else "a")
        path.write_bytes(content)
        assert np.array_equal(load(path)[..., 0], expected)


@pytest.mark.parametrize("place", ["{}", "{}/{}", "FashionMNIST/raw/{}", "a/emnist-letters-{}.gz"])
def test_a_folder_with_mnists_files_at_any_depth_gives_its_training_images(load, tmp_path, place):
    pack = gzip.compress if place.endswith("gz") else bytes
    files = {
        "t10k-images-idx3": OTHERS,
        "train-images-idx3": PIXELS,
        "train-labels-idx1": PIXELS[0],
    }
    for name, content in files.items():
        path = tmp_path / "My data.1" / place.replace("{}", f"{name}-ubyte")
        save(path, pack(idx(content)))
    assert np.array_equal(load(tmp_path / "My data.1"), PIXELS[..., np.newaxis])
    assert gan.make_folder().name == "My data-001"


BAD = {
    "empty.npy": b"",
    "labels-idx1-ubyte": idx(PIXELS[:, 0, 0]),
    "truncated.gz": gzip.compress(idx(PIXELS))[:-100],
    "truncated.npz": npz(PIXELS)[:-100],
    "truncated.npy": npy(PIXELS)[:-1],
    "labels.npz": npz(np.arange(9)),
    "rgba.npy": npy(np.zeros((2, 9, 9, 4), np.uint8)),
    "all-the-same.npy": npy(np.zeros((2, 9, 9), np.uint8)),
    "no-images.npy": npy(PIXELS[:0]),
    "nan.npy": npy(np.where(LEVELS == 77, np.nan, LEVELS)),
    "a folder/a.png": b"no image",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_or_folder_is_a_problem_that_names_it(load, tmp_path, name):
    save(tmp_path / name, BAD[name])
    with pytest.raises(gan.Problem, match=name.split("/")[0]):
        load(tmp_path / name.split("/")[0])


class Trap:
    """Something that makes the file trap when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("trap"),)


@pytest.mark.parametrize("pack", [npy, npz, lambda array: npz(x_train=array), pickle.dumps])
def test_pickled_objects_never_run(load, tmp_path, monkeypatch, pack):
    monkeypatch.chdir(tmp_path)
    array = np.full((2, 3, 3), Trap(), object)
    Path("a.npy").write_bytes(pack(array))
    with pytest.raises(gan.Problem, match="a.npy"):
        load("a.npy")
    assert not Path("trap").exists()
    pickle.loads(pickle.dumps(array))
    assert Path("trap").exists()  # so the trap was a working one


# Folders of images ------------------------------------------------------------------------------
def test_pictures_of_every_format_in_every_folder_are_read_in_order(load, tmp_path, capsys):
    names = ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif", "a.PNG", "a.pgm"]
    names += ["a.avif"] * features.check("avif")
    for i, name in enumerate(names):
        save(tmp_path / f"{i}" / "deep" / name, plain(25 * i, size=(20 + i, 30)))
    (tmp_path / "0" / "deep" / "a.png").rename(tmp_path / "0" / "any name")
    for name in (".DS_Store", "._a.png", "__MACOSX/a.png"):
        save(tmp_path / name, b"no image")
    save(tmp_path / "runs" / "mnist-001" / "real.png", plain(0))  # is no data
    linked = tmp_path.with_name(f"{tmp_path.name} linked")
    (tmp_path / "7").rename(linked)
    (tmp_path / "7").symlink_to(linked, target_is_directory=True)
    (tmp_path / "gone.png").symlink_to("nowhere")
    images = load(tmp_path, IMAGE_SIZE=12, OUT=str(tmp_path / "runs"))
    levels = 25 * np.arange(len(names)).reshape(-1, 1, 1, 1)
    assert images.shape == (len(names), 12, 12, 1) and np.abs(images - 1.0 * levels).max() <= 4
    counts = capsys.readouterr().out.splitlines()[-1]
    assert all(f"{str(Path(str(i), 'deep'))!r}: 1" in counts for i in range(1, len(names)))


def test_one_coloured_image_makes_all_of_them_rgb(load, tmp_path):
    save(tmp_path / "a.png", plain(70))
    save(tmp_path / "b.png", plain((90, 90, 90), "RGB"))
    assert load(tmp_path, IMAGE_SIZE=8).shape == (2, 8, 8, 1)
    save(tmp_path / "c.png", plain((90, 90, 91), "RGB"))
    colors = load(tmp_path)[:, 0, 0].tolist()
    assert colors == [[70, 70, 70], [90, 90, 90], [90, 90, 91]]


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif, "quality": 100}


RAMP = np.arange(64).reshape(8, 8)
CORNERS = np.kron([[0, 80], [160, 250]], np.ones((4, 4))).astype(np.uint8)
WIDE = np.uint8([[0] * 4 + [200] * 8 + [0] * 4] * 8)
STRETCHED = np.rint(RAMP * 255 / 63)[..., np.newaxis]
EDGES = Image.fromarray(np.random.default_rng(0).choice([0, 255], (16, 16)).astype(np.uint8))
SMOOTH = np.asarray(ImageOps.fit(EDGES, (8, 8)))[..., np.newaxis]
PICTURES = {
    "smooth-jpg": (EDGES, "jpg", {"quality": 100}, SMOOTH),  # not decoded at 8 x 8, jagged
    "wide": (Image.fromarray(WIDE), "png", {}, [200]),
    "high": (Image.fromarray(WIDE.T.copy()), "png", {}, [200]),
    "palette": (plain((10, 20, 30), "RGB").quantize(4), "png", {}, (10, 20, 30)),
    "cmyk": (plain((0, 255, 255, 0), "CMYK"), "tif", {}, (255, 0, 0)),
    "cmyk-jpg": (plain((0, 0, 0, 155), "CMYK"), "jpg", {}, [100]),
    "alpha": (plain((200, 100, 50, 128), "RGBA"), "png", {}, (227, 177, 152)),
    "grey-alpha": (plain((20, 128), "LA"), "png", {}, [137]),
    "palette-alpha": (plain((255, 0, 0), "RGB").quantize(2), "gif", {"transparency": 0}, [255]),
    "16-bit": (Image.fromarray(np.uint16(RAMP * 1000 + 99)), "png", {}, STRETCHED),
    "12-bit": (Image.fromarray(np.uint16(RAMP * 60)), "tif", {}, STRETCHED),
    "floats": (Image.fromarray(np.float32(RAMP / 63 - 0.5)), "tif", {}, STRETCHED),
}
for orientation, turns in ((1, 0), (3, 2), (6, 3), (8, 1)):
    expected = np.rot90(CORNERS, turns)[..., np.newaxis]
    how = Image.fromarray(CORNERS), "jpg", turned(orientation), expected
    PICTURES[f"turned-{orientation}"] = how


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_cut_to_its_middle_upright_on_white_in_its_own_colors(load, tmp_path, kind):
    picture, suffix, options, pixels = PICTURES[kind]
    save(tmp_path / f"a.{suffix}", picture, **options)
    images = load(tmp_path, IMAGE_SIZE=8)
    assert images.shape == (1, 8, 8, np.shape(pixels)[-1])
    assert np.abs(images.astype(int) - pixels).max() <= 2


def test_every_run_counts_the_bad_pictures_and_names_the_first_five_and_the_rest_keep_their_order(
    load, tmp_path, capsys
):
    whole = npy(Image.fromarray(RGB[0]).resize((90, 90)), save=lambda file, x: x.save(file, "png"))
    for i in range(250):
        bad = (b"", b"no image", whole[: len(whole) // 2])[i % 3]
        good = plain(i, size=(1500, 1500) if i < 10 else (8, 8))  # the first ones take longest
        save(tmp_path / f"{i:03}.png", good if (i + 1) % 9 else bad)
    for _ in range(2):  # decoded, then from the cache
        images = load(tmp_path, IMAGE_SIZE=8)
        assert images[:, 0, 0, 0].tolist() == [i for i in range(250) if (i + 1) % 9]
        out, err = capsys.readouterr()
        assert "223 pictures of 250 files" in out and err == ""
        named = [str(tmp_path / f"{9 * i + 8:03}.png") for i in range(5)]
        assert "\n    ".join(["damaged or no pictures:", *named]) + "\n" in out


def test_a_folder_is_decoded_again_only_if_it_or_its_cache_changed(load, tmp_path, capsys):
    cats, dogs = tmp_path / "cats" / "train", tmp_path / "dogs" / "train"

    def levels(folder, decoded):
        images = load(folder, IMAGE_SIZE=8)
        assert ("reading" in capsys.readouterr().out) == decoded
        assert isinstance(images, np.memmap)  # so a large folder takes no memory
        return images[:, 0, 0, 0].tolist()

    for i in range(3):
        save(cats / "deep" / f"{i}.png", plain(80 * i))
    save(dogs / "0.png", plain(90))
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert levels(cats, True) == [0, 80, 160]
    [cache] = Path(gan.OUT, "cache").iterdir()
    assert levels(dogs, True) == [90]
    assert levels(cats, False) == [0, 80, 160]
    save(cats / "deep" / "1.png", plain(7))
    assert levels(cats, True) == [0, 7, 160]
    (cats / "deep" / "1.png").unlink()
    assert levels(cats, True) == [0, 160]
    for length in (-1, 0, 1):
        content = cache.read_bytes()
        cache.write_bytes((content + b"\1")[: len(content) + length])
        assert levels(cats, length != 0) == [0, 160]


def test_postscript_in_a_picture_never_runs(load, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: ran.append(1) or plain(0).im)
    save(tmp_path / "a.png", plain(70))
    save(tmp_path / "b.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n\n")
    assert len(load(tmp_path)) == 1 and ran == []
    Image.open(tmp_path / "b.png").load()
    assert ran == [1]  # so it was PostScript


# MNIST ------------------------------------------------------------------------------------------
IDX = "train-images-idx3-ubyte.gz"
GOOD = gzip.compress(idx(PIXELS))
FILES = {"mnist.npz": npz(x_train=PIXELS, x_test=OTHERS), IDX: GOOD}


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """Return Keras' cache, which is empty; there are no mirrors."""
    small(DATA="mnist")
    folder = tmp_path / "keras home" / "datasets"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(folder.parent))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(gan, "MIRRORS", ())
    monkeypatch.setattr(gan, "TIMEOUT", 1)
    monkeypatch.setattr(gan, "draw_digits", lambda count: OTHERS)
    return folder


@pytest.fixture
def mirrors(cache, tmp_path, monkeypatch):
    """Return a function that sets the mirrors, by what they do."""
    save(tmp_path / "web" / "good" / IDX, GOOD)
    save(tmp_path / "web" / "wrong" / IDX, GOOD[::-1])
    monkeypatch.setattr(gan, "SHA256", hashlib.sha256(GOOD).hexdigest())
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0))  # takes calls, but never answers
    limit = threading.Timer(20, silent.close)
    limit.start()

    def choose(*names):
        ports = {name: server.server_port for name in names} | {"silent": silent.getsockname()[1]}
        folders = [f"http://127.0.0.1:{ports[name]}/{name}/" for name in names]
        monkeypatch.setattr(gan, "MIRRORS", folders)

    yield choose
    assert limit.is_alive(), "the silent mirror was waited for"
    limit.cancel()
    silent.close()
    server.shutdown()
    server.server_close()


def assert_mnist():
    assert np.array_equal(gan.load_images()[..., 0], PIXELS) and gan.DATA == "mnist"


def test_mnist_in_the_cache_is_used_without_a_word_and_a_damaged_npz_named(cache, mirrors, capsys):
    mirrors("good")
    for name, content in FILES.items():
        (cache / name).write_bytes(content)
        assert_mnist()
        (cache / name).unlink()
    (cache / "mnist.npz").write_bytes(FILES["mnist.npz"][:99])
    with pytest.raises(gan.Problem, match="mnist.npz"):
        gan.load_images()
    assert (cache / "mnist.npz").read_bytes() == FILES["mnist.npz"][:99]
    assert capsys.readouterr() == ("", "")  # no mirror was asked


def test_a_bad_mirror_is_given_up_for_the_next_and_mnist_then_kept(cache, mirrors):
    before = socket.getdefaulttimeout()
    mirrors("missing", "wrong", "silent", "good")
    assert_mnist()
    assert socket.getdefaulttimeout() == before and (cache / IDX).read_bytes() == GOOD
    mirrors("missing")
    assert_mnist()


def test_without_mnist_the_reasons_and_the_cache_are_told_and_digits_drawn(cache, mirrors, capsys):
    mirrors("missing", "wrong")
    for _ in range(2):  # what is not MNIST is not taken for it the next time
        gan.DATA = "mnist"
        assert gan.load_images() is OTHERS and gan.DATA == "digits"
        out = capsys.readouterr().out
        assert all(f"    {mirror}: " in out for mirror in gan.MIRRORS) and "404" in out
        assert str(cache) in out and IDX in out


def test_where_there_is_no_home_folder_mnist_is_not_in_it(cache, monkeypatch):
    pwd = pytest.importorskip("pwd")
    for name in ("KERAS_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as for a container's unknown user
    assert gan.load_images() is OTHERS


# Drawn digits -----------------------------------------------------------------------------------
def test_drawn_digits_all_differ_and_lie_in_the_centre_like_those_of_mnist(small):
    small(DATA="digits")
    digits = gan.load_images()
    assert digits.shape == (20000, 28, 28, 1) and digits.dtype == np.uint8
    assert len({digit.tobytes() for digit in digits}) == 20000
    mean, places = digits.mean(axis=(0, 3)), np.arange(28)
    centre = mean.sum(1) @ places / mean.sum(), mean.sum(0) @ places / mean.sum()
    assert centre == pytest.approx((13.5, 13.5), abs=1)
    assert 15 < digits.mean() < 60 and digits.max() > 250  # 33 in MNIST
    mean[1:-1, 1:-1] = 0
    assert mean.max() < 5  # the border
