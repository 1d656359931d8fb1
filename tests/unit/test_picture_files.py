"""The one reader of picture files: upright, at full depth, all frames, within limits. All files are made here."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core.controlnet_core import picture_files
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError
from comfyui_controlnet_core.controlnet_core.limits import PICTURE_PIXELS
from comfyui_controlnet_core.controlnet_core.picture_files import count_frames, read_frames, read_picture
from picture_forms import AVIF
from PIL import Image

ORIENTATION = 274
BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
WORDS = BYTES[..., :1].astype(np.uint16) * 250
FLOATS = WORDS[..., 0].astype(np.float32) / 7 - 30


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as a viewer shows it that follows the EXIF standard."""
    return {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]


def tiff(pages: list[np.ndarray], orientation: int = 1, kinds: tuple[int, ...] = ()) -> bytes:
    """An uncompressed TIFF with colours of 16 bits or floats, which Pillow cannot write."""
    out, next_at = bytearray(b"II*\0\0\0\0\0"), 4
    for number, page in enumerate(pages):
        height, width, channels = page.shape
        data = len(out)
        out += page.tobytes()
        shorts = [[8 * page.itemsize] * channels, [3 if page.dtype.kind == "f" else 1] * channels]
        lists = [len(out), len(out) + 2 * channels]
        out += struct.pack(f"<{2 * channels}H", *shorts[0], *shorts[1])
        kind = kinds[number] if kinds else 0
        tags = [(254, 4, 1, kind), (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, lists[0])]
        tags += [(259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, data), (ORIENTATION, 3, 1, orientation)]
        tags += [(277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, page.nbytes), (339, 3, channels, lists[1])]
        struct.pack_into("<I", out, next_at, len(out))
        out += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        next_at = len(out)
        out += b"\0\0\0\0"
    return bytes(out)


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size and ends after a few bytes."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = (b"IDAT", zlib.compress(bytes(1000), 9))
    parts = [
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in (header, *chunks, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "lzw.tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_gray_and_colours_are_turned_by_their_orientation(
    tmp_path: Path, ending: str, depth: int, orientation: int
) -> None:
    path = tmp_path / f"x.{ending}"
    pixels = BYTES if depth == 8 else WORDS
    options = {"compression": "tiff_lzw"} if ending == "lzw.tif" else {}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    tags = {"exif": exif} if ending == "png" else {"tiffinfo": {ORIENTATION: orientation}, **options}
    Image.fromarray(pixels.squeeze()).save(path, **tags)
    read = read_picture(path).pixels
    assert read.dtype == pixels.dtype and np.array_equal(read, turned(pixels, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_by_their_orientation(tmp_path: Path, orientation: int) -> None:
    words = BYTES.astype(np.uint16) * 250
    (tmp_path / "x.tif").write_bytes(tiff([words], orientation))
    assert np.array_equal(read_picture(tmp_path / "x.tif").pixels, turned(words, orientation))
    plain = cv2.imencode(".png", words[..., ::-1])[1].tobytes()
    body = b"eXIf" + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", ORIENTATION, 3, 1, orientation) + b"\0\0\0\0"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(plain[:33] + chunk + plain[33:])
    assert np.array_equal(read_picture(tmp_path / "x.png").pixels, turned(words, orientation))


@pytest.mark.parametrize("form", ["JPEG", AVIF])
def test_jpeg_jfif_and_avif_are_turned_and_count_as_pictures(tmp_path: Path, form: str) -> None:
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name in {"JPEG": ("a.JPG", "b.jfif"), "AVIF": ("c.AVIF",)}[form]:
        path = tmp_path / name
        Image.fromarray(ramp).save(path, form, exif=exif, quality=95)
        assert path.suffix.lower() in picture_files.PICTURE_ENDINGS
        assert np.abs(read_picture(path).pixels.astype(int) - turned(ramp, 6)).mean() < 3


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", AVIF])
def test_all_frames_are_read_in_order(tmp_path: Path, form: str) -> None:
    shades = [20, 90, 160, 230, 120]
    frames = [Image.new("RGB", (16, 12), (shade, shade, shade)) for shade in shades]
    path = tmp_path / f"x.{form.lower()}"
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
    read = [frame.pixels for frame in read_frames(path)]
    assert count_frames(path) == len(read) == 5 and {frame.shape[:2] for frame in read} == {(12, 16)}
    assert np.abs([frame[..., 0].mean() - shade for frame, shade in zip(read, shades, strict=True)]).max() < 3
    assert np.array_equal(read_picture(path).pixels, read[0])


def test_pages_with_deep_colours_and_no_smaller_copies(tmp_path: Path) -> None:
    words, small = BYTES.astype(np.uint16) * 250, BYTES[:2, :2].astype(np.uint16)
    (tmp_path / "words.tif").write_bytes(tiff([words, small, words + 3], kinds=(0, 1, 0)))
    pages = [frame.pixels for frame in read_frames(tmp_path / "words.tif")]
    assert len(pages) == 2 and np.array_equal(pages[0], words) and np.array_equal(pages[1], words + 3)
    floats = BYTES.astype(np.float32) / 7 - 3
    (tmp_path / "floats.tif").write_bytes(tiff([floats, floats + 1]))
    pages = [frame.pixels for frame in read_frames(tmp_path / "floats.tif")]
    assert np.array_equal(pages, [floats, floats + 1])


def test_the_stand_in_of_an_animated_png_is_no_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 10, 20)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:], default_image=True)
    assert [frame.pixels[0, 0, 0] for frame in read_frames(tmp_path / "x.png")] == [10, 20]


