"""`controlnet preprocess`: order, count, resuming, and errors in one line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError
from comfyui_controlnet_core.controlnet_core.picture_files import read_picture
from comfyui_controlnet_core.preprocessors import pose as poses
from comfyui_controlnet_core.workflows import destinations, hint_files
from comfyui_controlnet_core.workflows.cli import main
from picture_forms import can_write
from PIL import Image

from .conftest import make_pictures


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, frame in enumerate(np.rint(make_pictures(12, 24, 32) * 255).astype(np.uint8)):
        Image.fromarray(frame).save(folder / f"frame{index}.png")
    return folder


def preprocess(*words: object) -> int:
    return main(["preprocess", *map(str, words)])


def test_every_frame_gets_the_hint_of_its_name(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert preprocess("canny", frames, "--output", out, "--chunk", 5, "--set", "low=50", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["made"], report["kept"]) == (12, 0)
    assert [Path(name).name for name in report["outputs"]] == [f"frame{index}.png" for index in range(12)]
    for index in range(12):
        source = np.asarray(Image.open(frames / f"frame{index}.png"))
        assert np.array_equal(np.asarray(Image.open(out / f"frame{index}.png"))[..., 0], cv2.Canny(source, 50, 200))


def test_a_second_run_makes_only_what_is_missing_or_changed(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"

    def made(*words: object) -> int:
        assert preprocess("canny", frames, "--output", out, "--json", *words) == 0
        return json.loads(capsys.readouterr().out)["made"]

    assert made() == 12 and made() == 0
    (out / "frame3.png").unlink()
    (out / "frame4.png").write_bytes((out / "frame4.png").read_bytes()[:-20])
    assert made() == 2
    assert made("--set", "high=150") == 12
    assert made("--set", "high=150", "--overwrite") == 12
    assert not list(out.glob(".*"))


def test_pictures_of_several_kinds_and_sizes(tmp_path: Path) -> None:
    picture = np.rint(make_pictures(1, 40, 30)[0] * 255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    Image.fromarray(picture[..., 0]).save(tmp_path / "b.png")
    cv2.imwrite(str(tmp_path / "c.png"), picture.astype(np.uint16) * 257)
    np.save(tmp_path / "d.npy", picture.astype(np.float32)[:20] / 255)
    turned = Image.fromarray(picture)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "e.jpg", exif=exif)
    names = [tmp_path / name for name in ("a.jpg", "b.png", "c.png", "d.npy", "e.jpg")]
    assert preprocess("luminance", *names, "--output", tmp_path / "out") == 0
    sizes = [Image.open(tmp_path / "out" / f"{letter}.png").size for letter in "abcde"]
    assert sizes == [(30, 40), (30, 40), (30, 40), (30, 20), (40, 30)]
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "c.png"))[..., 0], gray)


def test_a_bad_file_does_not_keep_the_others_from_their_hints(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    (frames / "frame5.png").write_bytes(b"not a picture")
    np.save(frames / "frame6b.npy", np.zeros((8, 8, 5), np.float32))
    assert preprocess("canny", frames, "--output", out, "--chunk", 4) == 3
    said = capsys.readouterr()
    assert "11 made, 0 there already, 2 failed" in said.out
    error = said.err.strip().splitlines()[-1]
    for part in ("2 of 13 inputs have no hint", "frame5.png cannot be read", "frame6b.npy", "1 to 4 channels"):
        assert part in error
    assert len(list(out.glob("*.png"))) == 11 and not (out / "frame5.png").exists()
    assert preprocess("canny", frames, "--output", out, "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and "2 of 13" in report["error"]
    (frames / "frame6b.npy").unlink()
    Image.new("RGB", (32, 24)).save(frames / "frame5.png")
    assert preprocess("canny", frames, "--output", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 1


def test_words_and_floats_are_read_as_they_are_stored(tmp_path: Path) -> None:
    words = (np.arange(48).reshape(4, 4, 3) * 1000).astype(np.uint16)
    floats = words.astype(np.float32) / 7000 - 1
    stored = {
        "rgb.png": words,
        "gray.png": words[..., 0],
        "rgb.tif": words,
        "floats.tif": floats,
        "z.tiff": floats[..., 0],
    }
    for name, picture in stored.items():
        plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if "tif" in name else []
        cv2.imwrite(str(tmp_path / name), picture[..., ::-1] if picture.ndim == 3 else picture, plain)
        expected = picture if picture.ndim == 3 else picture[..., None]
        read = read_picture(tmp_path / name).pixels
        assert read.dtype == expected.dtype and np.array_equal(read, expected), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("ending", "depth"),
    [
        ("jpg", np.uint8),
        ("png", np.uint8),
        ("png", np.uint16),
        ("tif", np.uint8),
        ("tif", np.uint16),
        ("tif", np.float32),
    ],
)
def test_a_damaged_picture_is_said_in_one_line(
    depth: type, ending: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """The same exit code as a run whose LoadImage meets it, and no warning of a decoder beside our own line."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    path = tmp_path / f"x.{ending}"
    cv2.imwrite(str(path), noise.astype(depth))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 40):
        path.write_bytes(whole[:cut])
        assert preprocess("canny", path, "--output", tmp_path / "out") == DamagedFileError.exit_code == 3
        said = capfd.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "x." in said[0] and "cannot be read as a picture" in said[0]


