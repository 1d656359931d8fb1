// Keys of the editor, while its canvas has the focus. Other keys are ComfyUI's.
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LARGE_STEP = 10;
const ZOOM_STEP = 1.2;

const withControl = {
  z: (editor, event) => (event.shiftKey ? editor.model.redo() : editor.model.undo()),
  y: (editor) => editor.model.redo(),
  d: (editor) => editor.model.copy(),
};

const plain = {
  a: (editor) => editor.model.addTemplate("standing"),
  m: (editor) => editor.model.mirror(),
  h: (editor) => editor.model.toggleSeen(),
  l: (editor) => editor.setKeepLengths(!editor.settings.keepLengths),
  Delete: (editor) => editor.model.remove(),
  Backspace: (editor) => editor.model.remove(),
  PageDown: (editor) => editor.model.nextPerson(1),
  PageUp: (editor) => editor.model.nextPerson(-1),
  ".": (editor) => editor.model.nextPoint(1),
  ",": (editor) => editor.model.nextPoint(-1),
  0: (editor) => editor.fit(),
  "+": (editor) => editor.zoom(ZOOM_STEP),
  "=": (editor) => editor.zoom(ZOOM_STEP),
  "-": (editor) => editor.zoom(1 / ZOOM_STEP),
};

/** Act on a key; whether it was one of the editor's. */
export function pressKey(editor, event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.key === "Escape") return stepOut(editor.model);
  if (key in ARROWS && !event.ctrlKey && !event.metaKey) {
    if (!editor.model.person) return false;
    const step = event.shiftKey ? LARGE_STEP : 1;
    const [dx, dy] = ARROWS[key];
    editor.model.nudge(dx * step, dy * step, { keepLengths: false });
    return true;
  }
  const action = event.ctrlKey || event.metaKey ? withControl[key] : event.altKey ? null : plain[key];
  action?.(editor, event);
  return Boolean(action);
}

/** From a point to its part or person, then to nothing. */
function stepOut(model) {
  const { person, part, point } = model.selection;
  if (person < 0) return false;
  model.select(part && (point >= 0 && part !== "body") ? { person, part } : part ? { person } : {});
  return true;
}
