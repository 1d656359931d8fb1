"""Loading and saving: round trips, no copies, types, and what is said about files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import load as loading
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import format_bytes, inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.load import (
    Checkpoint,
    load_checkpoint,
    load_controlnet,
    load_text_model,
    load_unet,
    load_vae,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.plan import same_matrix
from comfyui_controlnet_core.controlnet_core.checkpoints.save import (
    LAYOUT_NAMES,
    LayoutName,
    save_checkpoint,
    save_controlnet,
    save_vae,
)
from comfyui_controlnet_core.controlnet_core.config import (
    DEMO,
    ControlNetConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TINY = ModelConfig(
    "tiny",
    UNetConfig(widths=(32, 64), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=32),
    VAEConfig(widths=(32, 32), res_blocks=1, patch=2, scaling_factor=0.9),
    TextConfig(width=32, layers=1, heads=2, vocab_size=40),
    parametrization="v",
)
NET = ControlNetConfig(unet=TINY.unet, hint_widths=(16, 16, 32, 32))
Parts = tuple[UNet, AutoencoderKL, ClipTextModel, ControlNet]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(0)
    net = ControlNet(NET)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return UNet(TINY.unet), AutoencoderKL(TINY.vae), ClipTextModel(TINY.text), net


@pytest.fixture
def saved(tmp_path: Path, parts: Parts) -> Callable[..., Path]:
    def save(layout: LayoutName = "ldm", dtype: torch.dtype | None = None) -> Path:
        path = tmp_path / f"model-{layout}.safetensors"
        extras = {"vocab_map": torch.arange(40)}
        save_checkpoint(path, TINY, *parts[:3], extras=extras, layout=layout, dtype=dtype)
        return path

    return save


@pytest.fixture
def saved_net(tmp_path: Path, parts: Parts) -> Callable[..., Path]:
    def save(layout: LayoutName = "ldm", dtype: torch.dtype | None = None) -> Path:
        path = tmp_path / f"net-{layout}.safetensors"
        save_controlnet(path, parts[3], layout=layout, dtype=dtype, family="tiny", metadata={"steps": "9"})
        return path

    return save


def assert_equal(module: nn.Module | None, other: nn.Module) -> None:
    assert module is not None
    ours, theirs = module.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None], keep_metadata: bool = True) -> Path:
    """Change the tensors of a file."""
    metadata = dict(read_header(path).metadata) if keep_metadata else {}
    tensors = load_file(path)
    change(tensors)
    write_safetensors(path, tensors, metadata)
    return path


# --------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_checkpoint_survives_saving_and_loading(saved: Callable[..., Path], parts: Parts, layout: LayoutName) -> None:
    checkpoint = load_checkpoint(saved(layout))
    assert checkpoint.config == TINY
    assert checkpoint.identity.family == "tiny"
    assert_equal(checkpoint.unet, parts[0])
    assert_equal(checkpoint.vae, parts[1])
    assert_equal(checkpoint.text_model, parts[2])
    assert list(checkpoint.extras) == ["vocab_map"]
    assert torch.equal(checkpoint.extras["vocab_map"], torch.arange(40))


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_controlnet_survives_saving_and_loading(
    saved_net: Callable[..., Path], parts: Parts, layout: LayoutName
) -> None:
    net, identity = load_controlnet(saved_net(layout))
    assert net.config == NET == identity.config
    assert_equal(net, parts[3])
    assert read_header(saved_net(layout)).metadata["steps"] == "9"


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_an_autoencoder_survives_saving_and_loading(tmp_path: Path, parts: Parts, layout: LayoutName) -> None:
    save_vae(tmp_path / "vae.safetensors", parts[1], layout=layout)
    vae = load_vae(tmp_path / "vae.safetensors")
    assert vae.config == TINY.vae
    assert_equal(vae, parts[1])


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_file_saved_again_is_the_same_file(saved: Callable[..., Path], tmp_path: Path, layout: LayoutName) -> None:
    """Foreign layout -> our names -> foreign layout: keys, shapes and values bit-equal."""
    path = saved(layout)
    checkpoint = load_checkpoint(path)
    again = tmp_path / "again.safetensors"
    save_checkpoint(
        again,
        checkpoint.config,
        checkpoint.unet,
        checkpoint.vae,
        checkpoint.text_model,
        extras=checkpoint.extras,
        layout=layout,
    )
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_controlnet_saved_again_is_the_same_file(
    saved_net: Callable[..., Path], tmp_path: Path, layout: LayoutName
) -> None:
    path = saved_net(layout)
    net, identity = load_controlnet(path)
    again = tmp_path / "again.safetensors"
    save_controlnet(again, net, layout=layout, family=identity.family, metadata={"steps": "9"})
    assert again.read_bytes() == path.read_bytes()


def test_saving_over_the_file_that_is_loaded(saved: Callable[..., Path], parts: Parts) -> None:
    """The weights are mapped from the very file that is replaced; they stay what they are."""
    path = saved("ldm")
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, TINY, checkpoint.unet, checkpoint.vae, checkpoint.text_model, dtype=torch.float16)
    assert_equal(checkpoint.unet, parts[0])
    assert load_unet(path).conv_out.weight.dtype == torch.float16


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parts_are_loaded_out_of_a_checkpoint(saved: Callable[..., Path], parts: Parts, layout: LayoutName) -> None:
    path = saved(layout)
    assert_equal(load_unet(path), parts[0])
    assert_equal(load_vae(path), parts[1])
    assert_equal(load_text_model(path), parts[2])


def test_a_checkpoint_may_lack_text_encoder_and_autoencoder(tmp_path: Path, parts: Parts) -> None:
    path = tmp_path / "unet-only.safetensors"
    save_checkpoint(path, TINY, parts[0])
    checkpoint = load_checkpoint(path)
    assert checkpoint.vae is None
    assert checkpoint.text_model is None
    with pytest.raises(CheckpointError, match="no text encoder"):
        checkpoint.text_encoder()
    with pytest.raises(CheckpointError, match="without the wanted part 'vae'"):
        load_vae(path)


def test_the_text_encoder_comes_with_its_reduced_vocabulary(tmp_path: Path) -> None:
    from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap

    vocab = VocabMap.from_words(ClipTokenizer.load(), ["a red ball"])
    config = replace(DEMO, text=replace(DEMO.text, vocab_size=vocab.rows))
    path = tmp_path / "demo.safetensors"
    text = ClipTextModel(config.text)
    save_checkpoint(path, config, UNet(config.unet), None, text, extras={"vocab_map": vocab.to_tensor()})
    encoder = load_checkpoint(path).text_encoder()
    assert encoder.encode("a red ball").shape == (1, 77, config.text.width)


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_weights_only_pickle_of_the_trainer(
    tmp_path: Path, saved_net: Callable[..., Path], parts: Parts, layout: LayoutName
) -> None:
    """Heads cannot be seen without metadata: all else is there."""
    path = tmp_path / "net.pth"
    torch.save({"state_dict": load_file(saved_net(layout)), "global_step": 7}, path)
    net, identity = load_controlnet(path)
    assert net.config == replace(NET, unet=replace(NET.unet, num_heads=8))
    assert identity.family == "custom"
    assert_equal(net, parts[3])


# ----------------------------------------------------------------------------------- memory and types


def mapped(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether all parameters lie in the storage that the file is mapped to."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    return all(parameter.untyped_storage().data_ptr() in storages for parameter in module.parameters())


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_weights_are_the_tensors_of_the_file(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, layout: LayoutName
) -> None:
    """Every parameter, reshaped ones included, is a view of the mapped file: nothing is copied."""
    kept: dict[str, Tensor] = {}

    def keep(*args: object) -> dict[str, Tensor]:
        tensors = read_tensors(*args)  # type: ignore[arg-type]
        kept.update(tensors)
        return tensors

    path = saved(layout)
    monkeypatch.setattr(loading, "read_tensors", keep)
    checkpoint = load_checkpoint(path)
    pointers = {tensor.data_ptr() for tensor in kept.values()}
    for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_model):
        assert module is not None
        assert {parameter.data_ptr() for parameter in module.parameters()} <= pointers
        assert mapped(module, kept)


def test_loaded_models_are_ready_for_inference(saved: Callable[..., Path]) -> None:
    unet = load_checkpoint(saved()).unet
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert not any(parameter.is_meta for parameter in unet.parameters())
    x = torch.randn(1, 4, 8, 8)
    assert unet(x, torch.tensor([7.0]), torch.randn(1, 3, 32)).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_types(saved: Callable[..., Path], parts: Parts, stored: torch.dtype, dtype: torch.dtype) -> None:
    path = saved("ldm", stored)
    assert {info.dtype for info in read_header(path).tensors.values()} == {stored, torch.int64}
    kept = load_unet(path)
    assert {parameter.dtype for parameter in kept.parameters()} == {stored}
    cast = load_unet(path, dtype=dtype)
    assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
    expected = parts[0].conv_out.weight.to(stored).to(dtype)
    assert torch.equal(cast.conv_out.weight, expected)


def test_the_timestep_stays_float32_in_a_half_precision_model(saved: Callable[..., Path]) -> None:
    """In bfloat16 timesteps 996 and 997 are one number; their embeddings have to differ."""
    unet = load_unet(saved(), dtype=torch.bfloat16)
    emb = unet.embed(torch.tensor([996.0, 997.0]))
    assert emb.dtype == torch.bfloat16
    assert not torch.equal(emb[0], emb[1])


def test_other_types_are_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(ValueRangeError, match=r"dtype is torch.int8, expected one of torch.float32"):
        load_unet(saved(), dtype=torch.int8)


def test_float8_storage_is_read_as_float16_exactly(saved: Callable[..., Path], parts: Parts) -> None:
    def shrink(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[key] = tensor.to(torch.float8_e4m3fn)

    unet = load_unet(rewrite(saved(), shrink))
    expected = parts[0].conv_out.weight.to(torch.float8_e4m3fn).to(torch.float16)
    assert torch.equal(unet.conv_out.weight, expected)


def test_a_mixed_file_takes_the_type_of_most_weights(saved: Callable[..., Path]) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["model.diffusion_model.out.2.bias"] = torch.zeros(4)

    unet = load_unet(rewrite(saved("ldm", torch.float16), widen))
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float16}


def test_quantised_weights_are_named(saved: Callable[..., Path]) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        key = "model.diffusion_model.out.2.weight"
        tensors[key] = tensors[key].to(torch.int8)

    path = rewrite(saved(), quantise)
    with pytest.raises(CheckpointError, match=r"out\.2\.weight as torch.int8, a quantised form"):
        load_unet(path)
    assert "a quantised form" in inspect_file(path).problem


# ------------------------------------------------------------------------------ what does not fit


def test_known_ballast_is_dropped(saved: Callable[..., Path], parts: Parts) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model_ema.decay"] = torch.tensor(0.9999)
        tensors["model_ema.diffusion_modelout2weight"] = torch.zeros(3)
        tensors["alphas_cumprod"] = torch.zeros(1000)
        tensors["first_stage_model.loss.logvar"] = torch.zeros(())
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)

    assert_equal(load_checkpoint(rewrite(saved(), add)).unet, parts[0])


def test_a_controlnet_may_carry_its_base_along(
    saved: Callable[..., Path], saved_net: Callable[..., Path], parts: Parts
) -> None:
    base = load_file(saved())
    path = rewrite(saved_net(), lambda tensors: tensors.update(base))
    with pytest.raises(CheckpointError, match=r"left over: extra\.vocab_map"):
        load_controlnet(path)
    net, _ = load_controlnet(rewrite(path, lambda tensors: tensors.pop("extra.vocab_map")))  # type: ignore[arg-type]
    assert_equal(net, parts[3])


def test_leftover_and_missing_keys_are_named_as_in_the_file(saved_net: Callable[..., Path]) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["control_model.zero_convs.2.0.bias"]
        for i in range(7):
            tensors[f"control_model.surprise.{i}"] = torch.zeros(1)

    with pytest.raises(CheckpointError) as caught:
        load_controlnet(rewrite(saved_net(), damage))
    words = str(caught.value)
    assert "net-ldm.safetensors looks like ControlNet for the tiny model (cldm layout" in words
    assert "missing: control_model.zero_convs.2.0.bias" in words
    assert "left over: control_model.surprise.0" in words
    assert "and 3 more" in words
    assert caught.value.exit_code == 3


def test_a_wrong_shape_is_named_with_both(saved: Callable[..., Path]) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["first_stage_model.quant_conv.weight"] = torch.zeros(8, 7, 1, 1)

    with pytest.raises(CheckpointError, match=r"quant_conv.weight is \[8, 7, 1, 1\] and should be \[8, 8, 1, 1\]"):
        load_checkpoint(rewrite(saved(), damage))


def test_one_weight_under_two_spellings(saved: Callable[..., Path]) -> None:
    def double(tensors: dict[str, Tensor]) -> None:
        key = "vae.encoder.mid_block.attentions.0.{}.bias"
        tensors[key.format("query")] = tensors[key.format("to_q")]

    with pytest.raises(CheckpointError, match=r"there twice: .*query.bias"):
        load_checkpoint(rewrite(saved("diffusers"), double))


def test_old_attention_names_and_1x1_convolutions_are_the_same_weights(
    saved: Callable[..., Path], parts: Parts
) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            for new, name in old.items():
                if f"vae.encoder.mid_block.attentions.0.{new}." in key:
                    tensors[key.replace(f".{new}.", f".{name}.")] = tensors.pop(key)
        key = "vae.decoder.mid_block.attentions.0.to_v.weight"
        assert tensors[key].ndim == 2
        tensors[key] = tensors[key][:, :, None, None]

    assert_equal(load_vae(rewrite(saved("diffusers"), age)), parts[1])


def test_a_linear_layer_and_a_1x1_convolution_are_the_same_matrix() -> None:
    assert same_matrix((4, 3), (4, 3, 1, 1))
    assert same_matrix((4,), (4,))
    assert not same_matrix((4, 3), (4, 3, 3, 3))
    assert not same_matrix((4, 3), (3, 4))
    assert not same_matrix((4,), (4, 1))


@pytest.mark.parametrize(
    ("load", "file", "words"),
    [
        (
            load_controlnet,
            "model",
            r"another kind: checkpoint of the tiny model.*expected a ControlNet.*models/checkpoints",
        ),
        (
            load_checkpoint,
            "net",
            r"ControlNet for the tiny model.*expected a checkpoint.*models/controlnet",
        ),
        (load_vae, "net", r"expected an autoencoder \(VAE\)"),
        (load_unet, "net", r"expected a UNet"),
        (load_text_model, "net", r"expected a CLIP text encoder"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is_and_where_it_belongs(
    saved: Callable[..., Path],
    saved_net: Callable[..., Path],
    load: Callable[[Path], object],
    file: str,
    words: str,
) -> None:
    path = saved() if file == "model" else saved_net()
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_unknown_and_unsupported_files(tmp_path: Path) -> None:
    unknown, lora = tmp_path / "x.safetensors", tmp_path / "lora.safetensors"
    save_file({"layers.0.wq.weight": torch.zeros(2)}, unknown)
    save_file({"lora_unet_a_attn2_to_k.lora_down.weight": torch.zeros(4, 768)}, lora)
    with pytest.raises(CheckpointError, match=r"not a model this package knows.*layers\.0\.wq.*expected a ControlNet"):
        load_controlnet(unknown)
    with pytest.raises(CheckpointError, match=r"LoRA for Stable Diffusion 1.x.*models/loras"):
        load_controlnet(lora)


@pytest.mark.parametrize(("channels", "detail"), [(9, "inpainting"), (8, "InstructPix2Pix")])
def test_a_base_with_more_input_channels(tmp_path: Path, channels: int, detail: str) -> None:
    config = replace(TINY, unet=replace(TINY.unet, in_channels=channels))
    path = tmp_path / "base.safetensors"
    save_checkpoint(path, config, UNet(config.unet))
    loaded = load_checkpoint(path)
    assert loaded.unet.config.in_channels == channels
    assert loaded.identity.details == (detail, "v-prediction")  # as TINY is


def test_metadata_that_describes_another_or_an_impossible_model(saved_net: Callable[..., Path]) -> None:
    path = saved_net()
    tensors = load_file(path)
    for old, new, words in (
        ('"res_blocks":1', '"res_blocks":2', "missing"),
        ('"widths":[32,64]', '"widths":[34,64]', "cannot be built"),
        ('"widths":[32,64]', '"widths":[31,64]', "divides the width 31 among 2 attention heads"),
        ('"widths":[32,64]', '"widths":"wide"', "widths = 'wide', expected tuple"),
    ):
        metadata = dict(read_header(path).metadata)
        text = metadata["controlnet_core.config"]
        assert old in text
        other = path.with_name("other.safetensors")
        write_safetensors(other, tensors, {**metadata, "controlnet_core.config": text.replace(old, new)})
        with pytest.raises(CheckpointError, match=words):
            load_controlnet(other)


def test_nothing_is_written_when_an_argument_is_wrong(tmp_path: Path, parts: Parts) -> None:
    with pytest.raises(ValueRangeError, match="layout is 'webui', expected one of core, ldm, diffusers"):
        save_controlnet(tmp_path / "net.safetensors", parts[3], layout="webui")  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match=r"dtype is torch\.int8"):
        save_controlnet(tmp_path / "net.safetensors", parts[3], dtype=torch.int8)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- inspect


def test_inspect_tells_people_and_programs(saved_net: Callable[..., Path]) -> None:
    report = inspect_file(saved_net("diffusers", torch.float16))
    text = "\n".join(report.lines())
    assert "ControlNet for the tiny model (diffusers layout, 3 hint channels)" in text
    assert "loads:    yes" in text
    assert "goes to:  models/controlnet" in text
    assert "in float16" in text
    assert "metadata: steps = 9" in text
    assert report.loadable
    fields = report.as_dict()
    assert (fields["kind"], fields["family"], fields["layout"]) == ("controlnet", "tiny", "diffusers")
    assert fields["parameters"] == sum(p.numel() for p in ControlNet(NET).parameters())


def test_inspect_finds_missing_weights_without_loading(saved: Callable[..., Path]) -> None:
    report = inspect_file(rewrite(saved(), lambda tensors: tensors.pop("first_stage_model.quant_conv.bias")))  # type: ignore[arg-type]
    assert not report.loadable
    assert "missing: first_stage_model.quant_conv.bias" in report.problem


def test_inspect_says_of_a_whole_model_what_it_has(saved: Callable[..., Path]) -> None:
    lines = inspect_file(saved("core")).lines()
    assert any(line.startswith("what:     checkpoint of the tiny model (core layout)") for line in lines)
    assert any("unet: in_channels=4" in line for line in lines)


@pytest.mark.parametrize(("count", "text"), [(812, "812 bytes"), (3_400_000, "3.4 MB"), (4_265_000_000, "4.26 GB")])
def test_bytes_in_words(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_loaded_checkpoint_is_a_plain_record(saved: Callable[..., Path]) -> None:
    checkpoint = load_checkpoint(saved())
    assert isinstance(checkpoint, Checkpoint)
    assert replace(checkpoint, vae=None).unet is checkpoint.unet
