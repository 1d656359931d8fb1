"""`controlnet train` from end to end on a tiny base: train, stop, go on, save, reload, sample; and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import Identity
from comfyui_controlnet_core.controlnet_core.checkpoints.load import Checkpoint, load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.errors import UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import (
    ControlNetTraining,
    TrainingOptions,
    prepare_training,
)
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_many
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.examples import ExampleBatch
from comfyui_controlnet_core.controlnet_core.training.latent_cache import LatentCache
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.controlnet_core.training.probe import Probe, first_control, split_rows
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.nodes.standalone.host import ASSETS
from PIL import Image
from tiny_training import COUNT, SIZE, make_training_folder, tiny, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("train"))


def weights(path: Path) -> torch.Tensor:
    net, _ = load_controlnet(path, dtype=torch.float32)
    return torch.cat([p.flatten() for p in net.parameters()])


def opened(folder: Path, options: TrainingOptions | None = None, **recipe: Any) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE)
    return prepare_training(base, data, Recipe(**{"steps": 2, "batch": 2, "lr": 1e-3, **recipe}), options)


# ------------------------------------------------------------------------------------------ the command


def test_train_save_reload_sample(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "net.safetensors"
    more = ("--steps", "3", "--probe-every", "2", "--sample-every", "3", "--sample-steps", "2", "--json")
    assert train(folder, output, *more) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == [str(output)] and said["steps"] == 3
    log = [json.loads(line) for line in (tmp_path / "net_training" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if entry["kind"] == "probe"] == [2, 3]
    with Image.open(tmp_path / "net_training" / "samples" / "step_000003.png") as grid:
        assert grid.size == (3 * SIZE, 2 * SIZE)  # 2 of 9 are held out: hint, picture, target in a row
    net, identity = load_controlnet(output)
    assert identity.summary.startswith("ControlNet for the demo model (cldm layout")
    assert any(bool(zero.conv.weight.any()) for zero in net.zeros)


def test_a_stopped_training_goes_on_and_ends_with_the_same_net(folder: Path, tmp_path: Path) -> None:
    for name, stops in (("whole", 0), ("broken", 2)):
        for _ in range(stops):
            assert train(folder, tmp_path / f"{name}.safetensors", "--steps", "4", "--minutes", "0") == 0
            assert not (tmp_path / f"{name}.safetensors").exists()
        assert train(folder, tmp_path / f"{name}.safetensors", "--steps", "4", "--dtype", "fp32") == 0
    assert torch.equal(weights(tmp_path / "whole.safetensors"), weights(tmp_path / "broken.safetensors"))


def test_a_finished_training_can_be_made_longer_and_another_recipe_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    assert train(folder, output, "--steps", "1") == 0
    assert train(folder, output, "--steps", "2") == 0
    assert "continues from step 1" in capsys.readouterr().out
    assert train(folder, output, "--steps", "3", "--empty", "0.1") == 2
    assert "empty_captions was 0.5, is 0.1" in capsys.readouterr().err


def test_an_unlocked_base_is_written_beside_the_net(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    assert train(folder, output, "--steps", "2", "--unlock", "--dtype", "fp32") == 0
    before = load_checkpoint(folder / "base.safetensors").unet.state_dict()
    after = load_checkpoint(tmp_path / "net_base.safetensors").unet.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed == {"decoder", "norm_out", "conv_out"}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("--data", "{}/nowhere"), 3, "holds no examples: expected prompt.json"),
        (("--base", "{}/nothing.ckpt"), 3, "there is no checkpoint"),
        (("--output", "net.bin"), 2, "expected a .safetensors file"),
        (("--batch", "0"), 2, "batch is 0: choose a number from 1"),
        (("--lr", "nan"), 2, "lr is nan: choose a number from 0"),
        (("--ema", "1.5"), 2, "ema is 1.5: choose a number from 0 to 1"),
        (("--size", "0"), 2, "the size is 0 pixels"),
        (("--size", "40"), 2, "this base needs a multiple of 16"),
        (("--empty", "2"), 2, "choose a share between 0 and 1"),
    ],
)
def test_bad_usage(
    change: tuple[str, str], code: int, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tuple(word.format(folder) for word in change)
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1", *words) == code
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the engine


def test_a_fresh_net_does_not_control_and_probing_leaves_the_training_alone(folder: Path) -> None:
    training = opened(folder)
    before = training.loop.generator.get_state()
    fresh = training.probe()
    assert fresh.control == 0.0 and fresh.right == fresh.wrong and not fresh.appeared
    assert torch.equal(training.loop.generator.get_state(), before)
    assert training.probe() == fresh


def test_training_that_does_not_converge_the_probe_tells_a_net_for_edges_from_one_for_poses() -> None:
    """On edges as hints: a net that was trained on them lowers the loss, one that was not does less."""
    scenes = list(render_many(range(4), 64, 1))
    pictures, hints = (
        torch.stack([torch.from_numpy(np.asarray(x, np.float32)).movedim(-1, 0) for x in found])
        for found in ([scene.image for scene in scenes], [VIEWS["canny"](scene) for scene in scenes])
    )
    data = ExampleBatch(pictures * 2.0 - 1.0, hints, tuple(scene.caption for scene in scenes))
    base = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32)
    found = {}
    for kind in ("canny", "openpose"):
        net, _ = load_controlnet(ASSETS / f"demo_{kind}.safetensors", dtype=torch.float32)
        found[kind] = prepare_training(base, data, Recipe(steps=1), start=net).probe()
    assert found["canny"].appeared and found["canny"].control > 0.2, found
    assert found["canny"].control > found["openpose"].control, found


def test_control_appears_when_two_probes_in_a_row_say_so() -> None:
    def probe(step: int, control: float, certainty: float) -> Probe:
        return Probe(step, 1.0 - control, 1.0, control, certainty)

    quiet, loud, unsure = probe(1, 0.001, 9.0), probe(2, 0.3, 9.0), probe(3, 0.3, 1.0)
    assert first_control([]) is None and first_control([loud]) is None
    assert first_control([quiet, loud, unsure, loud]) is None
    assert first_control([quiet, loud, loud]) is loud


def test_samples_are_of_the_averaged_net_and_leave_the_training_alone(folder: Path) -> None:
    training = opened(folder)
    training.loop.run()
    before = {name: p.detach().clone() for name, p in training.loop.parameters().items()}
    pictures = training.sample(1, SampleSettings(steps=2, cfg=3.0))
    assert pictures.shape == (3, 3, SIZE, SIZE) and 0.0 <= float(pictures.min()) <= float(pictures.max()) <= 1.0
    assert all(torch.equal(p, before[name]) for name, p in training.loop.parameters().items())
    training.loop.recipe = replace(training.loop.recipe, steps=3)
    assert training.loop.run(), "gradients flow again behind a sample"


def test_only_the_middle_learns_when_only_it_is_heard(folder: Path) -> None:
    training = opened(folder, TrainingOptions(only_mid_control=True))
    training.loop.run()
    assert bool(training.net.zero_conv_middle.conv.weight.any())
    assert not any(bool(zero.conv.weight.any()) for zero in training.net.zeros[:-1])


def test_a_base_with_two_text_encoders_and_a_label_trains_too(folder: Path) -> None:
    """SDXL's shape in small: states of both encoders side by side, sizes and pooled text in the label vector."""
    config = replace(
        tiny(),
        unet=replace(tiny().unet, context_dim=64, label_dim=16 + 6 * 256),
        text=replace(tiny().text, vocab_size=49408),
        text2=replace(tiny().text, vocab_size=49408, projection=16),
    )
    assert config.text2 is not None
    torch.manual_seed(0)
    texts = ClipTextModel(config.text), ClipTextModel(config.text2)
    base = Checkpoint(
        config, UNet(config.unet), AutoencoderKL(config.vae), texts[0], Identity("checkpoint", "", ""), {}, texts[1]
    )
    training = prepare_training(base, open_examples(folder / "indexed", SIZE), Recipe(steps=1, batch=2))
    assert training.loop.run()
    assert bool(training.net.zero_conv_middle.conv.weight.any())
    assert training.sample(1, SampleSettings(steps=1, cfg=3.0)).shape == (3, 3, SIZE, SIZE)


