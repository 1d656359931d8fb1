// Shows the text that a node answers with ({"ui": {"text": [...]}}) on the node itself. ComfyUI shows only the
// pictures of such an answer.
import { app } from "../../scripts/app.js";

const NAME = "said"; // also the name by which a saved workflow would know the widget: do not change it
const MIN_HEIGHT = 80; // pixels; longer text scrolls

function addTextBox(node) {
  // A textarea keeps its height whatever its text is. A <pre> would push the node over its neighbours in Vue mode.
  const box = document.createElement("textarea");
  box.readOnly = true;
  box.wrap = "off"; // tables stay aligned, long lines scroll
  box.className = "comfy-multiline-input";
  box.style.cssText = "font-family: monospace; overflow: auto; resize: none; width: 100%; height: 100%";
  const widget = node.addDOMWidget(NAME, "controlnet_core_text", box, {
    getValue: () => box.value,
    setValue: (text) => (box.value = text),
    getMinHeight: () => MIN_HEIGHT,
    hideOnZoom: false,
    serialize: false, // the text is a result, not an input: it is not sent to the server
  });
  widget.serialize = false; // nor saved with the workflow
  return widget;
}

function show(node, lines) {
  const widget = node.widgets?.find((known) => known.name === NAME) ?? addTextBox(node);
  widget.value = lines.join("\n");
  node.graph?.setDirtyCanvas(true, false);
}

app.registerExtension({
  name: "ControlNetCore.ShowText",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("CNCore_") || !nodeData.output_node) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text?.length) show(this, output.text);
    };
  },
});
