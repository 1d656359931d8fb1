// The Pose Editor node: puts the editor of `pose/` on the node as the widget of its input "pose".
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { PoseEditor } from "./pose/editor.js";

const NODE = "CNCore_PoseEditor";
const WIDGET = "CNCORE_POSE"; // as in nodes/pose_editor.py
const PROPERTY = "pose_editor"; // of the node: opacity and other settings, which do not change the result
const [MIN_WIDTH, MIN_HEIGHT] = [420, 380];
const START_SIZE = [550, 760];
const [IMAGE_SLOT, POSE_SLOT] = ["image", "pose_keypoint"];

function makeWidget(node, name) {
  const editor = new PoseEditor({
    language: app.extensionManager.setting.get("Comfy.Locale"),
    settings: node.properties[PROPERTY],
    onEdit: () => {
      widget.callback?.(widget.value);
      node.graph?.setDirtyCanvas(true, false);
    },
    onSetting: (settings) => (node.properties[PROPERTY] = settings),
  });
  const widget = node.addDOMWidget(name, WIDGET, editor.element, {
    getValue: () => editor.text,
    setValue: (text) => (editor.text = String(text ?? "")),
    getMinHeight: () => MIN_HEIGHT,
    hideOnZoom: false,
  });
  widget.onRemove = after(widget.onRemove, () => editor.remove());
  node.poseEditor = editor;
  return { widget, minWidth: MIN_WIDTH, minHeight: MIN_HEIGHT };
}

/** A function that calls another one first, which may be missing. */
function after(first, then) {
  return function (...args) {
    const result = first?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

// ---- what is linked

const slotOf = (node, name) => node.inputs.findIndex((input) => input.name === name);
const isLinked = (node, name) => node.isInputConnected(slotOf(node, name));

/** Show in the editor what the links bring, as far as it is known before or since the last run. */
async function showLinks(node) {
  const editor = node.poseEditor;
  const hasPose = isLinked(node, POSE_SLOT);
  const known = hasPose ? (node.posesSeen ?? null) : null;
  const source = isLinked(node, IMAGE_SLOT) ? (node.imageSeen ?? sourceOf(node)) : null;
  const picture = source ? await load(source.url) : null;
  const size = picture && { width: source.width ?? picture.naturalWidth, height: source.height ?? picture.naturalHeight };
  const isEdited = editor.text !== "";
  const state = !hasPose ? "" : isEdited ? "linkUnused" : known ? "fromLink" : "linkWaits";
  editor.setLinks({ picture, size, linked: known, state });
}

/** The picture that the linked node shows, before any run: such as that of Load Image. */
function sourceOf(node) {
  const shown = node.getInputNode(slotOf(node, IMAGE_SLOT))?.imgs?.[0]?.src;
  return shown ? { url: shown } : null;
}

function load(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

/** What a run sent: the linked picture and keypoints. */
function keepResults(node, { background, linked_pose: poses }) {
  if (poses?.length) node.posesSeen = poses[0];
  if (background?.length) {
    const [{ width, height, ...file }] = background;
    node.imageSeen = { url: api.apiURL(`/view?${new URLSearchParams(file)}`), width, height };
  }
}

app.registerExtension({
  name: "ControlNetCore.PoseEditor",
  setup() {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("./pose/style.css", import.meta.url).href });
    document.head.append(style);
  },
  getCustomWidgets() {
    return { [WIDGET]: (node, name) => makeWidget(node, name) };
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const prototype = nodeType.prototype;
    prototype.onExecuted = after(prototype.onExecuted, function (output) {
      keepResults(this, output);
      showLinks(this);
    });
    prototype.onConnectionsChange = after(prototype.onConnectionsChange, function () {
      [this.imageSeen, this.posesSeen] = [null, null];
      showLinks(this);
    });
    prototype.onConfigure = after(prototype.onConfigure, function () {
      const settings = this.properties?.[PROPERTY];
      if (settings) this.poseEditor?.changeSetting(settings);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    node.setSize([Math.max(node.size[0], START_SIZE[0]), Math.max(node.size[1], START_SIZE[1])]);
    const stroke = node.widgets.find((widget) => widget.name === "stroke");
    stroke.callback = after(stroke.callback, (value) => node.poseEditor.setStroke(value));
    node.poseEditor.setStroke(stroke.value);
  },
});
