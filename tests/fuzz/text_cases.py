"""Cases of prompts, extra_model_paths.yaml, and command lines."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from . import calls, corpus
from .case import Case
from .mutate import TEXTS, either, mutated, texts

# ------------------------------------------------------------------------------------------------ prompts

PROMPT_PIECES = (
    "(", ")", "((", "))", ":", ":1.2)", ":-3)", ":1e400)", ":nan)", ":0x1)", ":１)", "\\(", "\\)", "\\", " ", "\n",
    "\t", ",",
    "cat", "a red ball", "embedding:", "embedding:word", "embedding:word,", "embedding:bad", "embedding:none",
    "embedding:../x",
    "embedding:sub/word", "embedding:/etc/passwd", "(embedding:word:1.3)", "<|startoftext|>", "<|endoftext|>",
    "</w>", "\ufdd0",
    "\ufdd1", "é", "e\u0301", "猫", "👨‍👩‍👧", "\ud800", "\u0000", "\u202e", "ß", "ﬁ", "1234", "'s", "'ll", "!!!",
    "x" * 300, "BREAK",
)  # fmt: skip


@st.composite
def prompts(draw: Any) -> Case:
    """Prompts with weights, marks, textual inversions, and any Unicode."""
    long = st.sampled_from(
        (*TEXTS, "(" * 3999 + "a", "(" * 5000, "a" * 20_000, "cat " * 2000, "(a:1.1)" * 500, ")(" * 3000)
    )
    text = draw(st.one_of(texts(PROMPT_PIECES, 24), texts(PROMPT_PIECES, 24), st.text(max_size=60), long))
    files = {calls.PROMPT_NAME: text.encode("utf-8", "surrogatepass")}
    if "embedding:" in text:
        models = corpus.model_files()
        files["models/embeddings/word.safetensors"] = models[
            draw(st.sampled_from(("word", "word_own", "word_xl", "lora_peft")))
        ]
        files["models/embeddings/bad.pt"] = draw(mutated(st.sampled_from(corpus.pickle_files()[8:12])))
        files["models/embeddings/sub/word.pt"] = corpus.pickle_files()[8]
    return Case(files, call="encode_prompt")


# --------------------------------------------------------------------------------------------------- yaml

YAML_LINES = (
    "comfyui:", "a111:", '"quoted":', "'k': v", "  base_path: models", "  base_path: ~/models",
    "  base_path: /nonexistent", "\t",
    "  base_path: ${HOME}/models", "  checkpoints: checkpoints", "  checkpoints: |", "      one", "      two",
    "  loras: [a, b]",
    "  loras:", "    - a", "    - [b]", "    - {c: d}", "  unet: x", "  clip: y", "  is_default: true",
    "  is_default: 'true'",
    "base_path: models", "checkpoints: checkpoints", "&a x: &b y", "  <<: *a", "<<: {a: b}", "? - 1", ": - 2",
    "- a", "--- ", "...",
    "%YAML 1.1", "!!python/object/apply:os.system ['true']", "x: !!python/name:os.system", "d: 2024-02-31",
    "n: .inf", "e: 1e400",
    "b: !!binary aGk=", "s: !!set {a}", "~: ~", "1: 2", "[]: {}", "{a: b}: c", "k: 'unclosed", 'k: "\\x"',
    "k: \u0000", "k: \u2028",
    "  vae: ~nouser/x", "  vae: a\0b", "  controlnet: ../../..", "a: &x [*x]", "z: *missing", "  custom_nodes: c",
    "# note", "", "é: ü",
)  # fmt: skip


def _aliases(levels: int) -> str:
    """A text whose lists grow tenfold with each line."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@st.composite
