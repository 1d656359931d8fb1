"""Cases of pictures, poses, workflows and training folders."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from hypothesis import strategies as st

from . import calls, corpus
from .case import Case
from .mutate import TEXTS, either, json_bytes, mutated, mutated_tree
from .workflow_parts import faulty_api, faulty_drawing, odd_texts, small

LIGHT_CLASSES = frozenset({
    "EmptyImage", "Canny", "SaveImage", "PreviewImage", "LoadImage", "ImageToMask", "MaskToImage", "ImageInvert",
})  # fmt: skip
"""Nodes that take milliseconds."""
KINDS = ("invert", "canny", "threshold", "depth_map", "recolor")


# ----------------------------------------------------------------------------------------------- pictures


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The (name, data) of the chunks of a PNG."""
    found, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with right check sums."""
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@st.composite
def changed_png(draw: Any) -> bytes:
    """A PNG with chunks changed, repeated, left out or in another order, all with right check sums."""
    names = [name for name in corpus.pictures() if name.endswith(".png")]
    chunks = png_chunks(corpus.pictures()[draw(st.sampled_from(names))])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        name, data = chunks[at]
        match draw(st.integers(0, 4)):
            case 0:
                chunks[at] = (name, draw(mutated(st.just(data))))
            case 1 if len(chunks) > 1:
                del chunks[at]
            case 2:
                chunks.insert(draw(st.integers(0, len(chunks))), (name, data))
            case 3:
                extra = draw(
                    st.sampled_from((b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"PLTE"))
                )
                chunks.insert(at, (extra, draw(st.binary(max_size=40))))
            case _:
                header = bytearray(chunks[0][1])
                size = draw(st.sampled_from((0, 1, 16, 4000, 9000, 100_000, 2**31 - 1, 2**32 - 1)))
                field = draw(st.sampled_from((0, 4)))
                header[field : field + 4] = struct.pack(">I", size)
                chunks[0] = (chunks[0][0], bytes(header))
    return png_of(chunks)


@st.composite
def changed_npy(draw: Any) -> bytes:
    """A .npy file with another header."""
    header = draw(
        st.sampled_from((
            "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }", "{'descr': %r, 'shape': %s, %s: 1}", "%s%s%s",
            "{'descr': [('a', '%s')], 'fortran_order': %s, 'shape': %s, }",
        ))
    )  # fmt: skip
    kind = draw(
        st.sampled_from(("<f8", "|u1", "<f2", ">i4", "|O", "<c8", "|b1", "<U4", "<M8[s]", "|V3", "x", "<f16", "<i8"))
    )
    shape = draw(st.sampled_from(("(4, 4)", "(2, 2, 3)", "()", "(0,)", "(0, 4)", "(4,)", "(1, 2, 2, 3)", "(-1, 4)",
    "(10**30,)",
                                  "(1000000, 1000000)", "(2, 2, 7)", "(2, 2, 0)", "4", "(2.0, 2)",
                                  "(True, 2)")))  # fmt: skip
    text = header % (kind, draw(st.sampled_from(("False", "True", "None"))), shape)
    return corpus.npy(text.encode(), draw(st.sampled_from((b"", bytes(32), bytes(128), b"\xff" * 128, b"\x7f" * 96))))


@st.composite
def pictures(draw: Any) -> Case:
    """Damaged pictures of every format, read as preprocess, LoadImage and LoadImageMask do."""
    files = corpus.pictures()
    name = draw(st.sampled_from(sorted(files)))
    content = draw(
        st.one_of(
            mutated(st.just(files[name]), tuple(files.values())), mutated(st.just(files[name])), changed_png(),
            changed_npy() if name.endswith(".npy") else changed_png(), st.just(files[name]), st.binary(max_size=40),
        )
    )  # fmt: skip
    ending = (
        name[name.rindex(".") :]
        if draw(st.integers(0, 7))
        else draw(st.sampled_from((".PNG", ".tif", ".npy", "", ".json")))
    )
    file = f"p{ending}"
    if draw(st.booleans()):
        return Case({file: content}, call=draw(st.sampled_from(("load_picture", "load_picture", "decode_member"))))
    kind = draw(st.sampled_from(KINDS)) if draw(st.integers(0, 3)) == 0 else "invert"
    inside = {"in/" + file: content, "in/q.png": files["a.png"]}
    if draw(st.integers(0, 5)) == 0:
        return Case(inside, ("preprocess", kind, "in", "--output", "out"))
    if draw(st.integers(0, 9)) == 0:
        return Case({file: content, "q.png": files["a.png"]}, ("preprocess", "invert", "q.png", "--mask", file))
    return Case({file: content}, ("preprocess", kind, file, "--output", "out"))


# -------------------------------------------------------------------------------------------------- poses

PARTS = ("pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d", "people")
POSE_VALUES = (
    [0.5, 0.5, 1.0] * 18, [5, 5, 1] * 25, [1, 2, 1] * 17, [9, 9, 1] * 133, [1, 2], [[1, 2, 1]] * 18, [1e6, -1e6,
    1] * 18,
    [float("nan")] * 54, [True] * 54, ["1"] * 54, [[1], [2, 3]], 16, 17.5, 4000, 16384, 16385, 1e9, "64", "64px",
)  # fmt: skip


@st.composite
def poses(draw: Any) -> Case:
    """Damaged pose files, read as `preprocess pose` and PoseRender do."""
    tree = either(
        mutated_tree(st.sampled_from(corpus.poses()), (*POSE_VALUES, *PARTS)), st.sampled_from(corpus.poses()), 10
    )
    content = draw(json_bytes(tree))
    if draw(st.integers(0, 2)):
        return Case({calls.POSE_NAME: content}, call="read_pose")
    size = draw(st.sampled_from(((), (), ("--canvas", "32x24"), ("--resolution", "16"), ("--canvas", "0x0"))))
    return Case({calls.POSE_NAME: content}, ("preprocess", "pose", calls.POSE_NAME, "--output", "out", *size))


# ---------------------------------------------------------------------------------------------- workflows

NODE_NAMES = (
    "KSampler", "LoadImage", "SaveImage", "PreviewImage", "Reroute", "PrimitiveNode", "SetNode", "GetNode", "Note",
    "sub",
    "ConditioningAverage ", "CNCore_Canny", "CNCore_PoseRender", "MarkdownNote", "Unknown", "CLIPTextEncode",
    "workflow/x",
)  # fmt: skip
WORKFLOW_VALUES = (
    *NODE_NAMES, 2, 4, "fixed", "randomize", -10, -20, [1, 1, 0, 2, 0, "IMAGE"], [9, 9, 9, 9, 9, "*"], ["1", 0],
    ["1", 99],
    ["nope", 0], {"__value__": [1, 2]}, "*", "IMAGE,MASK", "COMBO", 2**64, 10**6, 1e9, {"link": 1}, {"name": "width"},
)  # fmt: skip


@st.composite
def workflows(draw: Any) -> Case:
    """Damaged workflows in both forms, in JSON and in PNG, validated, inspected or run."""
    api = mutated_tree(st.sampled_from(corpus.API), WORKFLOW_VALUES)
    drawn = mutated_tree(st.sampled_from(corpus.drawn()[:3]), WORKFLOW_VALUES)
    bundled = mutated_tree(st.sampled_from(corpus.drawn()), WORKFLOW_VALUES)
    gentle = st.one_of(faulty_api(), faulty_drawing())
    sound = st.sampled_from(corpus.API + corpus.drawn())
    tree = st.one_of(api, drawn, bundled, sound, gentle, gentle, gentle, mutated_tree(faulty_drawing()))
    files = {"input/a.png": corpus.pictures()["a.png"]}
    match draw(st.integers(0, 14)):
        case 0:
            texts = {
                key: draw(json_bytes(trees)).decode("utf-8", "replace")
                for key, trees in (("prompt", api), ("workflow", drawn))
            }
            kept = draw(st.lists(st.sampled_from(("prompt", "workflow", "other")), unique=True))
            content = corpus.png_with({key: texts.get(key, "x") for key in kept}, compressed=draw(st.booleans()))
            if draw(st.booleans()):  # as a tool saves both forms of one workflow
                both = {"prompt": draw(faulty_api()), "workflow": draw(st.one_of(sound, faulty_drawing()))}
                content = corpus.png_with({key: json.dumps(form) for key, form in both.items()})
            content = draw(either(st.just(content), mutated(st.just(content)), 4))
        case 1:
            key = draw(st.sampled_from(("prompt", "workflow", "output", "extra")))
            content = draw(json_bytes(tree.map(lambda t: {key: t, "client_id": "x"})))
        case 2:
            content = draw(odd_texts())
        case 3:  # run; with such values a sound workflow ends in milliseconds
            graph = small(draw(faulty_api()))
            is_light = all(node["class_type"] in LIGHT_CLASSES for node in graph.values())
            words = ("run", "w.json", "--quiet", *draw(st.sampled_from(((), ("--strict",)))))
            files["w.json"] = json.dumps(graph).encode()
            return Case(files, words if is_light else ("validate", "w.json"))
        case 4:
            name = draw(st.sampled_from(("missing.json", "input", "input/a.png", "w.json/x")))
            return Case({**files, "w.json": b"{}"}, ("validate", name))
        case _:
            content = draw(json_bytes(tree))
    command = draw(st.sampled_from(("validate", "validate", "validate", "inspect")))
    more = draw(st.sampled_from(((), (), ("--json",)))) if command == "inspect" else draw(
        st.sampled_from(((), (), (), ("--strict",), ("--json",), ("--set", "1.width=32"), ("--set",
        "Save.filename_prefix=b")))
    )  # fmt: skip
    return Case({"w.json": content, **files}, (command, "w.json", *more))


# ----------------------------------------------------------------------------------------- training folders

INDEX_VALUES = (
    "source/0.png", "target/0.png", "target/9.png", "../target/0.png", "source\\0.png", "source/a/0.png", "é.png",
    "prompt.json",
    "source", "/dev/zero", "x" * 300 + ".png",
)  # fmt: skip


def _pictures_of(draw: Any, name: str) -> bytes:
    files = corpus.pictures()
    key = draw(st.sampled_from(sorted(files)))
    if name.startswith("source") and draw(st.booleans()):
        key = "a.png"
    return draw(either(st.just(files[key]), mutated(st.just(files[key])), 3))


@st.composite
def training_folders(draw: Any) -> Case:
    """Folders of examples in both forms with missing, damaged, hidden and linked files, and odd captions."""
    files: dict[str, bytes] = {}
    folder = calls.EXAMPLES_NAME
    stems = draw(
        st.lists(st.sampled_from(("0", "1", "a/2", "._0", ".x/3", "é", "4.b")), min_size=1, max_size=4, unique=True)
    )
    endings = (".png", ".jpg", ".tif", ".JPG", ".gif", ".webp", ".txt")
    for part in ("source", "target"):
        for stem in stems:
            ending = ".png" if draw(st.integers(0, 3)) else draw(st.sampled_from(endings))
            if draw(st.integers(0, 14)):
                files[f"{folder}/{part}/{stem}{ending}"] = _pictures_of(draw, part)
    captions = (
        b"a cat",
        "\ufeffa dog".encode(),
        b"\xff\xfe\x00",
        "猫".encode("gbk"),
        b"",
        b"a\0b",
        b"x" * 5000,
        "\u2028".encode(),
    )
    for stem in stems:
        if draw(st.booleans()):
            files[f"{folder}/target/{stem}.txt"] = draw(st.sampled_from(captions))
    if draw(st.booleans()):
        entries = [{"source": f"source/{stem}.png", "target": f"target/{stem}.png", "prompt": "a"} for stem in stems]
        changed = mutated_tree(st.just(entries), (*INDEX_VALUES, *TEXTS)) if draw(st.booleans()) else st.just(entries)
        rows = draw(changed)
        lines = [json.dumps(row) for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
        end = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n", "\u2028")))
        text = end.join(lines).encode("utf-8", "replace")
        text = draw(either(st.just(text), mutated(st.just(text)), 4))
        files[f"{folder}/prompt.json"] = draw(st.sampled_from((b"", b"", b"\xef\xbb\xbf"))) + text
    links = draw(st.sampled_from(({}, {}, {f"{folder}/source/up": ".."}, {f"{folder}/target/self": "."},
                                  {f"{folder}/source/loop.png": "loop.png"},
                                  {f"{folder}/target/gone": "/nonexistent"})))  # fmt: skip
    if draw(st.integers(0, 9)) == 0:
        files["sizes.json"] = draw(
            st.sampled_from((b"{", b"[]", b'{"a": 1}', b"\xff", b'{"data/target/0.png": [1, 2, 3, 4]}'))
        )
    return Case(files, call="read_examples", links=links)
