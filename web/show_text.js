// Shows what a node says: nodes of ours that end a graph may answer with text ({"ui": {"text": [...]}}),
// and the editor itself shows pictures only.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const NAME = "said";

function show(node, lines) {
  let widget = node.widgets?.find((known) => known.name === NAME);
  if (!widget) {
    widget = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app).widget;
    widget.inputEl.readOnly = true;
    widget.inputEl.style.fontFamily = "monospace";
    widget.inputEl.style.whiteSpace = "pre";
    widget.serialize = false; // it is an answer, no setting: neither saved nor sent
    widget.options.serialize = false;
  }
  widget.value = lines.join("\n");
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  app.graph.setDirtyCanvas(true, false);
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
