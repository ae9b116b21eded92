// Hits as cards: the best-matching slice of the query beside that of the hit.

import { byId, chips, h, nameOf, say, score } from "./dom.js";
import { search, upload } from "./api.js";
import { filesOf, queryKey, querySource, sourceOf } from "./chosen.js";
import { figureOf } from "./pictures.js";
import { requestOptions } from "./options.js";
import { filterOf } from "./where.js";
import { go, queryOf } from "./state.js";

const KEPT = 12;
const answers = new Map(); // promises of the last answers: the back button shows them at once
let asking = null;
let askedKey = null; // of the search that is under way

/** Ask for the hits of a state; the last answers are kept. */
export function hitsOf(state, served) {
  const options = { ...requestOptions(state, served), ...(filterOf(state) && { where: filterOf(state) }) };
  const key = `${queryKey(state)} ${JSON.stringify(options)}`;
  if (answers.has(key)) return answers.get(key);
  asking?.abort();
  asking = new AbortController();
  askedKey = key;
  const files = filesOf(state);
  const answer = files
    ? upload("v1/search", files, options, asking.signal)
    : search({ ...(state.text ? { text: state.text } : { volume: state.volume, store: state.store }), ...options }, asking.signal);
  answers.set(key, answer);
  const ended = () => {
    if (askedKey === key) askedKey = null;
  };
  answer.then(ended, () => {
    ended();
    answers.delete(key);
  });
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  return answer;
}

/** Forget a search that is under way. */
export function stopSearch() {
  asking?.abort();
  answers.delete(askedKey); // at once: the same search may be asked for again
}

/** The best pair of slices of a hit: {plane, query, hit, score}, or null. */
export const bestPair = (hit) => hit.slices?.matches[0] ?? null;

function card(hit, state, several) {
  const pair = bestPair(hit);
  const store = several ? hit.store : null;
  const own = hit.volume_id === state.volume && (!several || hit.store === state.store);
  const query = querySource(state);
  const caption = (what) => (shown) => [h("b", {}, what), ` ${shown.plane} ${shown.index}${shown.preview ? ", preview" : ""}`];
  const queryPlace = pair && pair.query !== null ? { plane: pair.plane, index: pair.query } : null;
  const hitPlace = pair && { plane: pair.plane, index: pair.hit };
  const compare = () => go({ viewer: { hit: hit.volume_id, hitStore: store, rank: hit.rank } });
  const id = `hit-${hit.rank}`;
  return h(
    "li",
    {},
    h(
      "article",
      { className: "hit", "aria-labelledby": id },
      h(
        "header",
        {},
        h("span", { className: "rank", ariaHidden: "true" }, hit.rank),
        h("h2", { id }, h("span", { className: "unseen" }, `Hit ${hit.rank}: `), nameOf(hit.volume_id)),
        h("p", { className: "score" }, h("span", { className: "unseen" }, "Score "), score(hit.score)),
      ),
      h(
        "button",
        { type: "button", className: "pair", onclick: compare, "aria-label": `${query ? "Compare the slices" : "View the slices"} of hit ${hit.rank}` },
        query && figureOf(query, queryPlace, "Slice of the query", caption("Query")),
        figureOf(sourceOf(hit.volume_id, store), hitPlace, `Slice of hit ${hit.rank}`, caption("Hit")),
      ),
      h(
        "footer",
        {},
        own
          ? h("p", { className: "note" }, "This is the query itself.")
          : pair && h("p", { className: "soft" }, `${query ? "These two slices" : "This slice and the words"}: cosine ${score(pair.score)}`),
        several && h("p", { className: "soft store" }, hit.store),
        chips(hit.labels),
        h(
          "div",
          { className: "row" },
          h("button", { type: "button", className: "main", onclick: compare }, query ? "Compare" : "View"),
          h("button", { type: "button", onclick: () => go(queryOf(hit.volume_id, store)) }, "More like this"),
        ),
      ),
    ),
  );
}

/** Show the hits of a state. */
export async function showHits(state, served, signal) {
  const name = state.volume ?? state.file;
  const title = h("h1", { id: "title", tabIndex: -1 }, state.box ? "Most like the marked part of " : "Most like ", state.text ? h("q", {}, state.text) : nameOf(name));
  const view = byId("view");
  view.replaceChildren(title);
  if (state.file && !filesOf(state)) {
    view.append(h("p", { className: "empty" }, `Choose ${name} again: a file cannot be in a link.`));
    say("");
    return;
  }
  say("Searching …", "busy");
  const answer = await hitsOf(state, served);
  if (signal.aborted) return; // it is kept for later
  const several = served.stores.length > 1;
  const filter = filterOf(state);
  const lead = h(
    "p",
    { className: "lead" },
    `The score is ${answer.score}. `,
    filter && ["Only volumes with ", h("code", {}, filter), ". ", h("button", { type: "button", className: "small", onclick: () => go({ facets: {}, where: null }) }, "Search all")],
  );
  const list = h("ol", { className: "hits" }, answer.hits.map((hit) => card(hit, state, several)));
  view.replaceChildren(title, lead, answer.hits.length ? list : h("p", { className: "empty" }, "Nothing was found: the filter keeps no volume that may be found."));
  say(answer.hits.length === 1 ? "1 hit" : `${answer.hits.length} hits`, "unseen");
}
