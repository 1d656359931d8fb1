"""Images in and out: every form of file, names that never leave their folder, no incomplete files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import (
    CoreError,
    DamagedFileError,
    MissingFileError,
    PathError,
    ShapeError,
)
from comfyui_controlnet_core.nodes import file_prefix, folders, pictures
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from PIL import Image

IMAGE = torch.linspace(0, 1, 48).reshape(1, 4, 4, 3)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


# ---- reading


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "C:\\x.png", "~/x.png", "..\\x.png"])
def test_names_that_leave_the_folder(run: Any, host: StandaloneHost, name: str) -> None:
    (host.input_dir.parent / "x.png").write_bytes(pictures.encode_png(IMAGE[0], {}))
    for wanted in (name, f"{name} [output]", f"{name} [temp]"):
        with pytest.raises(PathError):
            run("LoadImage", image=wanted)
    with pytest.raises(PathError):
        run("SaveImage", images=IMAGE, filename_prefix=name)


def test_a_model_in_shards_is_one_name() -> None:
    shards = [f"big/x-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    names = ["b.ckpt", *shards, "y-00001-of-00001.bin", "a/c.safetensors"]
    assert folders.join_shards(names) == ("a/c.safetensors", "b.ckpt", "big")


def test_inside_allows_subfolders(tmp_path: Path) -> None:
    assert folders.inside(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    assert folders.inside(tmp_path, "a\\b.png") == tmp_path / "a" / "b.png"


def test_missing_pictures_name_the_nearest(run: Any, host: StandaloneHost) -> None:
    (host.input_dir / "photo.png").write_bytes(pictures.encode_png(IMAGE[0], {}))
    with pytest.raises(MissingFileError, match=r"did you mean 'photo.png'\? Searched .*input"):
        run("LoadImage", image="foto.png")


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("RGB", (255, 0, 51), (1.0, 0.0, 0.2)),
        ("RGBA", (255, 0, 51, 255), (1.0, 0.0, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("I;16", 13107, (0.2, 0.2, 0.2)),
    ],
)
def test_every_kind_of_picture(run: Any, host: StandaloneHost, mode: str, value: Any, expected: Any) -> None:
    Image.new(mode, (5, 3), value).save(host.input_dir / "x.png")
    image, _ = run("LoadImage", image="x.png")
    assert image.shape == (1, 3, 5, 3) and image.dtype == torch.float32
    assert torch.allclose(image[0, 0, 0], torch.tensor(expected), atol=1e-3)


def test_transparency_becomes_the_mask(run: Any, host: StandaloneHost) -> None:
    Image.new("RGBA", (5, 3), (1, 2, 3, 51)).save(host.input_dir / "x.png")
    assert torch.allclose(run("LoadImage", image="x.png")[1], torch.full((1, 3, 5), 0.8))
    assert torch.allclose(run("LoadImageMask", image="x.png", channel="alpha")[0], torch.full((1, 3, 5), 0.8))
    assert torch.allclose(run("LoadImageMask", image="x.png", channel="blue")[0], torch.full((1, 3, 5), 3 / 255))
    Image.new("RGB", (5, 3)).save(host.input_dir / "y.png")
    assert torch.equal(run("LoadImage", image="y.png")[1], torch.zeros(1, 64, 64))
    assert torch.equal(run("LoadImageMask", image="y.png", channel="alpha")[0], torch.zeros(1, 3, 5))


def test_frames_and_rotation(run: Any, host: StandaloneHost) -> None:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 90, 200)]
    frames[0].save(host.input_dir / "x.gif", save_all=True, append_images=frames[1:])
    assert run("LoadImage", image="x.gif")[0].shape == (3, 4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 2)).save(host.input_dir / "x.jpg", exif=exif)
    assert run("LoadImage", image="x.jpg")[0].shape == (1, 8, 2, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", pictures.encode_png(IMAGE[0], {})[:60]])
def test_damaged_pictures(run: Any, host: StandaloneHost, data: bytes) -> None:
    (host.input_dir / "x.png").write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"x.png cannot be read as a picture"):
        run("LoadImage", image="x.png")


def test_a_changed_file_is_read_again(host: StandaloneHost) -> None:
    from comfyui_controlnet_core.nodes import build_nodes

    node = build_nodes(host)["LoadImage"]
    (host.input_dir / "x.png").write_bytes(pictures.encode_png(IMAGE[0], {}))
    before = node.IS_CHANGED(image="x.png")
    assert node.VALIDATE_INPUTS(image="x.png") is True and before == node.IS_CHANGED(image="x.png")
    (host.input_dir / "x.png").write_bytes(pictures.encode_png(1 - IMAGE[0], {}))
    assert node.IS_CHANGED(image="x.png") != before


# ---- writing


def test_numbers_continue_and_no_file_is_overwritten(run: Any, host: StandaloneHost) -> None:
    host.output_dir.mkdir()
    (host.output_dir / "a_00007_.png").write_bytes(b"mine")
    (host.output_dir / "a_b_00009_.png").write_bytes(b"another prefix")
    saved = run("SaveImage", images=torch.cat([IMAGE, IMAGE]), filename_prefix="a")["ui"]["images"]
    assert [entry["filename"] for entry in saved] == ["a_00008_.png", "a_00009_.png"]
    assert (host.output_dir / "a_00007_.png").read_bytes() == b"mine"
    assert np.array_equal(read(host.output_dir / "a_00008_.png"), (255 * IMAGE[0].numpy()).astype(np.uint8))


def test_the_workflow_is_inside(run: Any, host: StandaloneHost) -> None:
    prompt = {"1": {"class_type": "KSampler", "inputs": {"seed": 3}, "_meta": {"title": "größer"}}}
    run("SaveImage", images=IMAGE, filename_prefix="sub/x", prompt=prompt, extra_pnginfo={"workflow": {"nodes": []}})
    with Image.open(host.output_dir / "sub" / "x_00001_.png") as image:
        assert json.loads(image.text["prompt"]) == prompt
        assert json.loads(image.text["workflow"]) == {"nodes": []}


def test_placeholders_in_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.struct_time((2024, 3, 9, 7, 5, 1, 5, 69, 0))
    monkeypatch.setattr(file_prefix.time, "localtime", lambda: moment)
    prompt = {"1": {"class_type": "KSampler", "inputs": {"seed": 3, "name": "../a:b"}, "_meta": {"title": "Paint"}}}
    cases = {
        "%date:yyyy-MM-dd%/%date:hhmmss%": "2024-03-09/070501",
        "%date:d.M.yy%": "9.3.24",
        "%year%%month%%day%_%hour%%minute%%second%": "20240309_070501",
        "%width%x%height%": "640x480",
        "%KSampler.seed%_%Paint.seed%": "3_3",
        "%Paint.name%": ".._a_b",
        "%Unknown.x% 100%": "%Unknown.x% 100%",
    }
    for prefix, expected in cases.items():
        assert file_prefix.expand_prefix(prefix, 640, 480, prompt) == expected


@pytest.mark.parametrize("prefix", ["", ".", "./"])
def test_empty_prefixes_stay_inside(run: Any, host: StandaloneHost, prefix: str) -> None:
    run("SaveImage", images=IMAGE, filename_prefix=prefix)
    assert (host.output_dir / "ComfyUI_00001_.png").is_file()


def test_a_full_disk_leaves_nothing(run: Any, host: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CoreError, match=r"No space left.*--output"):
        run("SaveImage", images=IMAGE)
    assert list(host.output_dir.iterdir()) == []


def test_previews_are_written_into_the_temporary_folder(run: Any, host: StandaloneHost) -> None:
    entry = run("PreviewImage", images=IMAGE)["ui"]["images"][0]
    assert entry["type"] == "temp" and (host.temp_dir / entry["filename"]).is_file()
    assert run("LoadImage", image=f"{entry['filename']} [temp]")[0].shape == IMAGE.shape


def test_shapes_that_are_no_pictures(run: Any) -> None:
    for shape in ((1, 4, 4, 2), (0, 4, 4, 3), (4, 4, 3)):
        with pytest.raises(ShapeError):
            run("SaveImage", images=torch.zeros(shape))


def test_gray_pictures_of_floats_and_of_many_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 1.0, 6, dtype=np.float32).reshape(2, 3)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    Image.fromarray((ramp * 65535).astype(np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        image, mask = pictures.read_picture(tmp_path / name)
        np.testing.assert_allclose(image[0, ..., 0].numpy(), ramp, atol=2e-5)
        assert mask.shape == (1, 64, 64)
    for name, values in (("metres.tif", ramp * 80), ("below.tif", -ramp), ("nan.tif", ramp * np.nan)):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(DamagedFileError, match=rf"{name} .*its numbers are not between 0 and 1 .*Depth Convert"):
            pictures.read_picture(tmp_path / name)
    Image.fromarray((ramp * 1e9).astype(np.int32)).save(tmp_path / "many.tif")
    with pytest.raises(DamagedFileError, match=r"not between 0 and 1 \(0 to 1e\+09\)"):
        pictures.read_picture(tmp_path / "many.tif")


def test_a_colour_called_a_is_no_transparency(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8), (200, 100, 50)).save(tmp_path / "lab.tif")
    assert not pictures.read_picture(tmp_path / "lab.tif")[1].any()


# ---- names and two at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\0b", "NUL"),
        ("a/\ud800", "half a character"),
        ("x" * 256, "256 bytes"),
        ("\u00e9" * 128 + "/a", "256 bytes"),
    ],
)
def test_names_that_no_file_can_have(run: Any, name: str, said: str) -> None:
    with pytest.raises(PathError, match=said):
        run("SaveImage", images=IMAGE, filename_prefix=name)
    with pytest.raises(PathError, match=said):
        run("LoadImage", image=name)


def test_the_longest_name_can_be_saved(run: Any, host: StandaloneHost) -> None:
    prefix = "x" * (folders.MAX_NAME_BYTES - len("_00001_.png"))
    run("SaveImage", images=IMAGE, filename_prefix=prefix)
    assert [path.name for path in host.output_dir.iterdir()] == [f"{prefix}_00001_.png"]


@pytest.mark.parametrize("name", ["CON", "a/nul.png", "Com1.txt/b", "a:b"])
def test_names_that_windows_reserves(name: str) -> None:
    assert "Windows reserves" in folders.name_fault(name, windows=True)
    assert folders.name_fault(name, windows=False) == ""
    assert folders.name_fault("console/null/com10", windows=True) == ""


def test_a_number_that_another_process_takes_meanwhile_stays_its_own(tmp_path: Path) -> None:
    names = [tmp_path / f"a_{number}.png" for number in range(3)]
    names[0].write_bytes(b"another's")
    new = tmp_path / ".new"
    new.write_bytes(b"mine")
    assert folders.publish(new, names) == names[1]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"another's", b"mine"]


def test_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Path, target: Path) -> None:
        raise PermissionError("this file system has no hard links")

    monkeypatch.setattr(Path, "hardlink_to", none)
    test_a_number_that_another_process_takes_meanwhile_stays_its_own(tmp_path)


def test_many_writers_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    write = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from comfyui_controlnet_core.nodes.pictures import save_pictures\n"
        "save_pictures(Path(sys.argv[1]), 'a', torch.full((40, 4, 4, 3), int(sys.argv[2]) / 255))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", write, str(tmp_path), str(n)]) for n in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    shown = [int(pictures.read_picture(path)[0].mean() * 255 + 0.5) for path in sorted(tmp_path.iterdir())]
    assert sorted(shown) == [0] * 40 + [1] * 40
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"a_{n:05}_.png" for n in range(1, 81)]


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_killed_writer_leaves_no_half_picture(tmp_path: Path) -> None:
    write = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from comfyui_controlnet_core.nodes.pictures import save_pictures\n"
        "image = torch.rand(1, 256, 256, 3)\n"
        "while True:\n    save_pictures(Path(sys.argv[1]), 'a', image)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", write, str(tmp_path)])
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*.png"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    writer.kill()
    writer.wait(60)
    saved = list(tmp_path.glob("*.png"))
    assert len(saved) >= 3
    assert {pictures.read_picture(path)[0].shape for path in saved} == {(1, 256, 256, 3)}
    others = [path.name for path in tmp_path.iterdir() if path not in saved]
    assert all(name.startswith(".") for name in others), others
