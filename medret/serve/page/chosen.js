// The query of the page: which volume or files are searched with, and where their slices come from.

import { FileSource, StoredSource, filesName } from "./sources.js";
import { go, now } from "./state.js";

let files = null; // a file cannot be in an address: it is kept here while the page is open
let fileSource = null;
const stored = new Map();

/** Search with files. */
export function chooseFiles(list) {
  if (!list.length) return;
  const name = filesName([...list]);
  const again = !files && now().file === name; // after a reload: what was said of the file still holds
  files = [...list];
  fileSource = null;
  go({ file: name, volume: null, store: null, text: null, ...(again ? {} : { box: null, modality: null }), view: null, viewer: null });
}

/** The files of a state; null if they have to be chosen again. */
export const filesOf = (state) => (state.file && files && filesName(files) === state.file ? files : null);

/** The slices of a stored volume. What is known of it is kept. */
export function sourceOf(id, store) {
  const key = `${store ?? ""}#${id}`;
  if (!stored.has(key)) stored.set(key, new StoredSource(id, store));
  return stored.get(key);
}

/** The slices of the query; null if there is none, or if its files have to be chosen again. */
export function querySource(state) {
  if (state.volume) return sourceOf(state.volume, state.store);
  const chosen = filesOf(state);
  if (!chosen) return null;
  if (!fileSource || fileSource.files !== chosen || fileSource.modality !== state.modality) {
    fileSource = new FileSource(chosen, state.modality);
    fileSource.modality = state.modality;
  }
  return fileSource;
}

/** What tells one query from another; files of the same name may differ. */
export function queryKey(state) {
  if (state.text) return `text:${state.text}`;
  const chosen = filesOf(state);
  return chosen ? chosen.map((file) => `${file.name}:${file.size}:${file.lastModified}`).join("|") : `${state.volume}#${state.store}`;
}
