"""Cases of model files: safetensors, pickles, and the configs that stand in them and beside them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import CONFIG_KEY
from hypothesis import strategies as st

from . import corpus
from .case import Case
from .mutate import VALUES, either, json_bytes, mutated, mutated_tree

STEM = "diffusion_pytorch_model"
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I32", "I8", "U8", "U16", "BOOL")
SHAPES = (
    [],
    [0],
    [1],
    [2],
    [2, 3],
    [4, 4],
    [32, 32],
    [1, 2, 3, 3],
    [0, 2**40],
    [2**62, 2],
    [1] * 9,
    [-1],
    [2.0],
    [True],
)


def model_case(files: Mapping[str, bytes], path: str, load: bool) -> Case:
    """Inspect a model, or load it."""
    return Case(files, call="load_model") if load else Case(files, ("inspect", path))


def safetensors_bytes(header: bytes, body: bytes) -> bytes:
    """A file of this header and body."""
    return len(header).to_bytes(8, "little") + header + body


@st.composite
def invented_header(draw: Any) -> bytes:
    """A file of a few tensors with any types, shapes and places, mostly consistent."""
    entries: dict[str, Any] = {}
    end = 0
    names = ("a", "a.weight", "a.bias", "emb_params", "lora_unet_x.lora_up.weight", "lora_unet_x.lora_down.weight", "")
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
        size = 8 * draw(st.integers(0, 6))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.sampled_from(({"format": "pt"}, {"a": 1}, [], None, {"": "x" * 500})))
    return safetensors_bytes(
        json.dumps(entries).encode(), bytes(end + draw(st.sampled_from((0, 0, 0, 1, -1))) if end else 0)
    )


@st.composite
def changed_header(draw: Any) -> bytes:
    """A model file with a damaged header; its weights are zeros, as many as fit."""
    content = draw(st.sampled_from(tuple(corpus.model_files().values())))
    header = corpus.header_of(content)
    keys = [key for key in header if key != "__metadata__"]
    metadata = header.get("__metadata__", {})
    match draw(st.integers(0, 7)):
        case 0:  # one entry is something else
            key = draw(st.sampled_from(keys))
            header[key] = draw(mutated_tree(st.just(header[key]), (*DTYPES, *SHAPES)))
        case 1:  # a tensor of another shape or type, in its place
            entry = header[draw(st.sampled_from(keys))]
            entry["dtype"], entry["shape"] = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
        case 2:  # another name
            header[draw(st.sampled_from(("x", "", "module.a", f"{keys[0]}.b", *keys)))] = header.pop(
                draw(st.sampled_from(keys))
            )
        case 3:
            header["__metadata__"] = draw(mutated_tree(st.just(metadata)))
        case 4:  # transposed, or an axis more or less
            entry = header[draw(st.sampled_from(keys))]
            entry["shape"] = draw(st.sampled_from((entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]])))
        case 5:  # only some of the weights, moved together
            kept = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=40, unique=True))
            header, end = {"__metadata__": metadata} if metadata else {}, 0
            for key in kept:
                entry = corpus.header_of(content)[key]
                begin, last = entry["data_offsets"]
                header[key] = {**entry, "data_offsets": [end, end + last - begin]}
                end += last - begin
            return safetensors_bytes(json.dumps(header).encode(), bytes(end))
        case 6:  # a prefix before all keys
            prefix = draw(st.sampled_from(("model.", "module.", "state_dict.", "_orig_mod.", "x.", "control_model.")))
            header = {key if key == "__metadata__" else prefix + key: value for key, value in header.items()}
        case _:
            header = draw(mutated_tree(st.just(header)))
    size = len(content) - 8 - int.from_bytes(content[:8], "little")
    return safetensors_bytes(draw(json_bytes(st.just(header))), bytes(size))


STARTS = (
    b"", bytes(100), b"version https://git-lfs.github.com/spec/v1", b"<!DOCTYPE html><html>", b"GGUF\x03",
    b"\x89PNG\r\n",
    b"\xff\xd8\xff\xe0", b"RIFF....WEBP", b"\x1f\x8b\x08", b"7z\xbc\xaf", b"Rar!\x1a", b"\x08\x07\x12",
    b"nothing known",
)  # fmt: skip
"""How files begin that people put into model folders by mistake."""


@st.composite
def scaled_misfit(draw: Any) -> bytes:
    """Float8 weights with scales of other shapes and types."""
    header, end = {}, 0
    for key, dtype, width in (("a.weight", "F8_E4M3", 1), ("a.scale_weight", "F32", 4), ("b.weight", "F8_E5M2", 1)):
        shape = draw(st.sampled_from(([], [1], [4], [4, 4], [2, 8], [4, 1])))
        size = width
        for side in shape:
            size *= side
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return safetensors_bytes(json.dumps(header).encode(), bytes(end))


@st.composite
def safetensors(draw: Any) -> Case:
    """Damaged safetensors files, and a few sound ones."""
    files = corpus.model_files()
    sound = st.sampled_from(tuple(files.values()))
    small = st.sampled_from([content for content in files.values() if len(content) < 10_000])
    wrong = either(scaled_misfit(), st.sampled_from(STARTS), 2)
    content = draw(
        st.one_of(invented_header(), changed_header(), changed_header(), mutated(small), mutated(sound), wrong)
    )
    ending = draw(st.sampled_from((".safetensors", ".safetensors", ".sft", ".ckpt", "")))
    return model_case({f"m{ending}": content}, f"m{ending}", draw(st.booleans()))


# ------------------------------------------------------------------------------------------------ pickles

OPS = (
    b"N", b"}", b"]", b")", b"(", b"0", b"2", b"K\x01", b"M\x00\x02", b"J\xff\xff\xff\x7f", b"U\x01a",
    b"X\x01\x00\x00\x00b",
    b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"\x85", b"\x86", b"\x87",
    b"t",
    b"s", b"u", b"a", b"e", b"b", b"R", b"\x81", b"Q", b"\x88", b"\x89", b"G?\xf0\x00\x00\x00\x00\x00\x00",
    b"\x8a\x01\x01",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"cbuiltins\neval\n", b"cos\nsystem\n", b"cposix\nsystem\n", b"csubprocess\nPopen\n", b"U\x04exit",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n", b"ctorch._utils\n_rebuild_parameter\n", b"c__builtin__\nset\n",
    b"c_codecs\nencode\n",
    b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x94", b"\x93", b"\x8c\x01a", b"\x80\x04", b"I1\n", b"L1L\n", b"Va\n", b"\x97", b"\x98", b"g0\n", b"p0\n", b".",
)  # fmt: skip
"""Instructions of pickles: those that PyTorch's reader knows, and those that run code elsewhere."""


