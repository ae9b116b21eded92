// The options of a search, in words.

import { byId, h, words } from "./dom.js";
import { go } from "./state.js";

const MODES = {
  volume: "Whole volumes, one vector each",
  late: "Slice by slice, every slice of the query",
  vote: "Slices vote for their volumes",
  max: "The best pair of slices",
  sum: "The sum of matching slices",
  slice: "Single slices, not volumes",
};
const INDICES = { hnsw: "Graph, fast (HNSW)", lsh: "Hashes, small (LSH)", exact: "Every vector, exact" };
const USUAL_INDEX = "hnsw"; // of the server; a store may have been built without it
const MODALITIES = ["CT", "MRI", "PET", "US"];

function select(id, label, value, choices, help) {
  const field = h("select", { id, onchange: () => go({ [id]: field.value || null }) });
  for (const [name, text] of choices) field.append(h("option", { value: name, selected: name === (value ?? "") }, text));
  return h(
    "div",
    { className: "field" },
    h("label", { htmlFor: id }, label),
    field,
    help && h("p", { className: "soft" }, help),
  );
}

/** The models that a query can be compared by: for words, those that take words. */
const namesFor = (state, served) => served.models.filter(({ text }) => text || !state.text).map(({ name }) => name);

/** Draw the options. served: /v1/snapshot. offered: /v1/options. */
export function showOptions(state, served, offered) {
  const { defaults } = offered;
  const mode = state.mode ?? (state.box ? "late" : "volume");
  const modes = Object.keys(offered.modes).map((name) => [name, MODES[name] ?? words(name)]);
  const models = namesFor(state, served);
  const many = (names) => (names.length > 1 ? [["*", "All of them, fused"]] : []);
  const named = (names) => [...names.map((name, at) => [at ? name : "", name]), ...many(names)];
  const count = h("input", {
    id: "k",
    type: "number",
    min: 1,
    max: 1000,
    value: state.k ?? defaults.k,
    onchange: () => count.reportValidity() && go({ k: Number(count.value) === defaults.k ? null : count.value }),
  });
  const excluded = [
    ["", "Nothing"],
    ["self", "The query itself"],
    ...served.label_columns.map((name) => [name, `All with the same ${words(name).toLowerCase()}`]),
  ];
  const focused = document.activeElement?.id;
  byId("options")
    .querySelector("div")
    .replaceChildren(
      select("mode", "Compare", state.mode, [["", `Usual: ${MODES[state.box ? "late" : "volume"].toLowerCase()}`], ...modes], `The score is ${offered.modes[mode]}.`),
      ...(models.length > 1 ? [select("model", "Model", state.model, named(models))] : []),
      ...(served.aggregations.length > 1 ? [select("aggregation", "One vector from many slices by", state.aggregation, named(served.aggregations))] : []),
      ...(state.model === "*" || state.aggregation === "*"
        ? [select("fuse", "Fuse", state.fuse, [["", "Weighted scores"], ["rrf", "Ranks"]])]
        : []),
      select("index", "Search in", state.index, served.indices.toSorted((a, b) => (a === defaults.index ? -1 : b === defaults.index ? 1 : 0)).map((name) => [name === defaults.index ? "" : name, INDICES[name] ?? name])),
      h("div", { className: "field" }, h("label", { htmlFor: "k" }, "Number of hits"), count),
      select("exclude", "Leave out", state.exclude, excluded),
      ...(state.file ? [select("modality", "Modality of the file", state.modality, [["", "As its voxels show"], ...MODALITIES.map((name) => [name, name])])] : []),
      ...served.models.filter((model) => model.random_weights).map((model) => h("p", { className: "wrong" }, `${model.name} has random weights: its scores mean nothing.`)),
    );
  if (focused) byId(focused)?.focus();
}

/** The options of a request. */
export function requestOptions(state, served) {
  const all = (value, names) => (value === "*" ? names : value);
  const models = namesFor(state, served);
  const first = models[0] === served.models[0].name ? null : models[0];
  const options = {
    mode: state.mode,
    model: all(state.model, models) ?? first,
    aggregation: all(state.aggregation, served.aggregations),
    fuse: state.fuse,
    index: state.index ?? (served.indices.includes(USUAL_INDEX) ? null : served.indices[0]),
    k: state.k && Number(state.k),
    exclude: state.exclude,
    box: state.box,
    modality: state.file ? state.modality : null,
  };
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value));
}
