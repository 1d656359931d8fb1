"""The rename engine, and that every key table is a bijection on every shape of model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap, Rule, add_prefix, matcher, nest
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import (
    DIFFUSERS,
    LDM,
    Layout,
    checkpoint_rules,
    rename_shapes,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.structure import (
    controlnet_config,
    text_config,
    unet_config,
    vae_config,
)
from comfyui_controlnet_core.controlnet_core.config import (
    DEMO,
    SD15,
    ControlNetConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from torch import nn

SD2 = replace(SD15.unet, context_dim=1024, head_dim=64, linear_projection=True)
SDXL = replace(
    SD2,
    widths=(320, 640, 1280),
    transformer_depth=(0, 2, 10),
    middle_depth=10,
    context_dim=2048,
    label_dim=2816,
)
UNETS = {
    "sd15": SD15.unet,
    "demo": DEMO.unet,
    "sd2": SD2,
    "sdxl": SDXL,
    "inpaint": replace(SD15.unet, in_channels=9),
    "no middle transformer": replace(DEMO.unet, transformer_depth=(0, 0, 0), middle_depth=0),
    "one level": UNetConfig(widths=(32,), transformer_depth=(1,), context_dim=768),
}
LAYOUT_OF = {"ldm": LDM, "diffusers": DIFFUSERS}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def shapes_on_meta(build: type[nn.Module], config: object) -> dict[str, tuple[int, ...]]:
    with on_meta():
        return shapes_of(build(config))


def assert_bijection(keymap: KeyMap, ours: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Every key has a foreign name, no two have the same, and the way back leads home."""
    theirs = {key: keymap.to_theirs(key) for key in ours}
    assert None not in theirs.values()
    assert len(set(theirs.values())) == len(ours)
    assert {key: keymap.to_ours(name) for key, name in theirs.items()} == {key: key for key in ours}
    return {theirs[key]: shape for key, shape in ours.items()}


def test_variables_are_carried_over_by_name() -> None:
    keymap = KeyMap([Rule("down.{i}.block.{j}.{p}", "levels.{j}.of.{i}.{p}")])
    assert keymap.to_ours("down.3.block.1.weight") == "levels.1.of.3.weight"
    assert keymap.to_theirs("levels.1.of.3.bias") == "down.3.block.1.bias"


@pytest.mark.parametrize("key", ["down.x.block.1.weight", "down.3.block.1.scale", "down.3.block.1", "down"])
def test_a_variable_matches_an_index_and_p_a_parameter_only(key: str) -> None:
    assert KeyMap([Rule("down.{i}.block.{j}.{p}", "levels.{i}.{j}.{p}")]).to_ours(key) is None


def test_a_literal_wins_over_an_index() -> None:
    keymap = KeyMap([Rule("b.{n}.0.{p}", "x.{n}.{p}"), Rule("b.0.0.{p}", "first.{p}")])
    assert keymap.to_ours("b.0.0.bias") == "first.bias"
    assert keymap.to_ours("b.1.0.bias") == "x.1.bias"


def test_a_dead_end_behind_a_literal_does_not_hide_the_index() -> None:
    keymap = KeyMap([Rule("b.0.conv.{p}", "conv.{p}"), Rule("b.{n}.norm.{p}", "norm.{n}.{p}")])
    assert keymap.to_ours("b.0.norm.weight") == "norm.0.weight"


def test_an_alias_is_read_and_never_written() -> None:
    keymap = KeyMap([Rule("new.{p}", "x.{p}"), Rule("old.{p}", "x.{p}", alias=True)])
    assert keymap.to_ours("old.weight") == "x.weight"
    assert keymap.to_theirs("x.weight") == "new.weight"


def test_renaming_loses_no_key() -> None:
    keymap = KeyMap([Rule("new.{p}", "x.{p}"), Rule("old.{p}", "x.{p}", alias=True)])
    renamed = keymap.rename(["new.weight", "new.bias", "old.bias", "else.bias"])
    assert renamed.pairs == {"new.weight": "x.weight", "new.bias": "x.bias"}
    assert renamed.clashes == (("new.bias", "old.bias"),)
    assert renamed.unknown == ("else.bias",)


def test_two_rules_for_one_pattern_are_refused() -> None:
    with pytest.raises(ValueError, match="two rules"):
        KeyMap([Rule("a.{i}", "b.{i}"), Rule("a.{k}", "c.{k}")])


def test_prefix_rest_and_nesting() -> None:
    rules = add_prefix(nest("a.{i}", "b.{i}", (("q", "to_q"),)), theirs="model.", ours="unet.")
    assert KeyMap(rules).to_ours("model.a.2.q.bias") == "unet.b.2.to_q.bias"
    assert matcher(["ema.{rest}", "betas"]).find("ema.a.b.c") is not None
    assert matcher(["ema.{rest}", "betas"]).find("betas.a") is None


@pytest.mark.parametrize("layout", LAYOUT_OF.values(), ids=LAYOUT_OF)
@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_unet_tables_are_bijections_and_shapes_give_the_config_back(layout: Layout, config: UNetConfig) -> None:
    theirs = assert_bijection(KeyMap(layout.unet_rules(config)), shapes_on_meta(UNet, config))
    found = unet_config(rename_shapes(theirs, layout.unet_rules(layout.sketch(theirs).unet)))
    seen = {"num_heads": config.num_heads, "head_dim": config.head_dim, "context_dim": config.context_dim}
    assert replace(found, **seen) == config