def test_nets_and_bases_that_cannot_be_trained_are_named(folder: Path) -> None:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE)
    with pytest.raises(UnfitError, match="the net to start from was made for"):
        prepare_training(base, data, start=ControlNet(DEMO.controlnet))
    edm = replace(base, config=replace(base.config, parametrization="edm"))
    with pytest.raises(ValueRangeError, match="EDM noise levels"):
        prepare_training(edm, data)


# ----------------------------------------------------------------------------------------- the examples


def test_both_forms_of_a_folder_are_the_same_examples(folder: Path) -> None:
    indexed, paired = (open_examples(folder / name, SIZE) for name in ("indexed", "paired"))
    rows = range(COUNT)
    order = [indexed.captions(rows).index(caption) for caption in paired.captions(rows)]
    assert sorted(order) == list(rows)
    assert torch.equal(indexed.pictures(order), paired.pictures(rows))
    assert torch.equal(indexed.hints(order), paired.hints(rows))
    assert indexed.pictures([0]).min() < 0.0 <= indexed.hints([0]).min()


def test_hints_keep_their_colours_when_they_are_enlarged(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    labels = np.zeros((4, 6, 3), np.uint8)
    labels[:, 3:] = (10, 200, 30)
    Image.fromarray(labels).save(tmp_path / "source" / "a.png")
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "target" / "a.jpg")
    found = open_examples(tmp_path, 16).hints([0])
    assert set(map(tuple, (found * 255).round().int().flatten(2)[0].T.tolist())) == {(0, 0, 0), (10, 200, 30)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 1: expected an object with source, target and prompt"),
        ('{"source": "a.png", "target": "a.png"}', "line 1: expected an object"),
        ('{"source": "../a.png", "target": "a.png", "prompt": ""}', "leaves the folder"),
        (
            '{"source": "a.png", "target": "b.png", "prompt": ""}',
            "1 of 1 examples cannot be used, first: there",
        ),
        ("", "names no examples"),
    ],
)
def test_a_broken_index_is_told_by_its_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text(line)
    with pytest.raises(Exception, match=said):
        open_examples(tmp_path, SIZE)


