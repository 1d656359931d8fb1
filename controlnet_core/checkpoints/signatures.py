"""What tells one kind of model file from another: tables of kinds, of key signatures and of details.

A needle is a part of a key. `^` stands for the beginning of a key and the prefix behind it, `^^` for the beginning of
a key without any prefix, `$` for the end of a key. A table is read from the top and the first row that fits decides,
so special kinds stand before general ones. Sources: the published files, and the loaders of the packages in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import config
from .check_config import Config


@dataclass(frozen=True)
class Kind:
    """A kind of model file: its title, its folder below `models/`, whether this package loads it, and its config.

    Kinds that are added to a model, such as LoRAs, have no config.
    """

    title: str
    folder: str
    supported: bool = False
    config: type[Config] | None = None


@dataclass(frozen=True)
class Signature:
    """One kind of file in one layout.

    needles: all must be found. prefixes: what may stand at `^`, tried in turn. absent: needles of which none may be
    found. title and supported: where they differ from those of the kind.
    """

    kind: str
    layout: str
    needles: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)
    absent: tuple[str, ...] = ()
    title: str = ""
    supported: bool = True

    @property
    def name(self) -> str:
        """Title of these files, for people."""
        return self.title or KINDS[self.kind].title

    @property
    def loads(self) -> bool:
        """Whether this package loads files with this signature."""
        return self.supported and KINDS[self.kind].supported


@dataclass(frozen=True)
class Detail:
    """A fact about files of some kinds, read from the presence or the shape of one tensor.

    text: may use {0}, {1}, ... for the sizes of the tensor. sizes: the fact holds only if the tensor's size along
    `axis` is one of these. unless: a needle that must not be found. families: the fact holds only for these.
    """

    kinds: tuple[str, ...]
    needle: str
    text: str
    axis: int = 1
    sizes: tuple[int, ...] = ()
    unless: str = ""
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of base models. preset: its published shape, for what weights cannot tell."""

    title: str
    preset: config.ModelConfig


KINDS: Mapping[str, Kind] = {
    "checkpoint": Kind("checkpoint", "checkpoints", True, config.ModelConfig),
    "unet": Kind("UNet alone", "diffusion_models", True, config.UNetConfig),
    "vae": Kind("autoencoder (VAE)", "vae", True, config.VAEConfig),
    "text-encoder": Kind("CLIP text encoder", "text_encoders", True, config.TextConfig),
    "controlnet": Kind("ControlNet", "controlnet", True, config.ControlNetConfig),
    "controlnet-union": Kind("ControlNet Union", "controlnet", True, config.ControlNetConfig),
    "controlnet-difference": Kind("ControlNet difference file", "controlnet", True, config.DerivedConfig),
    "control-lora": Kind("Control-LoRA", "controlnet", True, config.DerivedConfig),
    "t2i-adapter": Kind("T2I-Adapter", "controlnet", True, config.AdapterConfig),
    "t2i-adapter-light": Kind("light T2I-Adapter", "controlnet", True, config.AdapterConfig),
    "controlnet-lllite": Kind("ControlNet-LLLite", "controlnet", True, config.LLLiteConfig),
    "sparsectrl": Kind("SparseCtrl", "controlnet", True, config.SparseCtrlConfig),
    "controlnet-xs": Kind("ControlNet-XS", "controlnet", True, config.ControlNetXSConfig),
    "ctrlora-base": Kind("base ControlNet of CtrLoRA", "controlnet", True, config.CtrLoraConfig),
    "ctrlora": Kind("CtrLoRA", "controlnet", True),
    "lora": Kind("LoRA", "loras", True),
    "textual-inversion": Kind("textual inversion", "embeddings", True),
    # The kinds below are only recognised: the error message can then say what the file is.
    "svd-controlnet": Kind("ControlNet for Stable Video Diffusion", "controlnet"),
    "uni-controlnet": Kind("Uni-ControlNet", "controlnet"),
    "controlnet-dit": Kind("ControlNet for a diffusion transformer (SD3, Flux, Qwen-Image)", "controlnet"),
    "controlnet-hunyuan": Kind("ControlNet for HunyuanDiT", "controlnet"),
    "controlnet-cascade": Kind("ControlNet for Stable Cascade", "controlnet"),
    "t2i-style": Kind("T2I style adapter", "style_models"),
    "coadapter-fuser": Kind("CoAdapter fuser", "controlnet"),
    "ip-adapter": Kind("IP-Adapter", "ipadapter"),
    "motion-module": Kind("AnimateDiff motion module", "animatediff_models"),
    "gligen": Kind("GLIGEN", "gligen"),
    "hypernetwork": Kind("hypernetwork", "hypernetworks"),
    "flux": Kind("Flux model", "diffusion_models"),
    "sd3": Kind("SD3 model", "checkpoints"),
    "svd": Kind("Stable Video Diffusion model", "checkpoints"),
    "taesd": Kind("tiny autoencoder (TAESD)", "vae_approx"),
    "clip-vision": Kind("CLIP image encoder", "clip_vision"),
    "upscaler": Kind("upscaler (ESRGAN)", "upscale_models"),
}