@st.composite
def zip_parts(draw: Any) -> bytes:
    """A zip archive in which entries have other contents, names, sizes or compression."""
    original = draw(st.sampled_from([content for content in corpus.pickle_files() if content[:2] == b"PK"]))
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    entries = [list(entry) for entry in entries if len(entries) < 20 or "data.pkl" in entry[0]]
    for _ in range(draw(st.integers(0, 2))):
        if not entries:
            break
        at = draw(st.integers(0, len(entries) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                entries[at][1] = draw(mutated(st.just(entries[at][1])))
            case 1:
                other = (
                    "archive/data.pkl",
                    "archive/DATA.PKL",
                    "data.pkl",
                    "a/../../x",
                    "/x",
                    "archive/data/0",
                    "é" * 300,
                )
                entries[at][0] = draw(st.sampled_from(other))
            case 2:
                del entries[at]
            case 3:
                entries.append([*entries[at]])
            case _:
                entries[at][1] = draw(invented_pickle())
    return _zipped(entries, draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))


def _zipped(entries: list[list[Any]], compression: int) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile warns about two entries of one name
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def invented_pickle() -> st.SearchStrategy[bytes]:
    """Any sequence of instructions."""
    code = st.lists(st.sampled_from(OPS), min_size=1, max_size=24).map(b"".join)
    return st.tuples(code, st.sampled_from((b"}.", b"", b".", b"}U\x01as."))).map(lambda t: b"\x80\x02" + t[0] + t[1])


@st.composite
def inserted_code(draw: Any) -> bytes:
    """A sound pickle with a few instructions put in or left out, in a zip archive or alone."""
    with zipfile.ZipFile(
        io.BytesIO(draw(st.sampled_from([c for c in corpus.pickle_files() if c[:2] == b"PK"])))
    ) as archive:
        entries = [[entry.filename, archive.read(entry)] for entry in archive.infolist()]
    for entry in entries:
        if entry[0].endswith("data.pkl"):
            code, at = entry[1], draw(st.integers(2, max(2, min(len(entry[1]) - 1, 2000))))
            new = b"".join(draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=4)))
            entry[1] = code[:at] + new + code[at + draw(st.sampled_from((0, 0, 1, 5))) :]
            if draw(st.booleans()):
                return entry[1]
    return _zipped(entries, zipfile.ZIP_STORED)