def test_a_bad_pose_file_does_not_keep_the_others_from_theirs(tmp_path: Path) -> None:
    pose = poses.write_poses([poses.template_pose("standing", 64, 64)])
    for name, text in (("a.json", "{"), ("b.json", json.dumps(pose))):
        (tmp_path / name).write_text(text, "utf-8")
    assert preprocess("pose", tmp_path, "--output", tmp_path / "out") == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


def test_one_range_over_all_frames(tmp_path: Path) -> None:
    for index, far in enumerate((10, 20)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.array([[1000, far * 1000]] * 2, np.uint16))
    out = tmp_path / "out"
    assert preprocess("depth_map", tmp_path, "--output", out, "--normalize", "batch", "--chunk", 1) == 0
    values = [np.asarray(Image.open(out / f"{index}.png"))[0, 1, 0] for index in range(2)]
    assert values == [round(255 * 10 / 19), 0]


def test_one_range_over_all_frames_is_not_resumed_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, out = tmp_path / "in", tmp_path / "out"
    frames.mkdir()
    for index, far in enumerate((10, 20, 5)):
        cv2.imwrite(str(frames / f"{index}.png"), np.array([[1000, far * 1000]] * 2, np.uint16))

    def made() -> int:
        assert preprocess("depth_map", frames, "--output", out, "--normalize", "batch", "--json") == 0
        return json.loads(capsys.readouterr().out)["made"]

    def hints() -> list[np.ndarray]:
        return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]

    assert made() == 3 and made() == 0
    whole = hints()
    (out / "2.png").unlink()
    assert made() == 3
    assert all(np.array_equal(*pair) for pair in zip(whole, hints(), strict=True))
    (frames / "1.png").unlink()
    assert made() == 2, "the farthest frame is gone, the range is another"


