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
const seen = new Map(); // what runs sent, by node and link: it outlives the node, which ComfyUI makes anew at each undo

/** The name of a link in `seen`; null where nothing is linked. */
function linkKey(node, name) {
  const slot = slotOf(node, name);
  const link = node.isInputConnected(slot) ? node.getInputLink(slot) : null;
  return link && [node.graph?.rootGraph?.id ?? node.graph?.id, node.id, name, link.origin_id, link.origin_slot].join("/");
}

/** Show in the editor what the links bring, as far as it is known before or since the last run. */
async function showLinks(node) {
  const editor = node.poseEditor;
  const [imageKey, poseKey] = [linkKey(node, IMAGE_SLOT), linkKey(node, POSE_SLOT)];
  const source = imageKey && (chosenFile(node) ?? seen.get(imageKey) ?? shownPicture(node));
  const poses = (poseKey && seen.get(poseKey)) || null;
  const shown = [source?.url, source?.width, poses, poseKey].join();
  if (node.poseLinksShown === shown) return;
  node.poseLinksShown = shown;
  const picture = source ? await load(source.url) : null;
  if (node.poseLinksShown !== shown) return; // the links changed while the picture was loading
  const size = picture && { width: source.width ?? picture.naturalWidth, height: source.height ?? picture.naturalHeight };
  editor.setLinks({ picture, size, linked: poses, hasLink: poseKey !== null });
}

/** The file that is chosen in a linked Load Image; null for other nodes. */
function chosenFile(node) {
  const origin = node.getInputNode(slotOf(node, IMAGE_SLOT));
  const name = origin?.comfyClass === "LoadImage" && origin.widgets?.find((widget) => widget.name === "image")?.value;
  if (typeof name !== "string" || !name) return null;
  const [, path, type] = name.match(/^(.*?)(?: \[(input|output|temp)\])?$/);
  const [, subfolder, filename] = path.match(/^(?:(.*)\/)?([^/]*)$/);
  return fileSource({ filename, subfolder: subfolder ?? "", type: type ?? "input" });
}

/** A picture that the linked node shows. */
function shownPicture(node) {
  const url = node.getInputNode(slotOf(node, IMAGE_SLOT))?.imgs?.[0]?.src;
  return url ? { url } : null;
}

const fileSource = (file) => ({ url: api.apiURL(`/view?${new URLSearchParams(file)}`) });

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
  const [imageKey, poseKey] = [linkKey(node, IMAGE_SLOT), linkKey(node, POSE_SLOT)];
  if (poseKey && poses?.length) seen.set(poseKey, poses[0]);
  if (!imageKey || !background?.length) return;
  const [{ width, height, ...file }] = background;
  seen.set(imageKey, { ...fileSource(file), width, height });
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
      keepResults(this, output ?? {}); // nothing for a node that was taken from the cache
      showLinks(this);
    });
    prototype.onConnectionsChange = after(prototype.onConnectionsChange, function () {
      // After it: while a workflow is loaded, this comes before all nodes and links are there.
      setTimeout(() => this.graph && showLinks(this));
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
    // Another file chosen in a linked Load Image is not told to this node.
    node.poseEditor.element.addEventListener("pointerenter", () => showLinks(node));
  },
});
