"""The data: files, folders of images, MNIST from the cache or the web, and the drawn digits."""

import functools
import gzip
import hashlib
import io
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import arguments
from PIL import EpsImagePlugin, Image

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
        small(DATA=str(data), OUT=out, **settings)
        images = gan.load_images()[1]
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
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_in_any_form_gives_its_images(load, tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    assert np.array_equal(load(tmp_path / name), PIXELS[..., np.newaxis])


def test_a_file_of_rgb_images_in_either_order_gives_three_channels(load, tmp_path):
    for content in (npy(RGB), npz(RGB), idx(RGB), npy(RGB.transpose(0, 3, 1, 2))):
        (tmp_path / "a").write_bytes(content)
        assert np.array_equal(load(tmp_path / "a"), RGB)


NUMBERS = {
    "bool": (LEVELS > 127, 255 * (LEVELS > 127)),
    "float64": (LEVELS / 255, LEVELS),
    "float32": (np.float32(LEVELS / 127.5 - 1), LEVELS),
    "float16": (np.float16(LEVELS / 255), LEVELS),
    "int16": (np.int16(LEVELS * 200 - 20000), LEVELS),
    "uint16": (np.uint16(LEVELS * 257), LEVELS),
    "big-endian": ((LEVELS * 100).astype(">i2"), LEVELS),
    "pixels-already": (LEVELS[:3], LEVELS[:3]),
    "bytes-of-0-and-1": (np.uint8(LEVELS > 127), 255 * (LEVELS > 127)),
    "few-bits": (np.uint8(LEVELS // 16), LEVELS // 16 * 17),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_type_are_scaled_to_pixels(load, tmp_path, kind):
    array, expected = NUMBERS[kind]
    for content in (npy(array), npz(array)):
        (tmp_path / "a").write_bytes(content)
        assert np.array_equal(load(tmp_path / "a")[..., 0], expected)


def test_training_is_the_same_from_mapped_and_from_wider_pixels(small, images, tmp_path):
    results = []
    for name, dtype in {"mapped": "u1", "wide": "i4", "big-endian": ">i8"}.items():
        out = tmp_path / name
        out.mkdir()
        np.save(out / "dots.npy", images.astype(dtype))
        assert isinstance(gan.read_file(out / "dots.npy"), np.memmap) == (name == "mapped")
        assert gan.main(arguments(DATA=out / "dots.npy", OUT=out, EPOCHS=1)) == 0
        pictures = sorted((out / "dots-001").glob("epoch-*.png"))
        results.append([picture.read_bytes() for picture in pictures])
    assert results[0] == results[1] == results[2] and results[0][0] != results[0][1]


def test_a_folder_with_the_files_of_mnist_gives_its_training_images(load, tmp_path):
    for name in ("train-images-idx3-ubyte", "emnist-letters-train-images-idx3-ubyte.gz"):
        packed = gzip.compress if name.endswith(".gz") else bytes
        folder = tmp_path / f"My data {name}"
        save(folder / name, packed(idx(PIXELS)))
        save(folder / name.replace("train", "t10k"), packed(idx(OTHERS)))
        labels = name.replace("images", "labels").replace("3", "1")
        save(folder / labels, packed(idx(PIXELS[:, 0, 0])))
        assert np.array_equal(load(folder), PIXELS[..., np.newaxis])
        assert gan.load_images()[0] == Path(folder.name).stem  # which names the run's folder


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
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_problem_that_names_it(load, tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(gan.Problem, match=name):
        load(tmp_path / name)


class Trap:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("pack", [npy, npz, lambda array: npz(x_train=array), pickle.dumps])
def test_pickled_objects_never_run(load, tmp_path, pack):
    trap = tmp_path / "trap"
    array = np.full((2, 3, 3), Trap(trap), object)
    (tmp_path / "a.npy").write_bytes(pack(array))
    with pytest.raises(gan.Problem, match="a.npy"):
        load(tmp_path / "a.npy")
    assert not trap.exists()
    pickle.loads(pickle.dumps(array))
    assert trap.exists()  # so the trap was a working one


def test_a_path_may_be_in_the_home_folder_but_must_exist(load, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "a.npy").write_bytes(npy(PIXELS))
    assert len(load("~/a.npy")) == 6
    with pytest.raises(gan.Problem, match="nowhere"):
        load(tmp_path / "nowhere")


# Folders of images ------------------------------------------------------------------------------
def test_images_of_every_format_in_every_folder_are_read_in_order(load, tmp_path, capsys):
    suffixes = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "PNG", "pgm"]
    for i in np.random.default_rng(0).permutation(len(suffixes)):
        path = tmp_path / f"{i}" / "deep" / "deeper" / f"a.{suffixes[i]}"
        save(path, plain(25 * int(i), size=(20 + int(i), 30)))
    for name in ("a.heic", "b.HEIC", "a.png.txt", ".DS_Store", "._a.png", "__MACOSX/a.png"):
        save(tmp_path / name, b"no image")
    linked = tmp_path.with_name(f"{tmp_path.name} linked")
    (tmp_path / "9").rename(linked)
    (tmp_path / "9").symlink_to(linked, target_is_directory=True)
    images = load(tmp_path, IMAGE_SIZE=12)
    assert images.shape == (len(suffixes), 12, 12, 1)
    expected = 25 * np.arange(len(suffixes)).reshape(-1, 1, 1, 1)
    assert np.abs(images.astype(int) - expected).max() <= 4
    assert capsys.readouterr() == ("left out: 2 .heic, 1 .txt\n", "")


def test_the_pictures_of_runs_are_not_read(load, tmp_path):
    for name in ("a.png", "run/epoch-000.png", "run/real.png", "run/generated/00000.png"):
        save(tmp_path / name, plain(70))
    assert len(load(tmp_path, IMAGE_SIZE=8)) == 1


def test_one_coloured_image_makes_all_of_them_rgb(load, tmp_path):
    save(tmp_path / "a.png", plain(70))
    save(tmp_path / "b.png", plain((90, 90, 90), "RGB"))
    assert load(tmp_path, IMAGE_SIZE=8).shape == (2, 8, 8, 1)
    save(tmp_path / "c.png", plain((90, 90, 91), "RGB"))
    colors = load(tmp_path)[:, 0, 0].tolist()
    assert colors == [[70, 70, 70], [90, 90, 90], [90, 90, 91]]


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_orientation_of_a_photo_is_applied(load, tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.kron([[0, 80], [160, 250]], np.ones((8, 8))).astype(np.uint8)
    save(tmp_path / "a.jpg", Image.fromarray(stored), exif=exif)
    assert np.allclose(load(tmp_path, IMAGE_SIZE=16)[0, ..., 0], np.rot90(stored, turns), atol=4)


def test_the_square_in_the_middle_is_cut_out(load, tmp_path):
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 200
    save(tmp_path / "a.png", Image.fromarray(wide))
    save(tmp_path / "b.png", Image.fromarray(wide.T.copy()))
    assert np.all(load(tmp_path, IMAGE_SIZE=16) == 200)


MODES = {
    "palette": (plain((10, 20, 30), "RGB").quantize(4), "png", {}, (10, 20, 30)),
    "cmyk": (plain((0, 255, 255, 0), "CMYK"), "tif", {}, (255, 0, 0)),
    "cmyk-jpg": (plain((0, 0, 0, 155), "CMYK"), "jpg", {}, 100),
    "alpha": (plain((200, 100, 50, 128), "RGBA"), "png", {}, (100, 50, 25)),
    "grey-alpha": (plain((200, 128), "LA"), "png", {}, 100),
    "palette-alpha": (plain((255, 0, 0), "RGB").quantize(2), "gif", {"transparency": 0}, 0),
    "16-bit": (plain(128 * 257, "I;16"), "png", {}, 128),
    "16-bit-tif": (plain(128 * 257, "I;16"), "tif", {}, 128),
    "12-bit": (plain(128 * 16, "I;16"), "tif", {}, 128),
    "floats": (plain(0.5, "F"), "tif", {}, 128),
    "dark-on-transparent": (plain((20, 20, 20, 0), "RGBA"), "png", {}, 0),
    "half-dark": (plain((20, 20, 20, 128), "RGBA"), "png", {}, 137),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_keeps_its_looks(load, tmp_path, mode):
    picture, suffix, options, color = MODES[mode]
    save(tmp_path / f"a.{suffix}", picture, **options)
    images = load(tmp_path, IMAGE_SIZE=8)
    assert np.abs(images.astype(int) - color).max() <= 2
    assert images.shape[-1] == (1 if np.ptp(color) == 0 else 3)


def test_every_bad_image_is_named_and_skipped_without_disorder(load, tmp_path, capsys):
    whole = npy(Image.fromarray(RGB[0]).resize((90, 90)), save=lambda file, x: x.save(file, "png"))
    for i in range(250):
        bad = (b"", b"no image", whole[: len(whole) // 2])[i % 3]
        good = plain(i, size=(1500, 1500) if i < 10 else (8, 8))  # the first ones take longest
        save(tmp_path / f"{i:03}.png", good if i % 9 else bad)
    images = load(tmp_path, IMAGE_SIZE=8)
    assert images[:, 0, 0, 0].tolist() == [i for i in range(250) if i % 9]
    warnings = sorted(capsys.readouterr().err.splitlines())
    for i, warning in zip(range(0, 250, 9), warnings, strict=True):
        assert "warning" in warning and f"{i:03}.png" in warning


def test_a_folder_is_decoded_once_until_it_changes(load, tmp_path, monkeypatch, capsys):
    reads, read = [], gan.read_picture
    monkeypatch.setattr(gan, "read_picture", lambda *words: reads.append(words) or read(*words))
    cats, dogs = tmp_path / "cats" / "train", tmp_path / "dogs" / "train"
    for i in range(3):
        save(cats / f"{i}.png", plain(80 * i))
    save(dogs / "0.png", plain(80))
    first, _, again = load(cats, IMAGE_SIZE=8), load(dogs), load(cats)
    assert len(reads) == 4 and np.array_equal(first, again) and isinstance(again, np.memmap)
    (cats / "1.png").unlink()
    assert load(cats)[:, 0, 0, 0].tolist() == [0, 160] and len(reads) == 6
    assert load(cats, IMAGE_SIZE=9).shape == (2, 9, 9, 1)
    assert len(list(Path(gan.OUT, "cache").iterdir())) == 3  # the old one of cats is gone
    assert capsys.readouterr() == ("", "")


def test_a_disk_without_room_for_the_decoded_images_is_told_and_memory_used(
    load, tmp_path, monkeypatch, capsys
):
    def full(path, save):
        raise OSError(28, "No space left on device")

    save(tmp_path / "a.png", plain((90, 80, 70), "RGB"))
    monkeypatch.setattr(gan, "write", full)
    assert load(tmp_path, IMAGE_SIZE=8)[0, 0, 0].tolist() == [90, 80, 70]
    assert "No space left" in capsys.readouterr().err


def test_a_folder_without_a_usable_image_is_a_problem(load, tmp_path):
    save(tmp_path / "faces" / "a.png", b"no image")
    with pytest.raises(gan.Problem, match="faces"):
        load(tmp_path / "faces")


def test_postscript_in_an_image_never_runs(load, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: ran.append(1) or plain(0).im)
    save(tmp_path / "a.png", plain(70))
    save(tmp_path / "b.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n\n")
    assert len(load(tmp_path)) == 1 and ran == []
    Image.open(tmp_path / "b.png").load()
    assert ran == [1]  # so it was PostScript


# MNIST ------------------------------------------------------------------------------------------
CONTENT, WRONG = gzip.compress(idx(PIXELS)), gzip.compress(idx(OTHERS))


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """Return Keras' cache, which is empty; MNIST is small, and there are no mirrors."""
    small(DATA="mnist")
    folder = tmp_path / "keras home" / "datasets"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(folder.parent))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(gan, "MNIST_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(gan, "MIRRORS", ())
    monkeypatch.setattr(gan, "TIMEOUT", 1)
    monkeypatch.setattr(gan, "draw_digits", lambda count: OTHERS)
    before = socket.getdefaulttimeout()
    yield folder
    socket.setdefaulttimeout(before)


@pytest.fixture
def mirrors(cache, monkeypatch):
    """Return a function that sets the mirrors, by what they do, and returns a list of those asked."""
    contents = {"good": CONTENT, "wrong": WRONG, "cut": CONTENT[:99], "silent": b""}
    asked, over = [], threading.Event()

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self):
            _, name, file = self.path.split("/")
            asked.append(name)
            if name == "missing" or file != gan.MNIST_FILE:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(WRONG if name == "wrong" else CONTENT)))
            self.end_headers()
            self.wfile.write(contents[name])
            if name == "silent" and not over.wait(20):
                asked.append("for too long")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def choose(*names):
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(gan, "MIRRORS", tuple(f"{here}/{name}/" for name in names))
        return asked

    yield choose
    over.set()
    server.shutdown()
    server.server_close()


def assert_mnist():
    name, images = gan.load_images()
    assert name == "mnist" and np.array_equal(images[..., 0], PIXELS)


CACHED = {"mnist.npz": npz(x_train=PIXELS, x_test=OTHERS), "train-images-idx3-ubyte.gz": CONTENT}


@pytest.mark.parametrize("name", CACHED)
def test_mnist_in_the_cache_is_used_without_a_word(cache, mirrors, capsys, name):
    asked = mirrors("good")
    (cache / name).write_bytes(CACHED[name])
    assert_mnist()
    assert asked == [] and capsys.readouterr() == ("", "")


def test_a_bad_mirror_is_given_up_for_the_next_and_mnist_then_kept_in_the_cache(cache, mirrors):
    asked = mirrors("missing", "wrong", "cut", "silent", "good", "missing")
    (cache / "mnist.npz").write_bytes(b"damaged")
    assert_mnist()
    assert asked == ["missing", "wrong", "cut", "silent", "good"]
    assert (cache / gan.MNIST_FILE).read_bytes() == CONTENT
    mirrors("missing")
    assert_mnist()
    assert asked[-1] == "good"  # no mirror is asked, as the file in the cache is right


def test_without_mnist_the_reasons_and_the_cache_are_told_and_digits_drawn(cache, mirrors, capsys):
    mirrors("missing", "silent", "wrong")
    name, images = gan.load_images()
    assert name == "digits" and images is OTHERS
    out = capsys.readouterr().out
    reasons = dict(line.strip().split(": ", 1) for line in out.splitlines() if line[:4] == "    ")
    assert list(reasons) == ["mnist.npz", *gan.MIRRORS] and all(reasons.values())
    assert "404" in reasons[gan.MIRRORS[0]]
    assert str(cache) in out and gan.MNIST_FILE in out
    # What is not MNIST is not taken for it the next time.
    assert gan.load_images()[0] == "digits"


# Drawn digits -----------------------------------------------------------------------------------
def test_drawn_digits_all_differ_and_lie_in_the_centre_like_those_of_mnist(small):
    small(DATA="digits")
    name, digits = gan.load_images()
    assert name == "digits" and digits.shape == (20000, 28, 28, 1) and digits.dtype == np.uint8
    assert len({digit.tobytes() for digit in digits}) == 20000
    mean, places = digits.mean(axis=(0, 3)), np.arange(28)
    centre = mean.sum(1) @ places / mean.sum(), mean.sum(0) @ places / mean.sum()
    assert centre == pytest.approx((13.5, 13.5), abs=1)
    assert 15 < digits.mean() < 60 and digits.max() > 250  # 33 in MNIST
    mean[1:-1, 1:-1] = 0
    assert mean.max() < 5  # the border
