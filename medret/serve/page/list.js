// The list of volumes, page by page: what there is to search with.

import { byId, chips, h, nameOf, say } from "./dom.js";
import { getJson, isAborted } from "./api.js";
import { sourceOf } from "./chosen.js";
import { figureOf } from "./pictures.js";
import { filterOf } from "./where.js";
import { go, queryOf } from "./state.js";

const PAGE = 24;

function tile(row, several) {
  const store = several ? row.store : null;
  const source = sourceOf(row.volume_id, store);
  const caption = (shown) => `${shown.plane} ${shown.index}${shown.preview ? ", preview" : ""}`;
  return h(
    "li",
    { className: "tile" },
    figureOf(source, null, `A slice of ${row.volume_id}`, caption),
    h(
      "div",
      { className: "about" },
      h("h2", {}, nameOf(row.volume_id)),
      several && h("p", { className: "soft store" }, row.store),
      chips(row.labels),
      h(
        "div",
        { className: "row" },
        h("button", { type: "button", className: "main", onclick: () => go(queryOf(row.volume_id, store)) }, "Find similar"),
        h("button", { type: "button", onclick: () => go({ viewer: { hit: row.volume_id, hitStore: store } }) }, "View"),
      ),
    ),
  );
}

/** Show the first page of the volumes that the filter keeps. */
export async function showList(state, served, signal) {
  const several = served.stores.length > 1;
  const list = h("ul", { className: "tiles" });
  const more = h("button", { type: "button", className: "more", hidden: true }, "Show more");
  const ask = (after) => getJson("v1/volumes", { where: filterOf(state), contains: state.contains, limit: PAGE, after }, signal);
  const add = (page) => {
    list.append(...page.volumes.map((row) => tile(row, several)));
    more.hidden = !page.next;
    more.onclick = async () => {
      const first = list.childElementCount;
      more.disabled = true;
      try {
        add(await ask(page.next));
        list.children[first]?.querySelector("button").focus();
        say(`${list.childElementCount} of ${page.total} volumes are shown.`);
      } catch (error) {
        if (!isAborted(error)) say(error.message, "wrong");
      }
      more.disabled = false;
    };
  };
  const page = await ask(null);
  add(page);
  const total = page.total.toLocaleString("en");
  const filtered = filterOf(state) || state.contains;
  const title = h("h1", { id: "title", tabIndex: -1 }, filtered ? `${total} ${page.total === 1 ? "volume" : "volumes"} in this filter` : `${total} volumes`);
  const empty = filtered
    ? h("p", { className: "empty" }, "No volume is in this filter. ", h("button", { type: "button", onclick: () => go({ facets: {}, where: null, contains: null }) }, "Clear the filter"))
    : h("p", { className: "empty" }, "There is no volume to see: the store is empty, or this token sees none of it.");
  byId("view").replaceChildren(
    title,
    h("p", { className: "lead" }, "Drop a scan to find the volumes that look most like it, or start from one of these."),
    ...(page.total ? [list, more] : [empty]),
  );
  say("");
}