def test_another_mask_makes_other_hints(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = tmp_path / "mask.png"

    def made(white: int) -> int:
        Image.fromarray(np.repeat(np.uint8([[0, 255]]), [32 - white, white], axis=1).repeat(24, 0)).save(mask)
        assert preprocess("invert", frames, "--output", tmp_path / "out", "--mask", mask, "--json") == 0
        return json.loads(capsys.readouterr().out)["made"]

    assert [made(10), made(10), made(20)] == [12, 0, 12]
    assert np.asarray(Image.open(tmp_path / "out" / "frame0.png"))[:, 12:].any(axis=-1).mean() > 0.9


def test_hints_below_the_folder_of_pictures_are_not_read_as_pictures(
    frames: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(frames)
    (frames / "folder.png").mkdir()
    for expected in (12, 0):
        assert preprocess("invert", ".", "--output", "output", "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["made"], len(report["outputs"])) == (expected, 12)


def test_poses_from_json(tmp_path: Path) -> None:
    pose = poses.template_pose("waving", 96, 64)
    (tmp_path / "p.json").write_text(json.dumps(poses.write_poses([pose, pose])), "utf-8")
    assert preprocess("pose", tmp_path / "p.json", "--output", tmp_path, "--resolution", 128) == 0
    hint = np.asarray(Image.open(tmp_path / "p_00001.png"))
    assert np.array_equal(hint, np.rint(poses.render([pose], height=192, width=128)[0] * 255))


def test_learned_kinds_find_their_nets_in_the_models_folder(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import torch
    from comfyui_controlnet_core.preprocessors.learned.teed import TEED

    out, models = tmp_path / "out", tmp_path / "models"
    models.mkdir()
    words = ("soft_edge_teed", frames, "--output", out, "--models", models, "--device", "cpu")
    assert preprocess(*words) == 3
    error = capsys.readouterr().err
    assert "7_model.pth" in error and str(models) in error and len(error.strip().splitlines()) == 1
    assert not list(out.glob("*"))
    (models / "annotators").mkdir()
    torch.save(TEED().state_dict(), models / "annotators" / "7_model.pth")
    assert preprocess(*words) == 0
    assert len(list(out.glob("*.png"))) == 12
    before = (out / "frame0.png").stat().st_mtime_ns
    assert preprocess(*words) == 0 and (out / "frame0.png").stat().st_mtime_ns == before
    torch.save(TEED().state_dict(), models / "annotators" / "7_model.pth")
    assert preprocess(*words) == 0 and (out / "frame0.png").stat().st_mtime_ns > before, "the net is another"


def test_listing(capsys: pytest.CaptureFixture) -> None:
    assert preprocess("--list") == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == {"pose", *preprocessors.names()}
    assert preprocess("canny", "--list") == 0
    assert "low=100.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["cany", "x.png"], 2, "did you mean canny"),
        (["canny"], 2, "no input"),
        (["canny", "absent.png"], 3, "no file or folder"),
        (["canny", "broken.png"], 3, "cannot be read"),
        (["canny", "good.png", "--set", "low=-3"], 2, "low="),
        (["canny", "good.png", "--set", "low"], 2, "NAME=VALUE"),
        (["inpaint", "good.png", "--mask", "good.png"], 2, "below 0"),
        (["canny", "good.png", "--output", "."], 2, "overwritten"),
        (["canny", "good.png", "sub/good.png"], 2, "both be written"),
        (["pose", "broken.png"], 3, "JSON"),
        (["shuffle", "good.png", "--seed", "-1"], 2, "seed=-1: choose 0 or more"),
        (["canny", "good.png", "--resolution", "1000000"], 2, "at most 16384: choose a smaller resolution"),
        (["pose", "pose.json", "--resolution", "1000000"], 2, "at most 16384: choose a smaller resolution"),
        (["pose", "pose.json", "--resolution", "-5"], 2, "resolution=-5"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("good.png", "sub/good.png"):
        Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_text("not a picture")
    pose = poses.write_poses([poses.template_pose("standing", 64, 64)])
    (tmp_path / "pose.json").write_text(json.dumps(pose), "utf-8")
    assert preprocess(*words) == code
    text = capsys.readouterr().err.strip()
    assert message in text and len(text.splitlines()) == 1


def test_doctor_tries_the_learned_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "7_model.pth").write_bytes(b"broken")
    words = ["doctor", "--preprocessors", "--models", str(tmp_path), "--device", "cpu", "--json"]
    assert main(words) == 1
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["soft_edge_hed"]["text"].startswith("absent, ControlNetHED.pth")
    assert not findings["soft_edge_hed"]["remedy"]
    refused = findings["soft_edge_teed"]
    assert refused["text"].startswith(f"refused, {tmp_path / '7_model.pth'} cannot be read") and refused["remedy"]
    assert "needs no weights" not in refused["text"], "what could do instead is another question"
    summary = findings["preprocessors"]["text"]
    assert "1 refused" in summary and str(tmp_path) in summary and " absent" in summary and " ok" not in summary


@pytest.mark.parametrize("name", ["empty.png", "huge.png", "cut.jpg"])
def test_one_picture_that_is_none_does_not_keep_the_others_from_their_hints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (16, 16)).save(photos / "good.png")
    Image.new("RGB", (64, 64)).save(photos / "cut.jpg")
    content = {"empty.png": b"", "huge.png": huge, "cut.jpg": (photos / "cut.jpg").read_bytes()[:300]}[name]
    (photos / "cut.jpg").unlink()
    (photos / name).write_bytes(content)
    assert main(["preprocess", "invert", str(photos), "--output", str(tmp_path / "out")]) == 3
    assert name in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_every_frame_of_an_animation_gets_a_numbered_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    frames = [Image.new("RGB", (12, 8), (50 * index,) * 3) for index in range(5)]
    options = {"lossless": True} if ending == "webp" else {}
    source, out = tmp_path / f"a.{ending}", tmp_path / "out"
    frames[0].save(source, save_all=True, append_images=frames[1:], **options)

    def made() -> int:
        assert preprocess("invert", source, "--output", out, "--json", "--chunk", 2) == 0
        return json.loads(capsys.readouterr().out)["made"]

    assert made() == 5 and made() == 0
    hints = [Image.open(path).getpixel((0, 0))[0] for path in sorted(out.iterdir())]
    assert [path.name for path in sorted(out.iterdir())] == [f"a_{index:05d}.png" for index in range(5)]
    assert np.allclose(hints, [255 - 50 * index for index in range(5)], atol=1)
    (out / "a_00003.png").unlink()
    assert made() == 1 and Image.open(out / "a_00003.png").getpixel((0, 0))[0] == hints[3]


def test_endings_count_in_a_folder_as_they_do_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = {"a.jfif": "JPEG", "b.JPG": "JPEG", "c.avif": "AVIF", "d.TIFF": "TIFF", "e.Png": "PNG"}
    names = {name: form for name, form in names.items() if can_write(form)}
    for name, form in names.items():
        Image.new("RGB", (12, 8)).save(folder / name, form)
    (folder / "._a.png").write_bytes(b"what macOS puts beside a picture")
    assert preprocess("invert", folder, "--output", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name[0]}.png" for name in names]


def test_less_common_formats_are_read_in_a_folder_as_by_pillow(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture = Image.fromarray(np.rint(make_pictures(1, 16, 16)[0] * 255).astype(np.uint8))
    for name, form in {"a.tga": "TGA", "b.ppm": "PPM", "c.jp2": "JPEG2000", "d.ico": "ICO"}.items():
        if can_write(form):
            picture.save(folder / name, form)
    picture.convert("L").save(folder / "e.pgm", "PPM")
    assert preprocess("invert", folder, "--output", out) == 0
    for source in folder.iterdir():
        read = 255 - np.asarray(Image.open(source).convert("RGB"), np.int16)
        hint = np.asarray(Image.open(out / f"{source.stem}.png"), np.int16)
        assert hint.shape == read.shape and np.abs(hint - read).max() <= 1, source.name


def test_files_of_a_folder_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (12, 8)).save(folder / "a.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    names = ["sub/b.psd", *(f"{index}.txt" for index in range(5))]
    for name in (*names, ".hidden.txt"):
        (folder / name).write_text("no picture", "utf-8")
    assert preprocess("invert", folder, "--output", tmp_path / "out") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert f"{folder}: 7 files are left out" in line and line.endswith("0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more")
    for name in names:
        (folder / name).unlink()
    assert preprocess("invert", folder, "--output", tmp_path / "out") == 0
    assert "1 file is left out" in (line := capsys.readouterr().err) and "gone.png (a link to nothing)" in line
    (folder / "gone.png").unlink()
    assert preprocess("invert", folder, "--output", tmp_path / "out") == 0 and "left" not in capsys.readouterr().err
    (folder / "a.png").rename(folder / "a.psd")
    assert preprocess("invert", folder, "--output", tmp_path / "out") == 3
    assert "it holds a.psd" in capsys.readouterr().err


def test_alpha_is_laid_over_white_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (12, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert preprocess("invert", tmp_path / "a.png", "--output", tmp_path / "out") == 0
    assert "1 laid over white" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "a.png").getpixel((0, 0)) == (0, 0, 0)


def test_two_pose_files_never_write_one_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pose = poses.template_pose("waving", 96, 64)
    for name, count in (("a", 2), ("a_00000", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(poses.write_poses([pose] * count)), "utf-8")
    assert preprocess("pose", tmp_path, "--output", tmp_path / "out") == 2
    assert "a_00000.png: rename one" in capsys.readouterr().err
    assert preprocess("pose", tmp_path / "a.json", "--output", tmp_path / "out") == 0
    capsys.readouterr()
    assert preprocess("pose", tmp_path / "a.json", "--output", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0


def test_a_pose_file_without_a_canvas_takes_one_from_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pose = poses.template_pose("waving", 96, 64)
    frame = {"version": 1.3, "people": [{"pose_keypoints_2d": pose.people[0].body.ravel().tolist()}]}
    source, photo = tmp_path / "p.json", tmp_path / "photo.png"
    source.write_text(json.dumps(frame), "utf-8")
    Image.new("RGB", (64, 96)).save(photo)
    assert preprocess("pose", source, "--output", tmp_path / "out") == 3
    assert "names no canvas size" in capsys.readouterr().err
    for canvas in ("64x96", photo):
        assert preprocess("pose", source, "--output", tmp_path / "out", "--canvas", canvas, "--overwrite") == 0
        hint = np.asarray(Image.open(tmp_path / "out" / "p.png"))
        assert np.array_equal(hint, np.rint(poses.render([pose])[0] * 255))
    assert preprocess("pose", source, "--canvas", "wide") == 2
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err
    assert preprocess("canny", photo, "--canvas", "64x96") == 2


def test_a_face_that_is_left_out_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (frame,) = poses.write_poses([poses.template_pose("waving", 96, 64)])
    frame["people"][0]["face_keypoints_2d"] = [1, 2, 1]
    (tmp_path / "p.json").write_text(json.dumps(frame), "utf-8")
    assert preprocess("pose", tmp_path / "p.json", "--output", tmp_path / "out") == 0
    assert "p.json: left out a face of 1 keypoints, expected 56 to 70" in capsys.readouterr().err


def test_transparent_parts_of_a_mask_are_black(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "a.png")
    mask = np.full((8, 8, 4), 255, np.uint8)
    mask[:, 4:, 3] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert preprocess("invert", tmp_path / "a.png", "--mask", tmp_path / "mask.png", "--output", tmp_path / "o") == 0
    hint = np.asarray(Image.open(tmp_path / "o" / "a.png"))
    assert hint[:, :4].min() == 255 and hint[:, 4:].max() == 0
    assert "transparent parts count as black" in capsys.readouterr().err


def test_floats_outside_the_range_are_said_where_they_are_clamped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "deep.npy", np.linspace(0, 40, 64, dtype=np.float32).reshape(8, 8))
    for kind, said in (("invert", True), ("depth_map", False)):
        assert preprocess(kind, tmp_path / "deep.npy", "--output", tmp_path / kind) == 0
        assert ("not between 0 and 1 (0 to 40)" in capsys.readouterr().err) is said


def test_an_archive_named_as_an_array_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    assert preprocess("invert", tmp_path / "a.npy", "--output", tmp_path / "o") == 3
    assert ".npz archive" in capsys.readouterr().err


@pytest.mark.parametrize("ignored", [False, True])
def test_names_that_differ_in_case_are_one_file_on_some_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ignored: bool
) -> None:
    for name in ("a.png", "A.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    known = destinations.ignores_case(tmp_path / "not" / "there")
    assert known is (tmp_path / "A.PNG").exists()
    monkeypatch.setattr(hint_files, "ignores_case", lambda folder: ignored)
    code = preprocess("invert", tmp_path, "--output", tmp_path / "out")
    assert code == (2 if ignored else 0)
    assert ("would both be written to" in capsys.readouterr().err) is ignored


@pytest.mark.parametrize(
    "words",
    [
        "invert --output out a.png -b.png",
        "--output out invert a.png -- -b.png",
        "invert --output out -- a.png -b.png",
        "invert a.png --output out ./-b.png",
    ],
)
def test_pictures_may_stand_before_and_after_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "-b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    if " -b.png" in words and "-- " not in words:
        assert preprocess(*words.split()) == 2
        assert "unrecognized arguments: -b.png" in capsys.readouterr().err
    else:
        assert preprocess(*words.split()) == 0
        assert len(list((tmp_path / "out").iterdir())) == 2