@st.composite
def pickles(draw: Any) -> Case:
    """Damaged and hostile PyTorch files."""
    files = [content for content in corpus.pickle_files() if len(content) < 5000]
    content = draw(
        st.one_of(
            st.sampled_from(files),
            mutated(st.sampled_from(files), files), mutated(st.sampled_from(corpus.pickle_files())), zip_parts(),
            inserted_code(), invented_pickle(), invented_pickle().map(lambda code: _zipped([["archive/data.pkl",
            code],
            ["archive/version", b"3\n"]], zipfile.ZIP_STORED)),
        )
    )  # fmt: skip
    ending = draw(st.sampled_from((".ckpt", ".pth", ".bin", ".pt", ".safetensors", ".pkl")))
    return model_case({f"m{ending}": content}, f"m{ending}", draw(st.integers(0, 2)) == 0)


# ------------------------------------------------------------------------------------------------ configs


@st.composite
def with_config(draw: Any) -> Case:
    """A model file whose own config, or PEFT's settings, say something else."""
    files = corpus.model_files()
    named = [name for name, content in files.items() if CONFIG_KEY in corpus.header_of(content).get("__metadata__", {})]
    name = draw(st.sampled_from((*named, "lora_peft")))
    header = corpus.header_of(files[name])
    key = "lora_adapter_metadata" if name == "lora_peft" else CONFIG_KEY
    known = json.loads(header["__metadata__"][key])
    others = [corpus.configs()[0], *corpus.configs()] if key == CONFIG_KEY else [known]
    tree = st.one_of(mutated_tree(st.just(known), (10**6, 10**9, 300, 9_000_000)), st.sampled_from(others))
    header["__metadata__"][key] = draw(json_bytes(tree)).decode("utf-8", "replace")
    size = len(files[name]) - 8 - int.from_bytes(files[name][:8], "little")
    content = safetensors_bytes(json.dumps(header).encode(), bytes(size))
    return model_case({"m.safetensors": content}, "m.safetensors", draw(st.booleans()))


CONFIG_CHANGES = (
    ("num_attention_heads", ([2, 2], [2, 4], [1, 2], [0, 2], ["x"], 3, "8", None)),
    ("attention_head_dim", ([2, 2], [2, 4], [3, 5], 7, -1)), ("norm_num_groups", (32, 16, "32")),
    ("act_fn", ("silu", "gelu")), ("latents_mean", ([0.0] * 4, [], "x", [1])), ("latents_std", ([1.0] * 4, [0], 3)),
    ("scaling_factor", (0.18, "x", None, 1e400)), ("hidden_act", ("quick_gelu", "gelu", "relu", 3)),
    ("mid_block_type", ("UNetMidBlock2DCrossAttn", "x")), ("global_pool_conditions", (True, 3)),
    ("class_embed_type", ("projection", None)), ("conditioning_channels", (1, 4, "x")),
)  # fmt: skip
"""Entries of a config.json by themselves, so that the entries after them are read too."""


