// The panel at the top left: choose or drop a file, and what is searched with now.

import { byId, h, nameOf, put } from "./dom.js";
import { chooseFiles, filesOf, querySource } from "./chosen.js";
import { figureOf } from "./pictures.js";
import { NO_QUERY, go, now } from "./state.js";

const BOX = ["x (left to right)", "y (back to front)", "z (bottom to top)"];

function picker(again) {
  const field = h("input", {
    type: "file",
    id: "file",
    className: "unseen",
    multiple: true,
    onchange: () => chooseFiles(field.files),
  });
  return h(
    "div",
    { className: "drop" },
    field,
    h("label", { htmlFor: "file" }, h("b", {}, again ?? "Choose a file"), " or drop it here"),
    h("p", { className: "soft" }, "NIfTI (.nii, .nii.gz), a zip of a DICOM series, or all its files. Nothing is kept."),
  );
}

/** A field for words, if a model that is served takes them. */
function words(state, served) {
  const models = served.models.filter(({ text }) => text).map(({ name }) => name);
  if (!models.length) return null;
  const field = h("input", { id: "text", type: "search", maxLength: 1000, required: true, value: state.text ?? "", autocomplete: "off", "aria-describedby": "text-help" });
  const search = (event) => {
    event.preventDefault();
    const text = field.value.trim();
    const { model } = now();
    if (text) go({ ...NO_QUERY, text, view: null, model: model === "*" || models.includes(model) ? model : null });
  };
  return h(
    "form",
    { className: "words", role: "search", "aria-label": "Search with words", onsubmit: search },
    h("label", { htmlFor: "text" }, state.text ? "Describe what you look for" : "Or describe what you look for"),
    h("div", { className: "row" }, field, h("button", { type: "submit" }, "Search")),
    h("p", { className: "soft", id: "text-help" }, "In English, such as: CT of the abdomen, liver with cysts."),
  );
}

function part(state) {
  if (!state.box) return null;
  const ranges = state.box.split(",").map((range, axis) => `${BOX[axis]} ${range.replace(":", " to ")}`);
  return h(
    "p",
    { className: "part" },
    h("b", {}, "Only a part of it: "),
    ranges.join(", "),
    h("button", { type: "button", className: "small", onclick: () => go({ box: null }) }, "Search with all of it"),
  );
}

/** Draw the panel for a state. */
export function showQuery(state, served) {
  const title = h("h2", { id: "query-title" }, "Search with");
  const panel = byId("query");
  if (!state.volume && !state.file) {
    const clearWords = state.text && h("div", { className: "row" }, h("button", { type: "button", onclick: () => go(NO_QUERY) }, "Clear"));
    put(panel, title, ...(state.text ? [words(state, served), clearWords, picker()] : [picker(), words(state, served)]));
    return;
  }
  const source = querySource(state);
  const clear = () => go(NO_QUERY);
  const name = state.volume ?? state.file;
  put(
    panel,
    title,
    h(
      "div",
      { className: "chosen" },
      source && state.volume && figureOf(source, null, `A slice of ${name}`, () => ""),
      h("p", {}, nameOf(name), state.store && h("span", { className: "soft store" }, state.store)),
    ),
    !source && h("p", { className: "wrong", role: "alert" }, `The file ${name} is not in the address: choose it again to repeat this search.`),
    part(state),
    h(
      "div",
      { className: "row" },
      source &&
        h(
          "button",
          { type: "button", onclick: () => go({ viewer: { hit: null } }) },
          state.box ? "Change the part" : "View, mark a part",
        ),
      h("button", { type: "button", onclick: clear }, "Clear"),
    ),
    picker(filesOf(state) || state.volume ? "Choose another file" : `Choose ${name}`),
    words(state, served),
  );
}

/** Take files that are dropped anywhere on the page. */
export function takeDrops() {
  const root = document.documentElement;
  let over = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => hasFiles(event) && root.classList.toggle("dropping", ++over > 0));
  addEventListener("dragleave", (event) => hasFiles(event) && root.classList.toggle("dropping", --over > 0));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    over = 0;
    root.classList.remove("dropping");
    chooseFiles(event.dataTransfer.files);
  });
}
