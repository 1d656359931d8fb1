"""Learned preprocessors without their weights: key names, strict loading, errors, and how they are run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.preprocessors import pose
from comfyui_controlnet_core.preprocessors.catalog.learned import LEARNED
from comfyui_controlnet_core.preprocessors.entry import Entry, Weights
from comfyui_controlnet_core.preprocessors.learned import depth_anything, lineart, mlsd, normal_bae, openpose_nets
from comfyui_controlnet_core.preprocessors.learned.files import SUBFOLDERS, find_weights, load_strict, read_state
from comfyui_controlnet_core.preprocessors.learned.hed import HED
from comfyui_controlnet_core.preprocessors.learned.library import Library
from comfyui_controlnet_core.preprocessors.learned.openpose import estimate, face_box, hand_box
from comfyui_controlnet_core.preprocessors.learned.openpose_decode import _FIELDS, _LIMBS, find_people
from comfyui_controlnet_core.preprocessors.learned.pidinet import PiDiNet
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from few import few_of
from torch import nn

from .conftest import Random, make_pictures, randomized

MANIFESTS = Path(__file__).parent / "manifests"
NETS: dict[str, Callable[[], nn.Module]] = {
    "hed": HED,
    "pidinet": PiDiNet,
    "teed": TEED,
    "mlsd": mlsd.MLSD,
    "lineart": lineart.LineartGenerator,
    "lineart_anime": lineart.AnimeGenerator,
    "lineart_manga": lineart.MangaLine,
    "openpose_body": openpose_nets.BodyNet,
    "openpose_hand": openpose_nets.HandNet,
    "openpose_face": openpose_nets.FaceNet,
    "normal_bae": normal_bae.NormalBae,
    "depth_anything_small": partial(depth_anything.DepthAnything, depth_anything.SMALL),
    "depth_anything_base": partial(depth_anything.DepthAnything, depth_anything.BASE),
    "depth_anything_large": partial(depth_anything.DepthAnything, depth_anything.LARGE),
}
MILLIONS = {
    "hed": 14.7, "pidinet": 0.7, "teed": 0.06, "mlsd": 1.5, "lineart": 4.3, "lineart_anime": 54.4,
    "lineart_manga": 43.1, "openpose_body": 52.3, "openpose_hand": 36.8, "openpose_face": 38.4, "normal_bae": 72.4,
    "depth_anything_small": 24.8, "depth_anything_base": 97.5, "depth_anything_large": 335.3,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_key_names_and_shapes_are_the_official_ones(name: str) -> None:
    lines = (MANIFESTS / f"{name}.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("# from code, not from the file: ")
    official = dict(line.split() for line in lines[1:])
    with on_meta():
        net = NETS[name]()
    ours = {key: "x".join(map(str, value.shape)) or "-" for key, value in net.state_dict().items()}
    assert ours == official
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)


SMALL_FRAMES = make_pictures(2, 40, 56)


@pytest.mark.parametrize(
    "entry", few_of(LEARNED, *(e for e in LEARNED if e.name != "lineart_manga")), ids=lambda entry: entry.name
)
def test_every_learned_one_runs_on_batches_and_odd_sizes(entry: Entry, nets: Random) -> None:
    library = nets
    hint = preprocessors.process(entry, SMALL_FRAMES, library=library)
    assert hint.shape == (2, 40, 56, 3) and hint.dtype == np.float32
    assert np.isfinite(hint).all() and hint.min() >= 0 and hint.max() <= 1
    single = preprocessors.process(entry, SMALL_FRAMES[1:2], library=library)
    assert np.mean(np.abs(hint[1:2] - single) > 1e-3) < 0.01, "a batch equals its singles, within arithmetic"
    assert len(library.made) == len(set(library.made)), "nets are built once"


@pytest.mark.parametrize("entry", LEARNED, ids=lambda entry: entry.name)
def test_a_missing_file_is_an_instant_error_that_helps(entry: Entry, tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(preprocessors.WeightsError) as caught:
        preprocessors.process(entry, np.zeros((1, 64, 64, 3), np.float32), library=Library([tmp_path]))
    assert time.process_time() - start < 1.0
    text, weights = str(caught.value), entry.weights[0]
    for part in (weights.file, weights.source, weights.licence, str(tmp_path)):
        assert part in text
    with pytest.raises(preprocessors.WeightsError, match="no folder was given"):
        preprocessors.process(entry, np.zeros((1, 64, 64, 3), np.float32))


@pytest.fixture
def teed_file(tmp_path: Path) -> Path:
    path = tmp_path / SUBFOLDERS[1] / "7_model.pth"
    path.parent.mkdir()
    torch.save(randomized(TEED()).state_dict(), path)
    return path


def run_teed(library: Library) -> np.ndarray:
    return preprocessors.process("soft_edge_teed", SMALL_FRAMES, library=library, safe=False)


def test_a_net_is_loaded_once_and_again_when_its_file_changes(teed_file: Path, tmp_path: Path) -> None:
    library = Library([tmp_path])
    first = run_teed(library)
    (kept,) = library._nets.values()
    assert np.array_equal(run_teed(library), first)
    assert next(iter(library._nets.values())) is kept
    torch.save(randomized(TEED(), seed=1).state_dict(), teed_file)
    time.sleep(0.01)
    teed_file.touch()
    assert not np.array_equal(run_teed(library), first)
    library.forget()
    assert not library._nets


@pytest.mark.parametrize("wrap", ["state_dict", "model", "params", "module."])
def test_the_wrappings_of_training_code_are_taken_off(wrap: str, teed_file: Path, tmp_path: Path) -> None:
    expected = run_teed(Library([tmp_path]))
    state = torch.load(teed_file, weights_only=True)
    wrapped = {f"module.{key}": value for key, value in state.items()} if wrap == "module." else {wrap: state}
    torch.save(wrapped, teed_file)
    assert np.array_equal(run_teed(Library([tmp_path])), expected)


def test_damaged_wrong_and_renamed_files_are_refused_by_name(teed_file: Path, tmp_path: Path) -> None:
    state = torch.load(teed_file, weights_only=True)
    whole = teed_file.read_bytes()

    def refusal() -> str:
        with pytest.raises(preprocessors.WeightsError) as caught:
            run_teed(Library([tmp_path]))
        assert caught.value.exit_code == 3
        return str(caught.value)

    teed_file.write_bytes(whole[: len(whole) // 2])
    assert "7_model.pth cannot be read" in refusal()
    torch.save({key + "x" if key == "side_1.conv.bias" else key: value for key, value in state.items()}, teed_file)
    assert "side_1.conv.bias" in refusal() and "keys missing" in refusal()
    torch.save(state | {"side_1.conv.bias": torch.zeros(7)}, teed_file)
    assert "(7,) for (32,)" in refusal()
    torch.save(randomized(PiDiNet()).state_dict(), teed_file)
    assert "does not fit TEED" in refusal()
    torch.save([1, 2, 3], teed_file)
    assert "no state dict" in refusal()


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_with_code_is_refused_and_does_not_run(
    teed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Malicious()}, teed_file)
    with pytest.raises(preprocessors.WeightsError, match="cannot be read"):
        run_teed(Library([tmp_path]))
    assert not Path("executed").exists()


def test_files_are_found_where_users_have_them(tmp_path: Path) -> None:
    weights = Weights("a.pth", "somewhere", "MIT", ("own",))
    for below in (*SUBFOLDERS, "own"):
        folder = tmp_path / str(len(below)) / below
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.pth").touch()
        assert find_weights(weights, [tmp_path / "absent", tmp_path / str(len(below))]).name == "a.pth"


def test_safetensors_are_read_as_well(teed_file: Path) -> None:
    from safetensors.torch import save_file

    state = read_state(teed_file)
    path = teed_file.with_suffix(".safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    load_strict(TEED(), read_state(path), path)


# What the nets' maps mean, on maps made by hand.


def maps_of(people: list[np.ndarray], height: int, width: int, sigma: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps (H,W,19) and fields (H,W,38) as an ideal net would give them."""
    rows, columns = np.mgrid[0:height, 0:width]
    heat, fields = np.zeros((height, width, 19)), np.zeros((height, width, 38))
    for body in people:
        for part in np.flatnonzero(body[:, 2] > 0):
            spot = np.exp(-((columns - body[part, 0]) ** 2 + (rows - body[part, 1]) ** 2) / (2 * sigma**2))
            heat[..., part] = np.maximum(heat[..., part], spot)
        for (a, b), channel in zip(_LIMBS, _FIELDS, strict=True):
            if body[a, 2] > 0 and body[b, 2] > 0:
                way = body[b, :2] - body[a, :2]
                length = max(float(np.linalg.norm(way)), 1e-6)
                way = way / length
                along = (columns - body[a, 0]) * way[0] + (rows - body[a, 1]) * way[1]
                across = np.abs((columns - body[a, 0]) * way[1] - (rows - body[a, 1]) * way[0])
                inside = (along > -sigma / 2) & (along < length + sigma / 2) & (across < sigma)
                fields[inside, channel : channel + 2] = way
    return heat, fields


