// The panel over the canvas with the pose as JSON: read it, paste another, open or save a file.
import { parse, PoseError, serialise } from "./document.js";
import { make } from "./toolbar.js";

const FILE_NAME = "pose.json";

/** Open the panel, or close it when it is open. */
export function togglePanel(editor) {
  const known = editor.element.querySelector(".cncore-pose-panel");
  if (known) return known.remove();
  const { say, model } = editor;
  const field = make("textarea", { spellcheck: false, value: serialise(model.document) });
  field.setAttribute("aria-label", say("jsonText"));
  const problem = make("div", { className: "cncore-pose-problem" });
  problem.setAttribute("role", "alert");
  const panel = make("div", { className: "cncore-pose-panel" }, field, problem);
  const button = (name, action) => {
    const made = make("button", { type: "button", textContent: say(name) });
    made.dataset.action = `json-${name}`;
    made.addEventListener("click", action);
    return made;
  };
  const use = () => {
    problem.textContent = "";
    const failure = editor.take(field.value);
    if (failure) problem.textContent = failure;
    else panel.remove();
  };
  const file = make("input", { type: "file", accept: ".json,application/json", hidden: true });
  file.addEventListener("change", async () => {
    if (file.files.length) field.value = await file.files[0].text();
    file.value = "";
    use();
  });
  const buttons = [button("use", use), button("open", () => file.click()), button("save", () => saveFile(field.value)), button("close", () => panel.remove())];
  panel.append(make("div", { className: "cncore-pose-bar" }, ...buttons, file));
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") panel.remove();
  });
  editor.stage.append(panel);
  field.focus();
  field.select();
}

/** Text -> document, or the reason why not: {document} or {failure}. */
export function tryParse(text, say, size) {
  try {
    return { document: parse(text, size) };
  } catch (error) {
    if (!(error instanceof PoseError)) throw error;
    return { failure: say(error.key, error.values) };
  }
}

function saveFile(text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: FILE_NAME });
  link.click();
  URL.revokeObjectURL(link.href);
}