def yaml_files(draw: Any) -> Case:
    """Damaged extra_model_paths.yaml: lines in any order, other encodings, tags, aliases without end."""
    lines = st.lists(st.sampled_from(YAML_LINES), max_size=14).map("\n".join)
    sound = "comfyui:\n  base_path: models\n  checkpoints: checkpoints\n  loras: |\n    a\n    b\n  is_default: true\n"
    odd = st.sampled_from(
        ("[" * 400, "{" * 300, "a: " * 3000, _aliases(9), "- " * 4000, "? " * 2000, "&a " * 2000, "x" * 100_001)
    )
    odd = either(odd, st.just("[" * 5000), 12)  # which takes PyYAML a second
    text = draw(st.one_of(lines, lines, st.just(sound), st.text(max_size=80), odd))
    content = text.encode(draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"))), "replace")
    content = draw(either(st.just(content), mutated(either(st.just(content), st.just(sound.encode()), 2)), 3))
    files = {
        calls.PATHS_NAME: content,
        "models/checkpoints/x.safetensors": b"",
        "w.json": json.dumps(corpus.LIGHT).encode(),
    }
    inside = not any(word in content for word in (b"..", b"/", b"$", b"~", b"custom"))
    if inside and draw(st.integers(0, 3)) == 0:
        return Case(files, ("validate", "w.json", "--models", calls.PATHS_NAME))
    return Case(files, call="read_paths")


# ------------------------------------------------------------------------------------------ command lines

COMMON = (
    "--help",
    "-h",
    "--version",
    "--",
    "-",
    "",
    "--json",
    "--quiet",
    "--nonsense",
    "\ud800",
    "a\0b",
    "x" * 5000,
    "~nouser/x",
)
FILES = (
    "w.json",
    "p.png",
    "m.safetensors",
    "pose.json",
    "missing",
    ".",
    "..",
    "/dev/null",
    "folder",
    "w.json/x",
    "canny_photo",
    "é",
)
NUMBERS = ("0", "1", "-1", "2", "nan", "inf", "1e400", "0x10", "", "９", "1_0", "abc", str(2**70))
VALUE_OF: dict[str, tuple[str, ...]] = {
    "--output": ("out", "p.png", "p.png/x", "w.json", "folder", ""), "--report": ("r.json", "r.png",
    "r.txt", "w.json", "folder", "p.png"),
    "--input": ("folder", "missing", "p.png", "."), "--models": ("folder", "missing", "w.json", "extra.yaml",
    "m.safetensors"),
    "--set": ("1.width=8", "1.width=x", "Save.filename_prefix=b", "nope.x=1", "1.=", "=", "1.width", "3.images=1",
    "low=10", "low=x",
              "1.color=" + "9" * 5000, "EmptyImage.height=0", "Save.filename_prefix=../x"),
    "--set ": (
        "1.color=1..3", "1.width=8|16", "1.width=0.2..1.0/5", "1.width=8..9999", "3.filename_prefix=a|b",
        "1.color=3..1", "1.width=1..1e9", "1.color=1,2,x", "1.width=",
        "=", "nope.x=1|2", "1.color=1..2..3", "1.width=nan..2/3",
        "Save.filename_prefix=../x|y",
    ),
    "--picture": ("1", "3", "Save", "nope", ""),
    "--seeds": ("1", "1..2", "2..1", "1,2", "x", "1..99999999999", ""), "--device": ("cpu", "cuda", "cuda:99",
    "tpu", "meta", "auto", "", "cpu:1"),
    "--dtype": ("fp32", "fp16", "bf16", "fp8", "auto"), "--memory": ("auto", "resident", "streamed", "x"),
    "--threads": NUMBERS[:3],
    "--chunk": NUMBERS, "--reuse": NUMBERS, "--reuse-tolerance": NUMBERS, "--deep-every": NUMBERS,
    "--resolution": ("0", "16", "-1", "x", "99999999"),
    "--multiple": NUMBERS, "--size": ("input_size", "detect_size", "x"), "--mask": FILES, "--normalize": ("frame",
    "batch", "fixed", "x"),
    "--canvas": ("32x32", "0x0", "99999x99999", "p.png", "x"), "--seed": NUMBERS, "--data": ("data", "missing",
    "p.png"),
    "--base": ("m.safetensors", "p.png", "missing", "w.json", "folder"), "--start": FILES, "--work": ("work",
    "p.png", "p.png/x"),
    "--steps": ("0", "-1", "x", "1"), "--batch": NUMBERS, "--lr": NUMBERS, "--layout": ("cldm", "diffusers", "core",
    "x"), "--size ": NUMBERS,
    "--minutes": ("0", "-1", "nan", "x"), "--ema": NUMBERS, "--empty": NUMBERS, "--save-every": NUMBERS,
    "--probe-every": NUMBERS,
}  # fmt: skip
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "run": ("--set", "--seeds", "--input", "--output", "--models", "--device", "--dtype", "--memory", "--threads",
    "--chunk",
            "--reuse", "--reuse-tolerance", "--deep-every", "--report"),
    "sweep": ("--set ", "--picture", "--input", "--output", "--models", "--device", "--dtype", "--memory", "--chunk"),
    "validate": ("--set", "--input", "--output", "--models"),
    "inspect": (),
    "nodes": (),
    "preprocess": ("--output", "--set", "--resolution", "--multiple", "--size", "--mask", "--normalize", "--canvas",
    "--seed", "--models",
                   "--device", "--dtype", "--chunk"),
    "train": ("--data", "--base", "--output", "--start", "--work", "--steps", "--batch", "--lr", "--layout",
    "--size ", "--minutes", "--ema",
              "--empty", "--save-every", "--probe-every", "--dtype", "--device"),
    "verify": ("--output", "--device"),
    "train-demo": (),
}  # fmt: skip
FLAGS_OF: dict[str, tuple[str, ...]] = {
    "run": ("--strict", "--overwrite", "--measure", "--careful", "--graphs", "--side-by-side", "--no-winograd",
    "--keep-packed", "--json"),
    "validate": ("--strict", "--json"), "preprocess": ("--list", "--overwrite", "--json"), "train": ("--skip-bad",
    "--overwrite", "--quick"),
    "sweep": ("--yes", "--quiet", "--json"), "inspect": ("--json",), "nodes": ("--json",), "verify": ("--json",),
}  # fmt: skip
KINDS = ("canny", "invert", "pose", "depth", "nope", "openpose", "threshold", "inpaint", "")
NODES = ("CNCore_Canny", "KSampler", "nope", "", "ksampler", "x" * 3000)