def test_people_are_put_together_from_ideal_maps() -> None:
    truth = [
        pose.template_pose("waving", 300, 400, box=(20, 20, 150, 280)).people[0].body,
        pose.template_pose("t_pose", 300, 400, box=(210, 60, 390, 290)).people[0].body,
    ]
    truth[1][7] = 0
    found = sorted(find_people(*maps_of(truth, 300, 400)), key=lambda body: body[0, 0])
    assert len(found) == 2
    for body, expected in zip(found, truth, strict=True):
        assert np.array_equal(body[:, 2] > 0, expected[:, 2] > 0)
        seen = expected[:, 2] > 0
        assert np.abs(body[seen, :2] - expected[seen, :2]).max() <= 1.0
    assert find_people(np.zeros((40, 50, 19)), np.zeros((40, 50, 38))) == []


class IdealOpenPose(Library):
    """Nets that know the truth: a person, hands in the middle of their boxes, faces likewise."""

    def __init__(self, body: np.ndarray) -> None:
        super().__init__(())
        self.body = body

    def find(self, weights: Weights) -> Path:
        return Path(weights.file)

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        library = self

        class Ideal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dummy = nn.Parameter(torch.zeros(1), requires_grad=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
                height, width = x.shape[-2] // 8, x.shape[-1] // 8
                if build is openpose_nets.BodyNet:
                    # The net sees half of 368 and its maps are an eighth of that; pixels count from centres.
                    small = library.body * (1 / 16, 1 / 16, 1) - (7.5 / 16, 7.5 / 16, 0)
                    heat, fields = maps_of([small], height, width, sigma=1.2)
                    both = (torch.from_numpy(m).permute(2, 0, 1).float() for m in (fields, heat))
                    return tuple(m.expand(len(x), -1, -1, -1) for m in both)
                count = build.width
                spot = torch.zeros(1, count, height, width)
                spot[:, :, height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2] = 1.0
                return spot

        return Ideal()


def test_openpose_from_picture_to_bodies_hands_and_faces() -> None:
    truth = pose.template_pose("waving", 368, 320, box=(40, 30, 280, 340)).people[0].body
    entry = preprocessors.get("pose_openpose")
    library = IdealOpenPose(truth)
    frames = np.zeros((1, 368, 320, 3), np.uint8)
    ((person,),) = [
        found.people for found in estimate(frames, library=library, weights=entry.weights, hands=True, face=True)
    ]
    assert (person.body[:, 2] > 0).all()
    assert np.abs(person.body[:, :2] - truth[:, :2]).max() < 4
    for hand, arm in ((person.left_hand, (5, 6, 7)), (person.right_hand, (2, 3, 4))):
        x, y, side = hand_box(person.body[list(arm)], 368, 320)
        assert np.abs(hand[:, :2] - (x + side / 2, y + side / 2)).max() < 0.1 * side
    assert person.face.shape == (70, 3) and (person.face[:, 2] > 0).all()
    hint = preprocessors.process(entry, frames, library=library, hands=True, face=True)
    assert np.array_equal(hint[0], pose.render([pose.Pose((person,), 368, 320)])[0])
    assert not preprocessors.process(entry, frames, library=IdealOpenPose(truth * 0)).any()


def test_boxes_around_hands_and_faces() -> None:
    arm = np.array([[100.0, 50, 1], [100, 90, 1], [100, 130, 1]])
    x, y, side = hand_box(arm, 400, 400)
    assert side == 60 and x + side / 2 == pytest.approx(100) and y + side / 2 == pytest.approx(143, abs=1)
    assert hand_box(arm * (1, 1, 0), 400, 400) is None and hand_box(arm / 8, 400, 400) is None
    body = pose.template_pose("standing", 400, 400).people[0].body
    x, y, side = face_box(body, 400, 400)
    assert x <= body[0, 0] <= x + side and y <= body[0, 1] <= y + side
    body[14:18] = 0
    assert face_box(body, 400, 400) is None


def test_mlsd_maps_become_segments() -> None:
    output = torch.full((2, 9, 32, 48), -9.0)
    output[1, 0, 10, 20] = 5.0
    output[1, 1:5, 10, 20] = torch.tensor([-8.0, -2.0, 8.0, 2.0])
    none, one = mlsd.decode(output, 0.1, 0.1)
    assert len(none) == 0
    assert one.tolist() == [[24.0, 16.0, 56.0, 24.0]]


def test_depth_looks_at_518_in_multiples_of_14() -> None:
    assert depth_anything.inner_size(512, 512) == (518, 518)
    assert depth_anything.inner_size(480, 640) == (518, 686)
    assert depth_anything.inner_size(640, 480) == (686, 518)


def test_depth_range_over_the_batch(nets: Random) -> None:
    library = nets
    frames = np.concatenate([SMALL_FRAMES[:1], SMALL_FRAMES[:1] * 0.2])
    alone = preprocessors.process("depth_anything_v2", frames, library=library)
    together = preprocessors.process("depth_anything_v2", frames, library=library, normalize="batch")
    assert alone[0].max() == alone[1].max() == 1.0
    assert together.max() == 1.0 and min(together[0].max(), together[1].max()) < 1.0


def test_the_polarity_of_line_art_is_white_on_black() -> None:
    """A net whose output is all paper gives a black hint, one whose output is all ink a white one."""

    class Paper(Library):
        def __init__(self, level: float) -> None:
            super().__init__(())
            self.level = level

        def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
            class Constant(nn.Module):
                def __init__(self, level: float) -> None:
                    super().__init__()
                    self.level = nn.Parameter(torch.tensor(level), requires_grad=False)

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    return self.level.expand(len(x), 1, *x.shape[-2:])

            return Constant(self.level)

    for name, paper, ink in (("lineart_realistic", 1, 0), ("lineart_anime", 1, -1), ("lineart_manga", 255, 0)):
        for level, expected in ((paper, 0.0), (ink, 1.0)):
            hint = preprocessors.process(name, SMALL_FRAMES[:1], library=Paper(float(level)))
            assert np.allclose(hint, expected), name


def test_half_precision_goes_through_the_nets(teed_file: Path, tmp_path: Path) -> None:
    full = run_teed(Library([tmp_path]))
    half = run_teed(Library([tmp_path], dtype=torch.bfloat16))
    assert half.dtype == np.float32 and np.abs(full - half).mean() < 0.02
