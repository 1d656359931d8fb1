"""What tells one kind of model file from another: tables of key signatures.

A needle is a part of a key. `^` stands for the beginning of a key and the prefix behind it, `^^` for the
beginning of a key whatever the prefix, `$` for the end of a key. Tables are
read from the top, the first row that fits decides, so the special kinds stand before the general
ones. Sources: the published files, and the loaders of the packages that people use.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import SD15, SD21, SDXL, SDXL_REFINER, ModelConfig


@dataclass(frozen=True)
class Signature:
    """One kind of file in one layout.

    needles: all must be found. absent: none may be found. prefixes: put after `^`, tried in turn.
    supported: whether this package loads it. folder: where such files live below `models/`.
    """

    kind: str
    title: str
    layout: str
    needles: tuple[str, ...]
    absent: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    supported: bool = False
    folder: str = "controlnet"
    family: str = ""
    """The family, where this kind of file exists for one only."""


@dataclass(frozen=True)
class Detail:
    """A fact about files of some kinds, read from the presence or the shape of one tensor.

    `text` may use {0}, {1}, ... for the tensor's sizes. `axis` and `sizes` restrict it to tensors
    whose size along that axis is one of these; `unless` to files without that needle; `families` to
    some families.
    """

    kinds: tuple[str, ...]
    needle: str
    text: str
    axis: int | None = None
    sizes: tuple[int, ...] = ()
    unless: str = ""
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of base models, told by the width of the text that its cross-attentions read.

    preset: its published shape, from which what weights do not tell is taken.
    """

    title: str
    preset: ModelConfig

    @property
    def name(self) -> str:
        """As in `Identity.family`."""
        return self.preset.name

    @property
    def context_dim(self) -> int:
        """Width of the text."""
        return self.preset.unet.context_dim

    @property
    def label_dim(self) -> int | None:
        """Width of the label vector; None where there is none."""
        return self.preset.unet.label_dim


V_PREDICTION = "v-prediction"
ZERO_TERMINAL_SNR = "zero terminal SNR"
EDM = "EDM"
EDM_V_PREDICTION = "EDM v-prediction"
INPAINTING = "inpainting"
INSTRUCT = "InstructPix2Pix"
CONTROL = ("control_model.", "")
MODEL = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
VAE = ("", "first_stage_model.", "vae.")

