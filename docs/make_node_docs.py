"""Write the texts and pictures that ComfyUI shows about our nodes, from the node classes.

    python docs/make_node_docs.py            # everything
    python docs/make_node_docs.py --texts    # without the pictures, for which the nodes are run

- `locales/en/nodeDefs.json`: names, descriptions and tooltips of the classes.
- `locales/ko/nodeDefs.json` is written by hand. This program reads it and lists what is missing in it.
- `web/docs/ID.md` and `web/docs/ID/ko.md`: the help page of each node. A paragraph of its own comes from
  `docs/node_notes/ID.md` or `docs/node_notes/ID.ko.md`.
- `web/pose/tables.js`: what the Pose Editor in the browser shares with Python (`pose_tables.py`).
- `docs/templates.md`: the bundled workflows, with their own notes and screenshots.
- `web/docs/images/ID.jpg`: a picture of the node and of its output (`draw_node_pictures.py`).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pose_tables
from comfyui_controlnet_core.nodes import build_nodes, own_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.bundled import bundled_names
from comfyui_controlnet_core.workflows.contract import InputSpec, NodeSpec, read_spec

ROOT = Path(__file__).resolve().parent.parent
NOTES, PAGES = ROOT / "docs" / "node_notes", ROOT / "web" / "docs"
LOCALES, WORKFLOWS = ROOT / "locales", ROOT / "workflows"
SCREENSHOTS = ROOT / "docs" / "images" / "templates"
LANGUAGES = ("en", "ko")
SHOWN_CHOICES = 8
SPECIAL = re.compile(r"[{}@|$]")
"""Signs with a meaning in ComfyUI's translation format."""
LITERAL = re.compile(r"\{'(.)'\}")

Texts = Mapping[str, Any]
"""A node's entry of nodeDefs.json: display_name, description, inputs and outputs."""


@dataclass(frozen=True)
class Words:
    """The fixed words of a help page, in one language."""

    where: str
    inputs: str
    outputs: str
    example: str
    input_head: str
    output_head: str
    optional: str
    choices: str
    to: str
    template: str
    comes_from: str
    goes_to: str


WORDS = {
    "en": Words(
        "`{id}`, under **{category}**",
        "Inputs",
        "Outputs",
        "Example",
        "| input | type | values | what it is |\n| --- | --- | --- | --- |",
        "| output | type | what it is |\n| --- | --- | --- |",
        "optional",
        "and {count} more",
        "to",
        "It is at work in the templates {names}: open one from the template browser, or run it with "
        "`controlnet run {first}`.",
        "`{name}` comes from {nodes}.",
        "`{name}` goes to {nodes}.",
    ),
    "ko": Words(
        "`{id}`, 위치: **{category}**",
        "입력",
        "출력",
        "예",
        "| 입력 | 형식 | 값 | 설명 |\n| --- | --- | --- | --- |",
        "| 출력 | 형식 | 설명 |\n| --- | --- | --- |",
        "선택",
        "외 {count}개",
        "~",
        "템플릿 {names}에서 쓰입니다. 템플릿 브라우저에서 열거나 `controlnet run {first}` 명령으로 실행해 보세요.",
        "`{name}` 입력은 {nodes}에서 가져옵니다.",
        "`{name}` 출력은 {nodes}에 연결합니다.",
    ),
}
NATIVE_SOURCES = {
    "LATENT": ("EmptyLatentImage", "VAEEncode"),
    "IMAGE": ("LoadImage",),
    "MASK": ("LoadImageMask",),
}
NATIVE_TARGETS = {"LATENT": ("VAEDecode",), "IMAGE": ("PreviewImage", "SaveImage")}
NATIVE_NAMES = {
    "EmptyLatentImage": {"en": "Empty Latent Image", "ko": "빈 잠재 이미지"},
    "VAEEncode": {"en": "VAE Encode", "ko": "VAE 인코드"},
    "VAEDecode": {"en": "VAE Decode", "ko": "VAE 디코드"},
    "LoadImage": {"en": "Load Image", "ko": "이미지 로드"},
    "LoadImageMask": {"en": "Load Image (as Mask)", "ko": "마스크 이미지 로드"},
    "PreviewImage": {"en": "Preview Image", "ko": "이미지 미리보기"},
    "SaveImage": {"en": "Save Image", "ko": "이미지 저장"},
}
"""Names of ComfyUI's own nodes."""
MOST_NAMES = 3


def main(arguments: list[str]) -> None:
    """Write everything, and print what Korean lacks."""
    nodes = node_classes()
    for path, text in files(nodes).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    missing = sorted(keys(english(nodes)) - keys(read_locale("ko")))
    print(f"{len(nodes)} nodes; not in locales/ko/nodeDefs.json: {', '.join(missing) or 'nothing'}")
    if "--texts" not in arguments:
        import draw_node_pictures

        draw_node_pictures.main(PAGES / "images")