@st.composite
def changed_config(draw: Any) -> Any:
    """A config.json with one or two entries that mean something else."""
    config = dict(draw(st.sampled_from([c for c in corpus.FOLDER_CONFIGS if isinstance(c, dict)])))
    for name, values in draw(st.lists(st.sampled_from(CONFIG_CHANGES), max_size=2)):
        config[name] = draw(st.sampled_from(values))
    return config


@st.composite
def diffusers_folder(draw: Any) -> Case:
    """A folder of one model with a damaged config.json, and weights in any variant, whole or in shards."""
    title = draw(st.sampled_from(("unet", "net", "vae", "text")))
    weights = corpus.model_files()["text" if title == "text" else f"plain_{title}"]
    mutation = either(mutated_tree(st.sampled_from(corpus.FOLDER_CONFIGS)), st.sampled_from(VALUES), 12)
    config = draw(json_bytes(st.one_of(mutation, changed_config())))
    variant = draw(st.sampled_from(("", ".fp16", ".bf16", ".non_ema", ".ema-only", ".x")))
    stem = "model" if title == "text" else STEM
    name = f"{stem}{variant}.safetensors"
    files = {"m/config.json": config, f"m/{name}": weights}
    if draw(st.integers(0, 2)) == 0:
        shard = f"{stem}{variant}-00001-of-00001.safetensors"
        places = {key: shard for key in corpus.header_of(weights) if key != "__metadata__"}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        escapes = ("../m.safetensors", "/etc/passwd", "missing.safetensors", ".", "config.json", "m/../" + shard)
        files[f"m/{shard}"] = files.pop(f"m/{name}")
        form = draw(
            st.sampled_from((f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"))
        )
        files[f"m/{form}"] = draw(json_bytes(either(st.just(index), mutated_tree(st.just(index), escapes), 2)))
    return model_case(files, "m", draw(st.booleans()))


@st.composite
def pipeline_folder(draw: Any) -> Case:
    """A folder of a whole pipeline with damaged configs of its parts."""
    files = corpus.model_files()
    parts = {"unet": "plain_unet", "vae": "plain_vae", "text_encoder": "text"}
    content = {}
    for part, name in parts.items():
        stem = "model" if part == "text_encoder" else STEM
        content[f"m/{part}/{stem}.safetensors"] = files[name]
        if draw(st.booleans()):
            content[f"m/{part}/config.json"] = draw(
                json_bytes(st.one_of(mutated_tree(st.sampled_from(corpus.FOLDER_CONFIGS)), changed_config()))
            )
    changed = st.sampled_from(corpus.SCHEDULERS).flatmap(
        lambda s: st.sampled_from(("epsilon", "v_prediction", "sample", 3)).map(
            lambda kind: {**s, "prediction_type": kind}
        )
    )
    scheduler = either(
        st.one_of(changed, st.sampled_from(corpus.SCHEDULERS)), mutated_tree(st.sampled_from(corpus.SCHEDULERS)), 2
    )
    content["m/scheduler/scheduler_config.json"] = draw(json_bytes(scheduler))
    content["m/model_index.json"] = draw(
        json_bytes(either(st.just({"unet": ["diffusers", "x"]}), st.sampled_from(VALUES), 4))
    )
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=1)):
        content[name] = draw(mutated(st.just(content[name])))
    return model_case(content, "m", draw(st.booleans()))


def configs() -> st.SearchStrategy[Case]:
    """Damaged configs of every kind."""
    return st.one_of(with_config(), with_config(), diffusers_folder(), pipeline_folder())