CONTROL = ("control_model.", "")
ADAPTER = ("", "adapter.")
MODEL = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
VAE = ("", "first_stage_model.", "vae.")

SIGNATURES: tuple[Signature, ...] = (
    # This package's own files.
    Signature("checkpoint", "core", ("^unet.encoder.blocks.0.conv.weight$",)),
    Signature("controlnet", "core", ("^hint.convs.0.weight$", "^zero_convs.0.conv.weight$")),
    Signature("vae", "core", ("^encoder.levels.0.res.0.norm1.weight$",), ("", "vae.")),
    # Relatives of the ControlNet, which share most of its keys.
    Signature("controlnet-lllite", "kohya", ("^lllite_unet", ".conditioning1.0.weight$")),
    Signature("control-lora", "cldm", ("^lora_controlnet$",)),
    # A base of CtrLoRA is a ControlNet without hint encoder; it may hold one of its LoRAs.
    Signature(
        "ctrlora-base",
        "cldm",
        ("^zero_convs.0.0.weight$", "^input_blocks.0.0.weight$", "^middle_block_out.0.weight$"),
        CONTROL,
        absent=("input_hint_block.", "^^difference$"),
    ),
    Signature("ctrlora", "cldm", (".lora_layer.", "^zero_convs.0.0.weight$"), CONTROL, absent=("input_hint_block.",)),
    Signature("controlnet-xs", "original", ("^enc_zero_convs_out.0.0.weight$", "^dec_zero_convs_out."), CONTROL),
    # Other forms of the paper, such as one that acts in the encoder only.
    Signature("controlnet-xs", "original", ("enc_zero_convs_out.",), supported=False),
    Signature("controlnet-xs", "diffusers", ("^control_to_base_for_conv_in.", "^up_connections.0.")),
    Signature(
        "controlnet-xs",
        "diffusers",
        ("control_to_base_for_conv_in.",),
        title="ControlNet-XS with its base in it",
        supported=False,
    ),
    Signature(
        "sparsectrl",
        "diffusers",
        ("^controlnet_down_blocks.0.weight$", "^controlnet_cond_embedding.", "^down_blocks.0.motion_modules.0."),
        ("", "controlnet.", "module.", "controlnet.module."),
    ),
    Signature("svd-controlnet", "diffusers", ("temporal_res_block.", "controlnet")),
    Signature("uni-controlnet", "original", ("local_adapter.",)),
    Signature("uni-controlnet", "original", ("global_adapter.",)),
    Signature(
        "controlnet-union",
        "diffusers",
        ("^task_embedding$", "^control_add_embedding.linear_1.", "^controlnet_cond_embedding."),
    ),
    Signature(
        "controlnet-union", "cldm", ("^task_embedding$", "^transformer_layes.", "^input_hint_block.0.weight$"), CONTROL
    ),
    Signature("controlnet-union", "diffusers", ("^task_embedding$", "^transformer_layes."), supported=False),
    Signature("controlnet-difference", "cldm", ("^^difference$", "^"), ("control_model.",)),
    Signature("controlnet", "cldm", ("^zero_convs.0.0.weight$", "^input_hint_block.0.weight$"), CONTROL),
    Signature(
        "controlnet",
        "diffusers",
        ("^controlnet_cond_embedding.conv_in.weight$", "^controlnet_down_blocks.0.weight$"),
        ("", "controlnet."),
    ),
    Signature("controlnet-dit", "diffusers", ("^controlnet_blocks.0.",)),
    Signature("controlnet-hunyuan", "original", ("^after_proj_list.18.bias$",)),
    Signature("controlnet-cascade", "original", ("^backbone.", "^projections.")),
    # T2I-Adapters.
    Signature("t2i-adapter", "original", ("^conv_in.weight$", "^body.0.block1.weight$"), ADAPTER),
    Signature(
        "t2i-adapter-light",
        "diffusers",
        ("^body.0.in_conv.weight$", "^body.0.out_conv.weight$", "^body.0.resnets.0.block1.weight$"),
        ADAPTER,
    ),
    Signature("t2i-adapter", "diffusers", ("^body.0.resnets.0.block1.weight$",), ADAPTER),
    Signature("t2i-adapter-light", "original", ("^body.0.in_conv.weight$",), ADAPTER),
    Signature("t2i-style", "original", ("style_embedding",)),
    Signature("coadapter-fuser", "original", ("spatial_feat_mapping.", "seq_proj.")),
    # What is added to a base.
    Signature("lora", "kohya", ("^lora_", ".lora_down.weight$")),
    Signature("lora", "kohya", (".hada_w1_a$",), title="LoHa"),
    Signature("lora", "kohya", (".lokr_w1",), title="LoKr"),
    Signature("lora", "kohya", (".oft_blocks$",), title="OFT", supported=False),
    Signature("lora", "diffusers", (".lora_A.weight$",)),
    Signature("lora", "diffusers", (".lora_A.default.weight$",)),
    Signature("lora", "diffusers", ("_lora.down.weight$",)),
    Signature("lora", "diffusers", (".lora_linear_layer.down.weight$",)),
    Signature("lora", "diffusers", (".lora.down.weight$",)),
    Signature("lora", "diffusers", (".lora_layer.down.weight$",)),
    Signature("lora", "other", (".lora_down.weight$",)),
    Signature("lora", "kohya", ("^lora_", ".diff$"), title="LoRA of whole differences"),
    Signature("ip-adapter", "original", ("^image_proj.", "^ip_adapter.")),
    Signature("motion-module", "original", ("motion_modules.",)),
    Signature("gligen", "original", ("^position_net.", ".fuser.")),
    Signature("hypernetwork", "original", ("^320.0.linear", "^320.1.linear")),
    Signature("textual-inversion", "original", ("^string_to_param.",)),
    Signature("textual-inversion", "original", ("^emb_params$",)),
    Signature("textual-inversion", "sdxl", ("^clip_l$", "^clip_g$")),
    # Bases of other architectures, before the checkpoints that they look like.
    Signature("flux", "original", ("^double_blocks.0.img_",), MODEL),
    Signature("sd3", "original", ("^joint_blocks.0.",), MODEL),
    Signature("svd", "ldm", ("^input_blocks.1.1.time_stack.",), MODEL),
    # Checkpoints and their parts.
    Signature("checkpoint", "ldm", ("^input_blocks.0.0.weight$", "^out.2.weight$"), ("model.diffusion_model.",)),
    Signature("checkpoint", "diffusers", ("^unet.conv_in.weight$", "^unet.up_blocks.0.")),
    Signature("unet", "ldm", ("^input_blocks.0.0.weight$", "^output_blocks.0.0."), ("", "diffusion_model.")),
    Signature(
        "unet",
        "diffusers",
        ("^time_embedding.linear_1.weight$", "^up_blocks.0.resnets.0.", "^conv_norm_out.weight$"),
    ),
    Signature("vae", "ldm", ("^encoder.down.0.block.0.norm1.weight$", "^decoder.conv_in.weight$"), VAE),
    Signature("vae", "diffusers", ("^encoder.down_blocks.0.resnets.0.norm1.weight$", "^decoder.conv_in.weight$"), VAE),
    Signature("taesd", "original", ("^1.weight$", "^3.conv.4.")),
    Signature("clip-vision", "transformers", ("^vision_model.",)),
    Signature("text-encoder", "transformers", ("^text_model.encoder.layers.0.layer_norm1.weight$",)),
    Signature(
        "text-encoder",
        "transformers",
        ("^encoder.layers.0.layer_norm1.weight$", "^embeddings.token_embedding.weight$"),
    ),
    Signature(
        "text-encoder",
        "open_clip",
        ("^transformer.resblocks.0.ln_1.weight$",),
        ("", "model."),
        title="OpenCLIP text encoder",
    ),
    Signature(
        "text-encoder",
        "transformers",
        ("^encoder.block.0.layer.0.SelfAttention.q.weight$",),
        title="T5 text encoder",
        supported=False,
    ),
    Signature("upscaler", "original", ("^model.1.sub.0.RDB1.conv1.0.weight$",)),
    Signature("upscaler", "original", ("^body.0.rdb1.conv1.weight$",)),
)