SIGNATURES: tuple[Signature, ...] = (
    # This package's own files.
    Signature(
        "checkpoint",
        "checkpoint",
        "core",
        ("^unet.encoder.blocks.0.conv.weight$",),
        supported=True,
        folder="checkpoints",
    ),
    Signature(
        "controlnet",
        "ControlNet",
        "core",
        ("^hint.convs.0.weight$", "^zero_convs.0.conv.weight$"),
        supported=True,
    ),
    Signature(
        "vae",
        "autoencoder (VAE)",
        "core",
        ("^encoder.levels.0.res.0.norm1.weight$",),
        prefixes=("", "vae."),
        supported=True,
        folder="vae",
    ),
    # Relatives of the ControlNet.
    Signature(
        "controlnet-lllite",
        "ControlNet-LLLite",
        "kohya",
        ("^lllite_unet", ".conditioning1.0.weight$"),
    ),
    Signature("control-lora", "Control-LoRA", "cldm", ("^lora_controlnet$",), supported=True),
    Signature("ctrlora", "CtrLoRA", "cldm", ("lora_layer.",), ("input_hint_block.",)),
    Signature("controlnet-xs", "ControlNet-XS", "original", ("enc_zero_convs_out.",)),
    Signature("controlnet-xs", "ControlNet-XS", "diffusers", ("control_to_base_for_conv_in.",)),
    Signature("sparsectrl", "SparseCtrl", "diffusers", ("motion_modules.", "controlnet")),
    Signature(
        "svd-controlnet",
        "ControlNet for Stable Video Diffusion",
        "diffusers",
        ("temporal_res_block.", "controlnet"),
    ),
    Signature("uni-controlnet", "Uni-ControlNet", "original", ("local_adapter.",)),
    Signature("uni-controlnet", "Uni-ControlNet", "original", ("global_adapter.",)),
    Signature(
        "controlnet-union",
        "ControlNet Union",
        "diffusers",
        ("^task_embedding$", "^control_add_embedding.linear_1.", "^controlnet_cond_embedding."),
        supported=True,
    ),
    Signature(
        "controlnet-union",
        "ControlNet Union",
        "cldm",
        ("^task_embedding$", "^transformer_layes.", "^input_hint_block.0.weight$"),
        prefixes=CONTROL,
        supported=True,
    ),
    Signature("controlnet-union", "ControlNet Union", "diffusers", ("^task_embedding$", "^transformer_layes.")),
    Signature(
        "controlnet-difference",
        "ControlNet difference file",
        "cldm",
        ("^^difference$", "^"),
        prefixes=("control_model.",),
        supported=True,
    ),
    Signature(
        "controlnet",
        "ControlNet",
        "cldm",
        ("^zero_convs.0.0.weight$", "^input_hint_block.0.weight$"),
        prefixes=CONTROL,
        supported=True,
    ),
    Signature(
        "controlnet",
        "ControlNet",
        "diffusers",
        ("^controlnet_cond_embedding.conv_in.weight$", "^controlnet_down_blocks.0.weight$"),
        prefixes=("", "controlnet."),
        supported=True,
    ),
    Signature(
        "controlnet-dit",
        "ControlNet for a diffusion transformer (SD3, Flux, Qwen-Image)",
        "diffusers",
        ("^controlnet_blocks.0.",),
    ),
    Signature("controlnet-hunyuan", "ControlNet for HunyuanDiT", "original", ("^after_proj_list.18.bias$",)),
    Signature(
        "controlnet-cascade",
        "ControlNet for Stable Cascade",
        "original",
        ("^backbone.", "^projections."),
    ),
    # T2I-Adapters.
    Signature(
        "t2i-adapter",
        "T2I-Adapter",
        "original",
        ("^conv_in.weight$", "^body.0.block1.weight$"),
        prefixes=("", "adapter."),
        supported=True,
    ),
    Signature(
        "t2i-adapter-light",
        "light T2I-Adapter",
        "diffusers",
        ("^body.0.in_conv.weight$", "^body.0.out_conv.weight$", "^body.0.resnets.0.block1.weight$"),
        prefixes=("adapter.", ""),
        supported=True,
    ),
    Signature(
        "t2i-adapter",
        "T2I-Adapter",
        "diffusers",
        ("^body.0.resnets.0.block1.weight$",),
        prefixes=("adapter.", ""),
        supported=True,
    ),
    Signature(
        "t2i-adapter-light",
        "light T2I-Adapter",
        "original",
        ("^body.0.in_conv.weight$",),
        prefixes=("", "adapter."),
        supported=True,
    ),
    Signature("t2i-style", "T2I style adapter", "original", ("style_embedding",), folder="style_models"),
    Signature("coadapter-fuser", "CoAdapter fuser", "original", ("spatial_feat_mapping.", "seq_proj.")),
    # What is added to a base.
    *(
        Signature("lora", title, layout, needles, supported=title != "OFT", folder="loras")
        for title, layout, needles in (
            ("LoRA", "kohya", ("^lora_", ".lora_down.weight$")),
            ("LoHa", "kohya", (".hada_w1_a$",)),
            ("LoKr", "kohya", (".lokr_w1",)),
            ("OFT", "kohya", (".oft_blocks$",)),
            ("LoRA", "diffusers", (".lora_A.weight$",)),
            ("LoRA", "diffusers", (".lora_A.default.weight$",)),
            ("LoRA", "diffusers", ("_lora.down.weight$",)),
            ("LoRA", "diffusers", (".lora_linear_layer.down.weight$",)),
            ("LoRA", "diffusers", (".lora.down.weight$",)),
            ("LoRA", "diffusers", (".lora_layer.down.weight$",)),
            ("LoRA", "other", (".lora_down.weight$",)),
            ("LoRA of whole differences", "kohya", ("^lora_", ".diff$")),
        )
    ),
    Signature("ip-adapter", "IP-Adapter", "original", ("^image_proj.", "^ip_adapter."), folder="ipadapter"),
    Signature(
        "motion-module",
        "AnimateDiff motion module",
        "original",
        ("motion_modules.",),
        folder="animatediff_models",
    ),
    Signature("gligen", "GLIGEN", "original", ("^position_net.", ".fuser."), folder="gligen"),
    *(
        Signature("textual-inversion", "textual inversion", layout, needles, supported=True, folder="embeddings")
        for layout, needles in (
            ("original", ("^string_to_param.",)),
            ("original", ("^emb_params$",)),
            ("sdxl", ("^clip_l$", "^clip_g$")),
        )
    ),
    # Bases of other architectures, before the checkpoints that they look like.
    Signature(
        "flux",
        "Flux model",
        "original",
        ("^double_blocks.0.img_",),
        prefixes=MODEL,
        folder="diffusion_models",
    ),
    Signature("sd3", "SD3 model", "original", ("^joint_blocks.0.",), prefixes=MODEL, folder="checkpoints"),
    Signature(
        "svd",
        "Stable Video Diffusion model",
        "ldm",
        ("^input_blocks.1.1.time_stack.",),
        prefixes=MODEL,
        folder="checkpoints",
    ),
    # Checkpoints and their parts.
    Signature(
        "checkpoint",
        "checkpoint",
        "ldm",
        ("^input_blocks.0.0.weight$", "^out.2.weight$"),
        prefixes=("model.diffusion_model.",),
        supported=True,
        folder="checkpoints",
    ),
    Signature(
        "checkpoint",
        "checkpoint",
        "diffusers",
        ("^unet.conv_in.weight$", "^unet.up_blocks.0."),
        supported=True,
        folder="checkpoints",
    ),
    Signature(
        "unet",
        "UNet alone",
        "ldm",
        ("^input_blocks.0.0.weight$", "^output_blocks.0.0."),
        prefixes=("", "diffusion_model."),
        supported=True,
        folder="diffusion_models",
    ),
    Signature(
        "unet",
        "UNet alone",
        "diffusers",
        ("^time_embedding.linear_1.weight$", "^up_blocks.0.resnets.0.", "^conv_norm_out.weight$"),
        supported=True,
        folder="diffusion_models",
    ),
    Signature(
        "vae",
        "autoencoder (VAE)",
        "ldm",
        ("^encoder.down.0.block.0.norm1.weight$", "^decoder.conv_in.weight$"),
        prefixes=VAE,
        supported=True,
        folder="vae",
    ),
    Signature(
        "vae",
        "autoencoder (VAE)",
        "diffusers",
        ("^encoder.down_blocks.0.resnets.0.norm1.weight$", "^decoder.conv_in.weight$"),
        prefixes=VAE,
        supported=True,
        folder="vae",
    ),
    Signature("taesd", "tiny autoencoder (TAESD)", "original", ("^1.weight$", "^3.conv.4."), folder="vae_approx"),
    Signature("clip-vision", "CLIP image encoder", "transformers", ("^vision_model.",), folder="clip_vision"),
    Signature(
        "text-encoder",
        "CLIP text encoder",
        "transformers",
        ("^text_model.encoder.layers.0.layer_norm1.weight$",),
        supported=True,
        folder="text_encoders",
    ),
    Signature(
        "text-encoder",
        "CLIP text encoder",
        "transformers",
        ("^encoder.layers.0.layer_norm1.weight$", "^embeddings.token_embedding.weight$"),
        supported=True,
        folder="text_encoders",
    ),
    Signature(
        "text-encoder",
        "OpenCLIP text encoder",
        "open_clip",
        ("^transformer.resblocks.0.ln_1.weight$",),
        prefixes=("", "model."),
        supported=True,
        folder="text_encoders",
    ),
    Signature(
        "text-encoder",
        "T5 text encoder",
        "transformers",
        ("^encoder.block.0.layer.0.SelfAttention.q.weight$",),
        folder="text_encoders",
    ),
    Signature(
        "upscaler",
        "upscaler (ESRGAN)",
        "original",
        ("^model.1.sub.0.RDB1.conv1.0.weight$",),
        folder="upscale_models",
    ),
    Signature("upscaler", "upscaler (ESRGAN)", "original", ("^body.0.rdb1.conv1.weight$",), folder="upscale_models"),
)