SETTINGS = (
    "1.width=8",
    "EmptyImage.height=16",
    "Save.filename_prefix=b",
    "save.filename_prefix=sub/b",
    "2.low_threshold=0.2",
    "canny.high_threshold=nan",
    "1.width=x",
    "1.batch_size=1e400",
    "2.image=1",
    "1.nope=2",
    "Saves.x=1",
    "zzz.x=1",
    "1",
    "=",
    " 1 . color = 3 ",
    "3.images=1",
    "1.color=0x10",
    "1.color=70",
    "Save.filename_prefix=" + "x" * 300,
    "PreviewImage.x=1",
)
SEEDS = ("1", "1..2", "2..1", "1,2", " 3 ", "x", "1..99999999999", "", "1..2,5", "9" * 25)


SOURCES = (
    "1.color=c.txt", "Save.filename_prefix=c.csv:name", "1.color=folder", "1.x=c.txt", "1.color=missing", "c.txt",
    "1.color=c.jsonl:n", "1.color=c.jsonl",
)  # fmt: skip
SHARDS = ((), ("--zip",), ("--shard", "1/2"), ("--shard", "3/2"))


@st.composite
def sound_commands(draw: Any) -> Case:
    """Commands on the right files, with a few options that mostly fit."""
    files = command_files()
    command = draw(st.sampled_from(("run", "run", "run", "sweep", "validate", "preprocess", "inspect", "nodes")))
    words: list[str] = [command]
    if command in ("run", "sweep", "validate"):
        # Two nodes of one class, and one with a seed that no output needs.
        twins = {**corpus.LIGHT, "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
                 "5": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}}  # fmt: skip
        seeded = {**corpus.LIGHT, "9": {"class_type": "CNCore_Shuffle", "inputs": {"image": ["1", 0], "seed": 3}}}
        unknown = {**corpus.LIGHT, "9": {"class_type": "Unknown", "inputs": {"seed": 3}}}
        graph = draw(st.sampled_from((corpus.LIGHT, corpus.LIGHT, twins, seeded, unknown)))
        files["w.json"] = json.dumps(graph).encode()
        words.append("w.json")
        settings = VALUE_OF["--set "] if command == "sweep" else SETTINGS
        for value in draw(st.lists(st.sampled_from(settings), min_size=command == "sweep", max_size=2)):
            words += ["--set", value]
        if command == "run" and draw(st.booleans()):
            words += ["--seeds", draw(st.sampled_from(SEEDS))]
        if command == "run" and draw(st.integers(0, 3)) == 0:
            words += ["--each", draw(st.sampled_from(SOURCES)), *draw(st.sampled_from(SHARDS))]
    elif command == "preprocess":
        words += [
            draw(st.sampled_from(("invert", "canny", "pose"))),
            draw(st.sampled_from(("p.png", "folder", "pose.json"))),
        ]
    else:
        words.append(draw(st.sampled_from(("w.json", "p.png", "m.safetensors", "KSampler", "CNCore_Canny"))))
    for _ in range(draw(st.integers(0, 2))):
        option = draw(st.sampled_from([*OPTIONS_OF[command], "--json"]))
        if option not in ("--set", "--set ", "--json"):
            words += [option.strip(), draw(st.sampled_from(VALUE_OF[option]))]
        elif option == "--json":
            words.append(option)
    return Case(files, tuple(words))