def test_hint_and_picture_of_other_proportions_are_an_error(folder: Path, tmp_path: Path) -> None:
    for name, size in (("source", (8, 8)), ("target", (8, 12))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match=r"the hint a\.png is 8x8, its picture 8x12"):
        open_examples(tmp_path, 16)


def test_latents_are_encoded_once_while_there_is_room() -> None:
    asked: list[int] = []

    def encode(row: int) -> torch.Tensor:
        asked.append(row)
        return torch.tensor(row, dtype=torch.float32).reshape(1, 1, 1)

    cache = LatentCache(encode)
    assert cache([3, 3, 1]).flatten().tolist() == [3.0, 3.0, 1.0]
    assert cache([1, 2]).flatten().tolist() == [1.0, 2.0]
    assert asked == [3, 1, 2]
    small = LatentCache(encode, limit=1)
    assert small([4, 4]).flatten().tolist() == [4.0, 4.0] == small([4, 4]).flatten().tolist()


def test_captions_are_encoded_once_and_rounded_to_half_precision(folder: Path) -> None:
    training = opened(folder)
    encoder = training.checkpoint.text_encoder()
    captions = ["a red ball", "", "a red ball"]
    with torch.no_grad():
        expected = encoder(encoder.tokenize(captions))
        found, label = training.condition(captions, (SIZE, SIZE))
    assert label is None and torch.equal(found, expected.half().float())


def test_a_twentieth_is_held_out_always_the_same() -> None:
    train_rows, held = split_rows(100)
    assert len(held) == 5 and not set(held) & set(train_rows.tolist()) and split_rows(100)[1] == held
    assert split_rows(4)[1] == (0, 1, 2, 3) and split_rows(10_000)[0].numel() == 10_000 - 32