LEARNED_WORD = Signature(
    "textual-inversion", "textual inversion", "diffusers", (), supported=True, folder="embeddings"
)
"""One small tensor under the word itself, which may be any: told by its shape alone, see `detect.match`."""
LEARNED_WORD_ROWS = 100
"""More vectors than anybody trains, fewer than a prompt has room for twice."""

DETAILS: tuple[Detail, ...] = (
    Detail(
        ("controlnet", "controlnet-union", "controlnet-difference", "control-lora"),
        "^input_hint_block.0.weight$",
        "{1} hint channels",
    ),
    Detail(("controlnet", "controlnet-union"), "^controlnet_cond_embedding.conv_in.weight$", "{1} hint channels"),
    Detail(("controlnet",), "^hint.convs.0.weight$", "{1} hint channels"),
    # SDXL's reduced ControlNets: `mid` has transformers at the lowest level only, `small` has none.
    Detail(
        ("controlnet",),
        "^input_blocks.8.1.transformer_blocks.0.",
        "mid",
        unless="^input_blocks.4.1.transformer_blocks.0.",
        families=("sdxl",),
    ),
    Detail(
        ("controlnet",),
        "^zero_convs.0.0.weight$",
        "small",
        unless="^input_blocks.8.1.transformer_blocks.0.",
        families=("sdxl",),
    ),
    Detail(
        ("controlnet",),
        "^down_blocks.1.attentions.0.norm.weight$",
        "mid",
        unless="^down_blocks.1.attentions.0.transformer_blocks.0.",
        families=("sdxl",),
    ),
    Detail(
        ("controlnet",),
        "^controlnet_down_blocks.0.weight$",
        "small",
        unless="^down_blocks.1.attentions.0.norm.weight$",
        families=("sdxl",),
    ),
    Detail(("controlnet-union",), "^task_embedding$", "{0} control types"),
    Detail(("t2i-adapter",), "^conv_in.weight$", "pixel unshuffle 8", axis=1, sizes=(64, 192)),
    Detail(("t2i-adapter",), "^conv_in.weight$", "pixel unshuffle 16", axis=1, sizes=(256, 768)),
    Detail(("t2i-adapter-light",), "^body.0.in_conv.weight$", "pixel unshuffle 8", axis=1, sizes=(64, 192)),
    Detail(("t2i-adapter",), "down_opt.op.weight$", "downsampling by convolution"),
    Detail(("controlnet-lllite",), ".conditioning1.4.weight$", "depth 3"),
    Detail(("controlnet-lllite",), ".conditioning1.2.weight$", "depth 2", axis=2, sizes=(4,)),
    Detail(("lora",), ".dora_scale$", "DoRA"),
    Detail(("lora",), ".lora_magnitude_vector", "DoRA"),
    *(
        Detail(("lora",), needle, "rank {0}")
        for needle in (".lora_down.weight$", ".lora_A.weight$", ".lora.down.weight$", ".hada_w1_b$")
    ),
    Detail(("textual-inversion",), "^emb_params$", "{0} vectors"),
    Detail(("textual-inversion",), "^string_to_param.", "{0} vectors"),
    Detail(("textual-inversion",), "^clip_g$", "{0} vectors"),
    Detail(("lora",), "^lora_te", "with the text encoder"),
    Detail(("lora",), "^text_encoder", "with the text encoder"),
    Detail(("checkpoint", "unet"), "^input_blocks.0.0.weight$", INPAINTING, axis=1, sizes=(9,)),
    Detail(("checkpoint", "unet"), "^input_blocks.0.0.weight$", INSTRUCT, axis=1, sizes=(8,)),
    Detail(("checkpoint", "unet"), "^conv_in.weight$", INPAINTING, axis=1, sizes=(9,)),
    Detail(("checkpoint", "unet"), "^conv_in.weight$", INSTRUCT, axis=1, sizes=(8,)),
    Detail(("checkpoint",), "^unet.conv_in.weight$", INPAINTING, axis=1, sizes=(9,)),
    Detail(("checkpoint",), "^unet.conv_in.weight$", INSTRUCT, axis=1, sizes=(8,)),
    Detail(("checkpoint",), "^unet.encoder.blocks.0.conv.weight$", INPAINTING, axis=1, sizes=(9,)),
    Detail(("checkpoint",), "^unet.encoder.blocks.0.conv.weight$", INSTRUCT, axis=1, sizes=(8,)),
    Detail(("checkpoint", "unet"), "^^v_pred$", V_PREDICTION),
    Detail(("checkpoint", "unet"), "^^ztsnr$", ZERO_TERMINAL_SNR),
    Detail(("checkpoint", "unet"), "^^edm_mean$", EDM),
    Detail(("checkpoint", "unet"), "^^edm_vpred.sigma_max$", EDM_V_PREDICTION),
    Detail(("checkpoint",), "^^control_model.zero_convs.0.0.weight$", "with a ControlNet in it"),
)