def test_depth_is_scaled_by_its_own_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "gray.png")
    cv2.imwrite(str(tmp_path / "rgb.png"), ramp[..., None].repeat(3, 2))
    for name in ("gray.png", "rgb.png"):
        colours = read_picture(tmp_path / name).over_white()
        np.testing.assert_allclose(colours, (ramp / 65535.0)[..., None].repeat(3, 2), atol=1e-6)
        assert abs(colours.mean() - 0.5) < 1e-3
    Image.fromarray(FLOATS).save(tmp_path / "x.tif")
    assert np.array_equal(read_picture(tmp_path / "x.tif").pixels[..., 0], FLOATS)


@pytest.mark.parametrize(
    ("mode", "value", "colour", "opacity"),
    [
        ("RGBA", (255, 0, 51, 51), (1.0, 0.8, 0.84), 0.2),
        ("RGBA", (255, 0, 51, 0), (1.0, 1.0, 1.0), 0.0),
        ("LA", (51, 102), (0.68, 0.68, 0.68), 0.4),
        ("CMYK", (0, 255, 255, 0), (1.0, 0.0, 0.0), 1.0),
        ("1", 1, (1.0, 1.0, 1.0), 1.0),
    ],
)
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str, value: object, colour: object, opacity: float) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 3), value).save(path)
    picture = read_picture(path)
    np.testing.assert_allclose(picture.over_white()[1, 1], colour, atol=2e-3)
    np.testing.assert_allclose(picture.alpha(), opacity, atol=1e-6)


def test_a_colour_that_stands_for_nothing_is_transparent(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 210, 220])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.fromarray(np.array([[7, 60000]], np.uint16)).save(tmp_path / "gray.png")
    cut = (tmp_path / "gray.png").read_bytes()
    body = b"tRNS" + struct.pack(">H", 7)
    (tmp_path / "gray.png").write_bytes(
        cut[:33] + struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body)) + cut[33:]
    )
    assert read_picture(tmp_path / "palette.png").alpha().tolist() == [[1.0, 0.0]]
    assert read_picture(tmp_path / "gray.png").alpha().tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_a_picture_over_the_limit_is_told_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "x.png").write_bytes(png_header(*size))
    began = time.process_time()
    with pytest.raises(DamagedFileError, match=rf"x.png is too large: .*{PICTURE_PIXELS.number:,}") as error:
        read_picture(tmp_path / "x.png")
    assert time.process_time() - began < 1
    assert f"{size[0] * size[1]:,}" in str(error.value)


def test_frames_times_pixels_are_limited_before_they_are_decoded(tmp_path: Path) -> None:
    frames = [Image.new("P", (4096, 4096), shade) for shade in range(20)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "x.png").write_bytes(png_header(512, 512, (b"acTL", struct.pack(">II", 9_000, 0))))
    for name in ("x.gif", "x.png"):
        began = time.process_time()
        with pytest.raises(DamagedFileError, match=rf"{name} is too large: \d+ frames of \d+x\d+ has [\d,]+ pixels"):
            next(read_frames(tmp_path / name))
        assert time.process_time() - began < 2
    assert read_picture(tmp_path / "x.gif").pixels.shape == (4096, 4096, 3)


@pytest.mark.parametrize("count", [10_001, 2**31 - 1])
def test_frames_are_limited_before_a_hint_is_planned_for_each(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_header(4, 4, (b"acTL", struct.pack(">II", count, 0))))
    for read in (count_frames, read_picture):
        with pytest.raises(DamagedFileError, match=r"x.png is too large: it has [\d,]+ frames, expected at most"):
            read(path)
    path.write_bytes(png_header(4, 4, (b"acTL", struct.pack(">II", 9_999, 0))))
    assert count_frames(path) == 9_999


def test_false_headers_of_arrays_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, BYTES)
    assert np.array_equal(read_picture(path).pixels, BYTES)
    whole = path.read_bytes()
    for broken in (
        whole.replace(b"(5, 7, 3)", b"(90000000000, 7, 3)"),
        whole[:40],
        b"PK\x03\x04" + whole,
        whole.replace(b"|u1", b"|O8"),
        b"",
    ):
        path.write_bytes(broken)
        with pytest.raises(DamagedFileError, match=r"x.npy cannot be read"):
            read_picture(path)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 0), (0, 4), (4, 4, 5), (1, 4, 4, 3), ()])
@pytest.mark.parametrize("kind", ["f4", "c8", "U1", "M8[s]"])
def test_arrays_that_are_no_picture(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, kind))
    with pytest.raises(DamagedFileError, match=r"x.npy cannot be read as a picture \(it holds .* with 1 to 4 channels"):
        read_picture(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((4, 4), kind))
    if kind != "f4":
        with pytest.raises(DamagedFileError, match=r"it holds .* of shape \(4, 4\)"):
            read_picture(tmp_path / "x.npy")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", AVIF])
def test_every_cut_is_one_error_that_names_the_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(path, form)
    whole = path.read_bytes()
    for part in (0, 1, 7, 16, 40, len(whole) // 2):
        path.write_bytes(whole[:part])
        with pytest.raises(DamagedFileError, match=r"x.tif cannot be read as a picture"):
            read_picture(path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("x.png")  # no permissions, because a superuser has them all
    with pytest.raises(DamagedFileError, match=r"x.png cannot be read \(.*\): check its name, and the permissions"):
        read_picture(tmp_path / "x.png")


def test_programs_that_draw_are_not_run(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DamagedFileError, match="EPS is a program"):
        read_picture(path)


def test_a_false_length_in_a_png_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    path.write_bytes(data[:start] + (2**31 - 1).to_bytes(4, "big") + data[start + 4 :])
    tracemalloc.start()
    try:
        with contextlib.suppress(DamagedFileError):
            read_picture(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