def node_classes() -> dict[str, Any]:
    """Return our node classes by ID, with a host that has only the built-in files."""
    with tempfile.TemporaryDirectory() as folder:
        classes = build_nodes(StandaloneHost(folder, folder, device="cpu", dtype="fp32"))
        return {name: classes[name] for name in own_nodes()}


def files(nodes: Mapping[str, Any]) -> dict[Path, str]:
    """Return path -> text of every file that is made from texts only."""
    text = json.dumps(english(nodes), indent=1, ensure_ascii=False) + "\n"
    found = {LOCALES / "en" / "nodeDefs.json": text, ROOT / "docs" / "templates.md": templates()}
    found[ROOT / "web" / "pose" / "tables.js"] = pose_tables.text()
    for language in LANGUAGES:
        texts = {name: plain(entry) for name, entry in json.loads(text).items()}
        translated = texts if language == "en" else {k: plain(v) for k, v in read_locale(language).items()}
        for name, cls in nodes.items():
            if name in translated:
                page = PAGES / f"{name}.md" if language == "en" else PAGES / name / f"{language}.md"
                found[page] = Page(name, cls, translated, texts, nodes, language).text()
    return found


# ---- translations


def read_locale(language: str) -> dict[str, Any]:
    """Read nodeDefs.json of a language."""
    path = LOCALES / language / "nodeDefs.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def english(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of nodeDefs.json in English, from the classes."""
    return {name: escaped(entry_of(read_spec(name, cls), cls)) for name, cls in nodes.items()}


def entry_of(spec: NodeSpec, cls: Any) -> dict[str, Any]:
    """Return names, description and tooltips of one class."""
    inputs = {}
    for item in spec.inputs.values():
        inputs[item.name] = {"name": item.name, "tooltip": item.options["tooltip"]}
        if item.options.get("control_after_generate"):
            inputs["control_after_generate"] = {"name": "control_after_generate"}
    outputs = {
        str(slot): {"name": name, "tooltip": tip}
        for slot, (name, tip) in enumerate(zip(spec.output_names, cls.OUTPUT_TOOLTIPS, strict=True))
    }
    return {"display_name": cls.DISPLAY_NAME, "description": cls.DESCRIPTION, "inputs": inputs, "outputs": outputs}


def each_text(entry: Any, change: Any) -> Any:
    """Apply `change` to each text of an entry."""
    if isinstance(entry, str):
        return change(entry)
    return {key: each_text(value, change) for key, value in entry.items()}


def escaped(entry: Any) -> Any:
    """Escape texts for nodeDefs.json."""
    return each_text(entry, lambda text: SPECIAL.sub(lambda sign: "{'" + sign[0] + "'}", text))


def plain(entry: Any) -> Any:
    """Remove the escapes of nodeDefs.json."""
    return each_text(entry, lambda text: LITERAL.sub(r"\1", text))


def keys(entry: Any, before: str = "") -> set[str]:
    """Return the dotted names of all texts in nodeDefs.json."""
    if isinstance(entry, str):
        return {before}
    return {key for name, value in entry.items() for key in keys(value, f"{before}.{name}" if before else name)}


# ---- pages


