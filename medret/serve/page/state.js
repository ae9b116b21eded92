// What the page shows, as one object that is also the address: a copied link, a reload and the back button restore it.

export const OPTIONS = ["mode", "model", "aggregation", "fuse", "index", "k", "exclude", "modality"];
const TEXTS = ["view", "volume", "store", "file", "text", "where", "contains", "box", "label", ...OPTIONS];
const VIEWER = ["hit", "hitStore", "rank", "plane", "at", "hitAt", "apart", "queryWindow", "hitWindow"];
const CLOSED = Object.fromEntries(VIEWER.map((name) => [name, null]));
const NUMBERS = ["at", "hitAt"];
const IS = "is.";
const NONE = "none.";

/** The state that an address names. facets: column -> chosen values, null for "no value". viewer: null if closed. */
export function read(search) {
  const given = new URLSearchParams(search);
  const state = { facets: {}, viewer: null };
  for (const name of TEXTS) state[name] = given.get(name) || null;
  for (const [name, value] of given) {
    if (name.startsWith(IS)) (state.facets[name.slice(IS.length)] ??= []).push(value);
    if (name.startsWith(NONE)) (state.facets[name.slice(NONE.length)] ??= []).push(null);
  }
  if (given.has("show")) {
    state.viewer = Object.fromEntries(VIEWER.map((name) => [name, given.get(name)]));
    for (const name of NUMBERS) if (state.viewer[name] !== null) state.viewer[name] = Number(state.viewer[name]) || 0;
  }
  return state;
}

/** The address of a state. */
export function address(state) {
  const given = new URLSearchParams();
  for (const name of TEXTS) if (state[name]) given.set(name, state[name]);
  for (const [column, values] of Object.entries(state.facets)) {
    for (const value of values) value === null ? given.append(NONE + column, "1") : given.append(IS + column, value);
  }
  if (state.viewer) {
    given.set("show", "1");
    for (const name of VIEWER) if ((state.viewer[name] ?? null) !== null) given.set(name, state.viewer[name]);
  }
  const text = given.toString();
  return text ? `?${text}` : "./";
}

const listeners = [];
let current = read(location.search);

export const now = () => current;

/** Call a function with the new and the last state whenever it changes. */
export function onChange(listener) {
  listeners.push(listener);
}

function become(state) {
  const last = current;
  current = state;
  for (const listener of listeners) listener(current, last);
}

/** Change the state. quiet: the address follows without a new entry in the history, and nobody is told. */
export function go(change, { quiet = false } = {}) {
  const next = { ...current, ...change };
  if (next.viewer) next.viewer = { ...CLOSED, ...next.viewer };
  if (quiet) {
    current = next;
    history.replaceState(null, "", address(next));
    return;
  }
  history.pushState(null, "", address(next));
  become(next);
}

addEventListener("popstate", () => become(read(location.search)));

/** Whether a state asks for hits. */
export const isAsking = (state) => Boolean(state.volume || state.file || state.text);

/** No query, and nothing of what belonged to the last one. */
export const NO_QUERY = { volume: null, store: null, file: null, text: null, modality: null, box: null, viewer: null };

/** A query that is a stored volume, with everything that belonged to the last query left behind. */
export const queryOf = (volume, store) => ({ ...NO_QUERY, volume, store: store || null, view: null });