def command_lines() -> st.SearchStrategy[Case]:
    """Command lines, sound and not."""
    return st.one_of(sound_commands(), any_words())


@st.composite
def any_words(draw: Any) -> Case:
    """Any words: subcommands with files and options that exist or not, with values that fit or not."""
    command = draw(st.sampled_from((*OPTIONS_OF, *OPTIONS_OF, "nope", "")))
    words: list[str] = [command]
    if command == "preprocess":
        words.append(draw(st.sampled_from(KINDS)))
    if command == "train-demo":
        words.append(draw(st.sampled_from(("nope", "--help", ""))))
    elif command == "verify":  # without pictures, which take seconds
        words += ["--no-picture", draw(st.sampled_from(("w.json", "p.png", "missing", "bad.ckpt", "folder")))]
    elif command == "nodes":
        words += draw(st.lists(st.sampled_from(NODES), max_size=2))
    elif command == "train":
        words += [
            "--data",
            "data",
            "--base",
            draw(st.sampled_from(("bad.ckpt", "missing", "p.png", "m.safetensors"))),
            "--output",
            "n.safetensors",
        ]
    else:
        # A bundled workflow takes seconds to run.
        names = [name for name in FILES if name != "canny_photo" or command != "run"]
        words += draw(st.lists(st.sampled_from(names), max_size=2 if command == "preprocess" else 1))
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 5)) == 0:
            words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(COMMON)))
        elif OPTIONS_OF.get(command) and draw(st.booleans()):
            option = draw(st.sampled_from(OPTIONS_OF[command]))
            value = draw(st.sampled_from(VALUE_OF[option]))
            words += [f"{option.strip()}={value}"] if draw(st.booleans()) else [option.strip(), value]
        elif FLAGS_OF.get(command):
            words.append(draw(st.sampled_from(FLAGS_OF[command])))
    if "train-demo" in words and {"all", "scenes", "base"} & set(words):
        words = ["train-demo"]
    return Case(command_files(), tuple(words))


def command_files() -> dict[str, bytes]:
    """The files that command lines name."""
    return {
        "w.json": json.dumps(corpus.LIGHT).encode(), "p.png": corpus.pictures()["a.png"],
        "m.safetensors": corpus.model_files()["net_core"],
        "pose.json": json.dumps(corpus.poses()[0]).encode(), "folder/q.png": corpus.pictures()["b.png"],
        "bad.ckpt": b"no model", "c.txt": b"1\n2\n\n# x\n", "c.csv": b"name,n\na,1\n../b,2\n",
        "c.jsonl": b'{"n": 1}\n{"n": "x"}\n{\n',
        "data/source/0.png": corpus.pictures()["a.png"], "data/target/0.png": corpus.pictures()["a.png"],
        "extra.yaml": b"a:\n  base_path: folder\n  checkpoints: .\n",
    }  # fmt: skip