@pytest.mark.parametrize(
    ("name", "heads"), [("sd15", (8, None)), ("sd2", (8, 64)), ("sdxl", (8, 64)), ("inpaint", (8, None))]
)
def test_heads_follow_the_family(name: str, heads: tuple[int, int | None]) -> None:
    found = unet_config(shapes_on_meta(UNet, UNETS[name]))
    assert (found.num_heads, found.head_dim) == heads
    assert found == UNETS[name]


@pytest.mark.parametrize("layout", LAYOUT_OF.values(), ids=LAYOUT_OF)
@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
@pytest.mark.parametrize("hint_widths", [(16, 32, 96, 256), (16, 24)])
def test_controlnet_tables(layout: Layout, config: UNetConfig, hint_widths: tuple[int, ...]) -> None:
    net = ControlNetConfig(unet=config, hint_channels=4, hint_widths=hint_widths)
    rules = layout.controlnet_rules(config, 2 * len(hint_widths))
    theirs = assert_bijection(KeyMap(rules), shapes_on_meta(ControlNet, net))
    sketch = layout.controlnet_rules(layout.sketch(theirs).unet, layout.sketch(theirs).hint_layers)
    found = controlnet_config(rename_shapes(theirs, sketch))
    assert (found.hint_channels, found.hint_widths) == (4, hint_widths)
    assert (found.unet.widths, found.unet.transformer_depth) == (config.widths, config.transformer_depth)


VAES = (VAEConfig(), DEMO.vae, VAEConfig(widths=(32, 64, 64), res_blocks=1, latent_channels=16))


@pytest.mark.parametrize("layout", LAYOUT_OF.values(), ids=LAYOUT_OF)
@pytest.mark.parametrize("config", VAES, ids=["sd15", "demo", "three levels"])
def test_autoencoder_tables(layout: Layout, config: VAEConfig) -> None:
    levels = len(config.widths)
    theirs = assert_bijection(KeyMap(layout.vae_rules(levels)), shapes_on_meta(AutoencoderKL, config))
    assert layout.sketch(theirs).vae_levels == levels
    found = vae_config(rename_shapes(theirs, layout.vae_rules(levels)))
    assert found == replace(config, scaling_factor=found.scaling_factor)


@pytest.mark.parametrize("config", [SD15.text, DEMO.text], ids=["sd15", "demo"])
def test_text_tables(config: TextConfig) -> None:
    theirs = assert_bijection(KeyMap(LDM.text_rules()), shapes_on_meta(ClipTextModel, config))
    found = text_config(rename_shapes(theirs, LDM.text_rules()))
    assert found == replace(config, heads=found.heads)
    short = {key.removeprefix("text_model."): shape for key, shape in theirs.items()}
    assert text_config(rename_shapes(short, LDM.text_rules())) == found


@pytest.mark.parametrize("layout", LAYOUT_OF.values(), ids=LAYOUT_OF)
@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
def test_a_whole_checkpoint_is_one_table(layout: Layout, config: ModelConfig) -> None:
    parts = {
        "unet.": shapes_on_meta(UNet, config.unet),
        "vae.": shapes_on_meta(AutoencoderKL, config.vae),
        "text.": shapes_on_meta(ClipTextModel, config.text),
    }
    ours = {prefix + key: shape for prefix, shapes in parts.items() for key, shape in shapes.items()}
    assert_bijection(KeyMap(checkpoint_rules(layout, config.unet, len(config.vae.widths))), ours)


def test_names_of_the_released_sd15_checkpoint() -> None:
    """A sample of keys that are in every SD1.5 file, with the shapes they have there."""
    keymap = KeyMap(checkpoint_rules(LDM, SD15.unet, 4))
    known = {
        "model.diffusion_model.time_embed.0.weight": ("unet.time_embed.linear1.weight", (1280, 320)),
        "model.diffusion_model.input_blocks.3.0.op.bias": ("unet.encoder.blocks.3.conv.bias", (320,)),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (
            "unet.encoder.blocks.4.res.skip.weight",
            (640, 320, 1, 1),
        ),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
            "unet.encoder.blocks.1.transformer.blocks.0.attn2.k.weight",
            (320, 768),
        ),
        "model.diffusion_model.middle_block.2.out_layers.3.weight": (
            "unet.middle.res2.conv2.weight",
            (1280, 1280, 3, 3),
        ),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (
            "unet.decoder.blocks.2.up.conv.weight",
            (1280, 1280, 3, 3),
        ),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (
            "unet.decoder.blocks.5.up.conv.weight",
            (1280, 1280, 3, 3),
        ),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (
            "unet.decoder.blocks.8.up.conv.weight",
            (640, 640, 3, 3),
        ),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (
            "vae.decoder.levels.0.up.conv.weight",
            (512, 512, 3, 3),
        ),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (
            "vae.decoder.levels.3.res.0.skip.weight",
            (128, 256, 1, 1),
        ),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (
            "text.layers.11.fc1.weight",
            (3072, 768),
        ),
    }
    shapes = {f"unet.{k}": s for k, s in shapes_on_meta(UNet, SD15.unet).items()}
    shapes |= {f"vae.{k}": s for k, s in shapes_on_meta(AutoencoderKL, SD15.vae).items()}
    shapes |= {f"text.{k}": s for k, s in shapes_on_meta(ClipTextModel, SD15.text).items()}
    assert len([key for key in shapes if key.startswith("unet.")]) == 686
    for theirs, (ours, shape) in known.items():
        assert keymap.to_ours(theirs) == ours
        assert shapes[ours] == shape
