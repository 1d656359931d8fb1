// The buttons above the canvas, and the fields below it.
import { resizeFrame } from "./document.js";
import { icon } from "./icons.js";
import { LIMITS, TEMPLATES } from "./tables.js";

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const hasPerson = (model) => model.person !== null;
// Groups of buttons: [name, action, when it can be used, whether it is pressed].
const GROUPS = [
  [
    ["undo", (editor) => editor.model.undo(), (model) => model.past.length > 0],
    ["redo", (editor) => editor.model.redo(), (model) => model.future.length > 0],
  ],
  [
    ["add", (editor, button) => openTemplates(editor, button), (model) => model.frame.people.length < LIMITS.people],
    ["copy", (editor) => editor.model.copy(), hasPerson],
    ["mirror", (editor) => editor.model.mirror(), hasPerson],
    ["remove", (editor) => editor.model.remove(), hasPerson],
  ],
  [
    ["right_hand", (editor) => editor.model.togglePart("right_hand"), hasPerson, has("right_hand")],
    ["left_hand", (editor) => editor.model.togglePart("left_hand"), hasPerson, has("left_hand")],
    ["face", (editor) => editor.model.togglePart("face"), hasPerson, has("face")],
    ["hide", (editor) => editor.model.toggleSeen(), (model) => hasPerson(model) && model.selection.point >= 0, isHidden],
    ["showAll", (editor) => editor.model.showAll(), hasPerson],
  ],
  [
    ["keepLengths", (editor) => editor.setKeepLengths(!editor.settings.keepLengths), () => true, (_, settings) => settings.keepLengths],
    ["snapLimbs", (editor) => editor.model.snapLimbs(), hasPerson],
  ],
  [
    ["json", (editor) => editor.openJson(), () => true],
    ["reset", (editor) => editor.model.reset(), (model) => model.isEdited],
    ["fit", (editor) => editor.fit(), () => true],
  ],
];

function has(part) {
  return (model) => Boolean(model.person?.[part]);
}

function isHidden({ person, selection }) {
  const point = person?.[selection.part]?.[selection.point];
  return point !== undefined && !(point[2] > 0);
}

/** The row of buttons: {element, update}. */
export function makeToolbar(editor) {
  const element = make("div", { className: "cncore-pose-bar" });
  element.setAttribute("role", "toolbar");
  const entries = [];
  for (const group of GROUPS) {
    const box = make("div", { className: "cncore-pose-group" });
    for (const [name, action, isUsable, isPressed] of group) {
      const button = makeButton(name, editor.say(name));
      button.addEventListener("click", (event) => {
        if (event.detail) editor.focus(); // a click, not the keyboard: keys act on the canvas again
        action(editor, button);
      });
      entries.push({ button, isUsable, isPressed });
      box.append(button);
    }
    element.append(box);
  }
  const update = () => {
    for (const { button, isUsable, isPressed } of entries) {
      button.disabled = !isUsable(editor.model);
      if (isPressed) button.setAttribute("aria-pressed", String(Boolean(isPressed(editor.model, editor.settings))));
    }
  };
  return { element, update };
}

export function makeButton(name, title) {
  const button = make("button", { type: "button", title, className: "cncore-pose-button" }, icon(name));
  button.dataset.action = name;
  button.setAttribute("aria-label", title);
  return button;
}

/** The menu of templates under its button. */
function openTemplates(editor, button) {
  const known = editor.element.querySelector(".cncore-pose-menu");
  if (known) return known.remove();
  const menu = make("div", { className: "cncore-pose-menu" });
  menu.setAttribute("role", "menu");
  const close = () => {
    editor.focus();
    menu.remove();
  };
  for (const name of Object.keys(TEMPLATES)) {
    const entry = make("button", { type: "button", textContent: editor.say(name) });
    entry.setAttribute("role", "menuitem");
    entry.dataset.template = name;
    entry.addEventListener("click", () => {
      close();
      editor.model.addTemplate(name);
    });
    menu.append(entry);
  }
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  menu.addEventListener("focusout", (event) => !menu.contains(event.relatedTarget) && event.relatedTarget !== button && menu.remove());
  menu.style.left = `${button.offsetLeft}px`;
  menu.style.top = `${button.offsetTop + button.offsetHeight + 2}px`;
  editor.element.append(menu);
  menu.firstChild.focus();
}

/** Size of the canvas, the linked image, the frame of a film: {element, update}. */
export function makeFields(editor) {
  const { model, say } = editor;
  const side = (name) => {
    const input = make("input", { type: "number", min: 1, max: LIMITS.side, step: 8, title: say(name) });
    input.setAttribute("aria-label", say(name));
    input.addEventListener("change", () => resize(editor, { [name]: Math.round(Number(input.value)) }));
    return input;
  };
  const [width, height] = [side("width"), side("height")];
  const fromPicture = makeButton("fromPicture", say("fromPicture"));
  fromPicture.addEventListener("click", () => resize(editor, model.size));
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, title: say("opacity") });
  opacity.addEventListener("input", () => editor.setOpacity(Number(opacity.value)));
  const picture = make("label", { className: "cncore-pose-field" }, say("opacity"), opacity, fromPicture);
  const frame = make("input", { type: "range", min: 1, step: 1, title: say("frame") });
  frame.addEventListener("input", () => model.showFrame(Number(frame.value) - 1));
  const film = make("label", { className: "cncore-pose-field" }, say("frame"), frame);
  const canvas = make("span", { className: "cncore-pose-field" }, width, "×", height);
  const element = make("div", { className: "cncore-pose-bar" }, canvas, picture, film);
  const update = () => {
    [width.value, height.value] = [model.frame.width, model.frame.height];
    picture.hidden = !editor.picture;
    opacity.value = editor.settings.opacity;
    film.hidden = model.document.frames.length < 2;
    [frame.max, frame.value] = [model.document.frames.length, model.index + 1];
  };
  return { element, update };
}

/** Another size of the canvas, for all frames; the pose is scaled so that it keeps its shape and stays inside. */
function resize(editor, sides) {
  const { model } = editor;
  const { width, height } = { width: model.frame.width, height: model.frame.height, ...sides };
  const isGood = [width, height].every((side) => side >= 1 && side <= LIMITS.side) && width * height <= LIMITS.canvasPixels;
  if (!isGood) return editor.update();
  model.commit({ frames: model.document.frames.map((frame) => resizeFrame(frame, width, height)) });
  editor.fit();
}