FAMILIES: tuple[Family, ...] = (
    Family("Stable Diffusion 1.x", SD15),
    Family("Stable Diffusion 2.x", SD21),
    Family("Stable Diffusion XL", SDXL),
    Family("Stable Diffusion XL refiner", SDXL_REFINER),
)

CONTEXT_NEEDLES = (
    "attn2.to_k.weight$",
    "attn2.k.weight$",
    "attn2.to_k.down$",
    "attn2_to_k.lora_down.weight$",
    "attn2_to_k.hada_w1_b$",
    "attn2.to_k.lora_A.weight$",
    "attn2.to_k.lora_layer.down.weight$",
    "attn2.to_k.lora.down.weight$",
    "attn2.processor.to_k_lora.down.weight$",
    ".to_k_ip.weight$",
    "^emb_params$",
    "^string_to_param.",
)
"""Weights that read the text: their second size is its width."""
LABEL_NEEDLES = (
    "^label_emb.0.0.weight$",
    "^label_emb.0.0.down$",
    "^add_embedding.linear_1.weight$",
    "^label_embed.linear1.weight$",
)
"""Weights that read the label vector: their second size is its width."""
T2I_FAMILIES = {64: "sd15", 192: "sd15", 256: "sdxl", 768: "sdxl"}
"""Family of a T2I-Adapter by the input channels of its first convolution."""