LEARNED_WORD = Signature("textual-inversion", "diffusers", ())
"""One small tensor whose key is the word itself, which may be any: recognised by its shape, see `detect`."""
LEARNED_WORD_ROWS = 100
"""More vectors than people train for a word; a prompt has room for 75."""

V_PREDICTION = "v-prediction"
ZERO_TERMINAL_SNR = "zero terminal SNR"
EDM = "EDM"
EDM_V_PREDICTION = "EDM v-prediction"
INPAINTING = "inpainting"
INSTRUCT = "InstructPix2Pix"
WHOLE = ("checkpoint", "unet")
FIRST_CONVOLUTIONS = (
    "^input_blocks.0.0.weight$", "^conv_in.weight$", "^unet.conv_in.weight$", "^unet.encoder.blocks.0.conv.weight$",
)  # fmt: skip
"""The UNet's first convolution in each layout: its input channels tell what else it reads besides the latent."""

DETAILS: tuple[Detail, ...] = (
    Detail(
        ("controlnet", "controlnet-union", "controlnet-difference", "control-lora"),
        "^input_hint_block.0.weight$",
        "{1} hint channels",
    ),
    Detail(("controlnet", "controlnet-union"), "^controlnet_cond_embedding.conv_in.weight$", "{1} hint channels"),
    Detail(("controlnet",), "^hint.convs.0.weight$", "{1} hint channels"),
    # SDXL's reduced ControlNets: `mid` has transformers at the lowest level only, `small` has none.
    *(
        Detail(("controlnet",), needle, text, unless=unless, families=("sdxl",))
        for text, needle, unless in (
            ("mid", "^input_blocks.8.1.transformer_blocks.0.", "^input_blocks.4.1.transformer_blocks.0."),
            ("small", "^zero_convs.0.0.weight$", "^input_blocks.8.1.transformer_blocks.0."),
            ("mid", "^down_blocks.1.attentions.0.norm.weight$", "^down_blocks.1.attentions.0.transformer_blocks.0."),
            ("small", "^controlnet_down_blocks.0.weight$", "^down_blocks.1.attentions.0.norm.weight$"),
        )
    ),
    Detail(("sparsectrl",), "^controlnet_cond_embedding.conv_in.weight$", "hints are pictures"),
    Detail(("sparsectrl",), "^controlnet_cond_embedding.weight$", "hints are latents"),
    Detail(("controlnet-union",), "^task_embedding$", "{0} control types"),
    Detail(("t2i-adapter",), "^conv_in.weight$", "pixel unshuffle 8", sizes=(64, 192)),
    Detail(("t2i-adapter",), "^conv_in.weight$", "pixel unshuffle 16", sizes=(256, 768)),
    Detail(("t2i-adapter-light",), "^body.0.in_conv.weight$", "pixel unshuffle 8", sizes=(64, 192)),
    Detail(("t2i-adapter",), "down_opt.op.weight$", "downsampling by convolution"),
    Detail(("controlnet-lllite",), ".down.0.weight$", "dimension {0}"),
    Detail(("ctrlora",), ".lora_layer.down.weight$", "rank {0}"),
    Detail(("lora",), ".dora_scale$", "DoRA"),
    Detail(("lora",), ".lora_magnitude_vector", "DoRA"),
    *(
        Detail(("lora",), needle, "rank {0}")
        for needle in (".lora_down.weight$", ".lora_A.weight$", ".lora.down.weight$", ".hada_w1_b$")
    ),
    *(Detail(("textual-inversion",), key, "{0} vectors") for key in ("^emb_params$", "^string_to_param.", "^clip_g$")),
    Detail(("lora",), "^lora_te", "with the text encoder"),
    Detail(("lora",), "^text_encoder", "with the text encoder"),
    *(Detail(WHOLE, needle, INPAINTING, sizes=(9,)) for needle in FIRST_CONVOLUTIONS),
    *(Detail(WHOLE, needle, INSTRUCT, sizes=(8,)) for needle in FIRST_CONVOLUTIONS),
    Detail(WHOLE, "^^v_pred$", V_PREDICTION),
    Detail(WHOLE, "^^ztsnr$", ZERO_TERMINAL_SNR),
    Detail(WHOLE, "^^edm_mean$", EDM),
    Detail(WHOLE, "^^edm_vpred.sigma_max$", EDM_V_PREDICTION),
    Detail(("checkpoint",), "^^control_model.zero_convs.0.0.weight$", "with a ControlNet in it"),
)