@dataclass(frozen=True)
class Page:
    """The help page of one node. texts: of all nodes in this language; fallback: in English."""

    name: str
    cls: Any
    texts: Mapping[str, Texts]
    fallback: Mapping[str, Texts]
    nodes: Mapping[str, Any]
    language: str

    @property
    def spec(self) -> NodeSpec:
        return read_spec(self.name, self.cls)

    @property
    def words(self) -> Words:
        return WORDS[self.language]

    def title(self, name: str) -> str:
        """What a node is called, ours or the editor's."""
        if name in NATIVE_NAMES:
            return NATIVE_NAMES[name][self.language]
        return self.texts.get(name, {}).get("display_name") or self.fallback[name]["display_name"]

    def tip(self, group: str, key: str) -> str:
        """The tooltip of an input or output."""
        found = self.texts[self.name].get(group, {}).get(key, {}).get("tooltip")
        return cell(found or self.fallback[self.name][group][key]["tooltip"])

    def label(self, group: str, key: str, name: str) -> str:
        """The name of an input or output as workflows have it, and as this language shows it."""
        shown = self.texts[self.name].get(group, {}).get(key, {}).get("name", name)
        return f"`{name}`" if shown == name else f"`{name}` {cell(shown)}"

    def text(self) -> str:
        """The page as Markdown."""
        return "\n\n".join(part.strip() for part in self.parts() if part.strip()) + "\n"

    def parts(self) -> Iterator[str]:
        """Its paragraphs."""
        title = self.title(self.name)
        yield f"# {title}"
        yield self.words.where.format(id=self.name, category=self.cls.CATEGORY.replace("/", " / "))
        yield self.texts[self.name].get("description") or self.fallback[self.name]["description"]
        yield f"![{title}](images/{self.name}.jpg)"
        note = NOTES / (f"{self.name}.md" if self.language == "en" else f"{self.name}.{self.language}.md")
        yield note.read_text("utf-8") if note.exists() else ""
        yield f"## {self.words.inputs}"
        yield "\n".join([self.words.input_head, *(self.input_row(item) for item in self.spec.inputs.values())])
        yield f"## {self.words.outputs}"
        yield "\n".join([self.words.output_head, *self.output_rows()])
        yield f"## {self.words.example}"
        yield from self.example()

    def input_row(self, item: InputSpec) -> str:
        optional = "" if item.required else f" ({self.words.optional})"
        label = self.label("inputs", item.name, item.name) + optional
        return f"| {label} | {item.type} | {cell(self.values(item))} | {self.tip('inputs', item.name)} |"

    def values(self, item: InputSpec) -> str:
        """What a field may hold, its default first."""
        if item.choices is not None:
            others = [str(c) for c in item.choices if c != item.default]
            more = len(others) - SHOWN_CHOICES
            tail = [self.words.choices.format(count=more)] if more > 0 else []
            return ", ".join([f"**{item.default}**", *others[:SHOWN_CHOICES], *tail])
        if not item.is_widget or item.type == "STRING":
            return f"**{item.default}**" if item.is_widget and item.default else ""
        if "max" not in item.options:
            return f"**{item.default}**"
        return f"**{item.default}**, {item.options['min']} {self.words.to} {item.options['max']}"

    def output_rows(self) -> Iterator[str]:
        for slot, (name, kind) in enumerate(zip(self.spec.output_names, self.spec.outputs, strict=True)):
            label = self.label("outputs", str(slot), name)
            yield f"| {label} | {kind if isinstance(kind, str) else 'COMBO'} | {self.tip('outputs', str(slot))} |"

    def example(self) -> Iterator[str]:
        """Templates that use the node, and what it is linked to."""
        names = [name for name in bundled_names() if self.name in types_of(name)]
        if names:
            shown = ", ".join(f"**{name}**" for name in names[:MOST_NAMES])
            yield self.words.template.format(names=shown, first=names[0])
        lines = [*self.sources(), *self.targets()]
        yield "\n".join(f"- {line}" for line in lines)

    def sources(self) -> Iterator[str]:
        """Where its linked inputs come from."""
        for item in self.spec.inputs.values():
            ours = [n for n, cls in self.nodes.items() if n != self.name and gives(cls, item.type)]
            found = [self.title(n) for n in (*ours[:MOST_NAMES], *NATIVE_SOURCES.get(item.type, ()))]
            if found and not item.is_widget:
                yield self.words.comes_from.format(name=item.name, nodes=", ".join(found))

    def targets(self) -> Iterator[str]:
        """Where its outputs go."""
        for name, kind in zip(self.spec.output_names, self.spec.outputs, strict=True):
            ours = [n for n, cls in self.nodes.items() if n != self.name and takes(read_spec(n, cls), kind)]
            found = [self.title(n) for n in (*ours[:MOST_NAMES], *NATIVE_TARGETS.get(kind, ()))]
            if found:
                yield self.words.goes_to.format(name=name, nodes=", ".join(found))


def gives(cls: Any, kind: str) -> bool:
    """Whether a node's outputs are of use to others in that type; what looks at results is not meant."""
    return kind in cls.RETURN_TYPES and not getattr(cls, "OUTPUT_NODE", False)


def takes(spec: NodeSpec, kind: Any) -> bool:
    """Return whether a node has a socket of that type."""
    return any(item.type == kind and not item.is_widget for item in spec.inputs.values())


# ---- templates

TEMPLATES = """# Templates

ComfyUI lists these workflows in its template browser, under ControlNet Core. `controlnet run NAME` runs them without
ComfyUI. All of them use the demo model, so they run without a download. A note in each says what to change for a model
of your own. The screenshots are of ComfyUI itself.
"""


def templates() -> str:
    """Describe all bundled workflows: the first note, and a screenshot."""
    parts = [TEMPLATES.strip()]
    for name in bundled_names():
        title, about = note_of(name)
        parts += [f"## {title}", f"`{name}`. {about}"]
        if (SCREENSHOTS / f"{name}.jpg").exists():
            parts.append(f"![{title}, in the editor](images/templates/{name}.jpg)")
    return "\n\n".join(parts) + "\n"


def note_of(workflow: str) -> tuple[str, str]:
    """Return heading and first paragraph of a bundled workflow's first note."""
    notes = [node["widgets_values"][0] for node in drawn(workflow) if node["type"] in ("MarkdownNote", "Note")]
    paragraphs = [part for part in (notes[0] if notes else "").split("\n\n") if part.strip()] or [workflow]
    heading = paragraphs[0].splitlines()[0].lstrip("# ")
    return heading, " ".join(paragraphs[1].split()) if paragraphs[1:] else ""


def drawn(workflow: str) -> list[dict[str, Any]]:
    """Return the nodes of a bundled workflow."""
    return json.loads((WORKFLOWS / f"{workflow}.json").read_text("utf-8"))["nodes"]


def types_of(workflow: str) -> set[str]:
    """Return the classes of the nodes in a bundled workflow."""
    return {node["type"] for node in drawn(workflow)}


def cell(text: str) -> str:
    """Escape text for a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
