// The page: draws what the state says, whenever it changes.

import { Problem, getJson, isAborted } from "./api.js";
import { queryKey } from "./chosen.js";
import { byId, h, say } from "./dom.js";
import { showFilter } from "./facets.js";
import { showHits, stopSearch } from "./hits.js";
import { showList } from "./list.js";
import { showMap } from "./map.js";
import { showOptions } from "./options.js";
import { dropWaiting } from "./pictures.js";
import { showQuery, takeDrops } from "./query.js";
import { NO_QUERY, address, go, isAsking, now, onChange } from "./state.js";
import { showViewer, watchViewer } from "./viewer.js";

let served = null;
let offered = null;
let drawing = new AbortController(); // of what the middle of the page shows
const shown = { main: null, query: null }; // what is drawn now; a file may be another under the same name

const viewOf = (state) => (state.view === "map" ? "map" : isAsking(state) ? "hits" : "list");
const VIEWS = { map: showMap, hits: showHits, list: showList };
const NAMES = { map: "Map", list: "Volumes" };

/** What the middle of the page depends on. */
function shownBy(state) {
  const { viewer, ...others } = state;
  if (viewOf(state) === "list") return JSON.stringify([state.facets, state.where, state.contains]);
  return JSON.stringify([others, viewOf(state) === "hits" && queryKey(state)]);
}

function showFailure(error) {
  if (isAborted(error)) return;
  say("");
  const code = error instanceof Problem ? error.code : "failed";
  const unusable = error.status === 422 && now().file;
  byId("view").replaceChildren(
    h("h1", { id: "title", tabIndex: -1 }, unusable ? "This file cannot be used" : "This did not work"),
    h("div", { className: "failure", role: "alert" }, h("p", {}, error.message), h("p", { className: "soft" }, `Code: ${code}`)),
    [404, 422].includes(error.status) ? "" : h("button", { type: "button", onclick: () => (served ? showMain(now()) : location.reload()) }, "Try again"),
  );
}

async function showMain(state, keepFocus = true) {
  drawing.abort();
  drawing = new AbortController();
  const { signal } = drawing;
  stopSearch();
  dropWaiting();
  const view = viewOf(state);
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    const isHere = link.dataset.view === (view === "list" ? "" : view);
    isHere ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  document.title = `${NAMES[view] ?? `Like ${state.volume ?? state.file ?? `“${state.text}”`}`} – medret`;
  byId("view").setAttribute("aria-busy", "true");
  try {
    await VIEWS[view](state, served, signal);
  } catch (error) {
    if (!signal.aborted) showFailure(error);
  }
  if (signal.aborted) return;
  byId("view").removeAttribute("aria-busy");
  if (!keepFocus) {
    scrollTo(0, 0);
    byId("title")?.focus({ preventScroll: true });
  }
}

function links() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-view]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    const view = link.dataset.view || null;
    go(view ? { view, viewer: null } : { ...NO_QUERY, view });
  });
}

/** Panels that are folded on narrow windows are open on wide ones. */
function fold() {
  const wide = matchMedia("(min-width: 62rem)");
  const set = () => {
    byId("filter").open = wide.matches;
    byId("options").open = wide.matches && isAsking(now());
  };
  wide.addEventListener("change", set);
  set();
}

function draw(state, last) {
  const main = `${viewOf(state)} ${shownBy(state)}`;
  const query = JSON.stringify([queryKey(state), state.file, state.box]);
  if (query !== shown.query) showQuery(state, served);
  showOptions(state, served, offered);
  showFilter(state, last);
  const stays = !last || (viewOf(state) === "list" && viewOf(last) === "list");
  if (main !== shown.main) showMain(state, stays);
  Object.assign(shown, { main, query });
  if (state.viewer || last?.viewer) showViewer(state, served, offered);
}

async function start() {
  takeDrops();
  links();
  fold();
  watchViewer();
  say("Loading …", "busy");
  try {
    [served, offered] = await Promise.all([getJson("v1/snapshot"), getJson("v1/options")]);
  } catch (error) {
    showFailure(error);
    return;
  }
  const stores = served.stores.length > 1 ? ` in ${served.stores.length} stores` : "";
  byId("served").textContent = `${served.volumes.toLocaleString("en")} volumes${stores} · ${served.models.map(({ name }) => name).join(", ")}`;
  history.replaceState(null, "", address(now()));
  onChange(draw);
  draw(now(), null);
}

start();