FAMILIES: tuple[Family, ...] = (
    Family("Stable Diffusion 1.x", config.SD15),
    Family("Stable Diffusion 2.x", config.SD21),
    Family("Stable Diffusion XL", config.SDXL),
    Family("Stable Diffusion XL refiner", config.SDXL_REFINER),
)
"""The families, told apart by the width of the text that the cross-attention reads."""

CONTEXT_NEEDLES = (
    "attn2.to_k.weight$", "attn2.k.weight$", "attn2.to_k.down$", "attn2_to_k.lora_down.weight$",
    "attn2_to_k.hada_w1_b$", "attn2.to_k.lora_A.weight$", "attn2.to_k.lora_layer.down.weight$",
    "attn2.to_k.lora.down.weight$", "attn2.processor.to_k_lora.down.weight$", ".to_k_ip.weight$", "^emb_params$",
    "^string_to_param.",
)  # fmt: skip
"""Weights that read the text: their second size is its width."""
LABEL_NEEDLES = (
    "^label_emb.0.0.weight$", "^label_emb.0.0.down$", "^add_embedding.linear_1.weight$", "^label_embed.linear1.weight$",
)  # fmt: skip
"""Weights that read the label vector: their second size is its width."""
ADAPTER_NEEDLES = ("^conv_in.weight$", "^body.0.in_conv.weight$")
"""A T2I-Adapter's first convolution; its input channels tell the family, as it reads no text."""
ADAPTER_FAMILIES: Mapping[int, str] = {64: "sd15", 192: "sd15", 256: "sdxl", 768: "sdxl"}


class KeyIndex:
    """The keys of a file as one text, so that a needle is found by one search through all keys."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._text = "\n" + "\n".join(keys) + "\n"

    def find(self, needle: str, prefix: str = "") -> str | None:
        """The first key that contains the needle; None when there is none. prefix: what stands at `^`."""
        plain = needle.replace("^^", "\n").replace("^", "\n" + prefix).replace("$", "\n")
        at = self._text.find(plain)
        if at < 0:
            return None
        begin = at + 1 if plain[0] == "\n" else self._text.rfind("\n", 0, at) + 1
        return self._text[begin : self._text.find("\n", begin)]

    def match(self) -> tuple[Signature, str] | None:
        """The first signature that fits, and the prefix with which it does."""
        for signature in SIGNATURES:
            for prefix in signature.prefixes:
                needed = all(self.find(needle, prefix) for needle in signature.needles)
                if needed and not any(self.find(needle, prefix) for needle in signature.absent):
                    return signature, prefix
        return None
