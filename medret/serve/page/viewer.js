// The viewer: query and hit side by side, scrolled together from the slices that match.

import { byId, h, settled, words } from "./dom.js";
import { isAborted } from "./api.js";
import { Box } from "./box.js";
import { filesOf, querySource, sourceOf } from "./chosen.js";
import { bestPair, hitsOf } from "./hits.js";
import { Pane, planesOf } from "./pane.js";
import { go, isAsking, now } from "./state.js";

let shown = null; // what the dialog shows now
const close = () => now().viewer && go({ viewer: null });

/** The hit that is viewed, among the hits of the state. */
async function hitOf(state, served) {
  if (!state.viewer.hit || !isAsking(state) || (state.file && !filesOf(state))) return null;
  const { hits } = await hitsOf(state, served);
  const same = hits.filter((hit) => hit.volume_id === state.viewer.hit && (!state.viewer.hitStore || hit.store === state.viewer.hitStore));
  return same.find((hit) => String(hit.rank) === String(state.viewer.rank)) ?? same[0] ?? null; // of single slices, a volume has several
}

/** Slices of a plane that match: from the best pairs, [query, hit]; null if none is known. */
function anchorOf(hit, plane) {
  const pair = hit?.slices?.matches.find((each) => each.plane === plane && each.query !== null);
  return pair ? [pair.query, pair.hit] : null;
}

/** The slice of a hit that matches best in a plane, also where the query has no slices; undefined if none is known. */
const matchOf = (hit, plane) => hit?.slices?.matches.find((each) => each.plane === plane)?.hit;

class Viewer {
  constructor(state, hit, panes) {
    Object.assign(this, { hit, ...panes });
    this.panes = [panes.query, panes.hitPane].filter(Boolean);
    this.remember = settled(() => this.toAddress(), 250);
    const planes = planesOf(this.panes);
    const { viewer } = state;
    this.plane = planes.includes(viewer.plane) ? viewer.plane : planes.includes(bestPair(hit ?? {})?.plane) ? bestPair(hit).plane : planes[0];
    this.linked = viewer.apart === null;
    this.planes = h(
      "fieldset",
      { className: "planes" },
      h("legend", { className: "unseen" }, "Plane"),
      planes.map((plane) =>
        h("label", {}, h("input", { type: "radio", name: "plane", value: plane, checked: plane === this.plane, onchange: () => this.setPlane(plane) }), h("span", {}, words(plane))),
      ),
    );
    this.link = h("input", { type: "checkbox", checked: this.linked, onchange: () => this.setLinked(this.link.checked) });
    this.back = h("button", { type: "button", onclick: () => this.toMatch() }, "Back to the match");
    this.panes.forEach((pane) => pane.setWindow(viewer[pane === this.query ? "queryWindow" : "hitWindow"]));
    this.setPlane(this.plane, viewer.at, viewer.hitAt);
    if (this.query) {
      this.box = new Box(this.query, state.box, (box) => go({ box, viewer: null, view: null }));
      this.query.onPlace = () => this.box.show();
    }
  }

  setPlane(plane, at = null, hitAt = null) {
    this.plane = plane;
    this.anchor = anchorOf(this.hit, plane);
    this.query?.show(plane, at ?? this.anchor?.[0]);
    this.hitPane?.show(plane, hitAt ?? this.anchor?.[1] ?? matchOf(this.hit, plane));
    if (at !== null && hitAt !== null) this.anchor = [this.query?.index, this.hitPane?.index];
    this.anchor ??= [this.query?.index, this.hitPane?.index];
    this.box?.show();
    this.remember();
  }

  setLinked(on) {
    this.linked = on;
    if (on) this.anchor = [this.query.index, this.hitPane.index];
    this.remember();
  }

  toMatch() {
    this.setPlane(bestPair(this.hit)?.plane ?? this.plane);
    for (const field of this.planes.querySelectorAll("input")) field.checked = field.value === this.plane;
  }

  /** The other pane follows by as many millimetres. */
  moved(pane) {
    const other = pane === this.query ? this.hitPane : this.query;
    if (this.linked && other) {
      const [own, its] = pane === this.query ? this.anchor : [this.anchor[1], this.anchor[0]];
      const scale = pane.facts.spacing[pane.axis] / other.facts.spacing[pane.axis];
      other.place(its + (pane.index - own) * (Number.isFinite(scale) && scale > 0 ? scale : 1));
    }
    this.remember();
  }

  /** A CT window is that of both, where both are CT. */
  windowed(pane) {
    const other = pane === this.query ? this.hitPane : this.query;
    if (this.linked && other?.facts.hounsfield && pane.facts.hounsfield) other.setWindow(pane.window);
    this.remember();
  }

  toAddress() {
    if (shown !== this || !now().viewer) return;
    const { viewer } = now();
    const windows = { queryWindow: this.query?.window || null, hitWindow: this.hitPane?.window || null };
    const places = { plane: this.plane, at: this.query?.index ?? null, hitAt: this.hitPane?.index ?? null };
    go({ viewer: { ...viewer, ...places, ...windows, apart: this.linked ? null : "1" } }, { quiet: true });
  }
}

function frame(...content) {
  byId("viewer").replaceChildren(
    h("header", { className: "bar" }, h("h2", {}, "Slices"), content.shift(), h("button", { type: "button", className: "close", onclick: close, ariaLabel: "Close" }, "Close")),
    ...content,
  );
}

/** Open, change or close the viewer as a state says. */
export async function showViewer(state, served, offered) {
  const dialog = byId("viewer");
  if (!state.viewer) {
    shown = null;
    if (dialog.open) dialog.close();
    return;
  }
  if (!dialog.open) {
    dialog.showModal();
    document.documentElement.classList.add("viewing");
  }
  const opened = (shown = {});
  frame(null, h("p", { className: "empty", role: "status" }, "Loading the volumes …"));
  const several = served.stores.length > 1;
  const make = async (title, source) => {
    const facts = await source.facts();
    return new Pane(title, source, facts, offered.ct_windows, (pane) => shown.moved?.(pane), (pane) => shown.windowed?.(pane));
  };
  try {
    const source = querySource(state);
    const [query, hitPane, hit] = await Promise.all([
      source ? make("Query", source) : null,
      state.viewer.hit ? make(isAsking(state) ? "Hit" : "Volume", sourceOf(state.viewer.hit, several ? state.viewer.hitStore : null)) : null,
      hitOf(state, served),
    ]);
    if (shown !== opened) return;
    shown = new Viewer(state, hit, { query, hitPane });
    const both = query && hitPane;
    frame(
      h("div", { className: "tools" }, shown.planes, both && h("label", { className: "link" }, shown.link, "Scroll together"), both && bestPair(hit ?? {}) && shown.back),
      h("div", { className: both ? "panes two" : "panes" }, shown.panes.map((pane) => pane.element)),
      h("p", { className: "soft keys" }, "Wheel, arrow keys or the slider: next slice. Page up and down: ten slices. The patient's right is on the left."),
      shown.box?.element ?? "",
    );
    shown.panes[0]?.stage.focus();
  } catch (error) {
    if (isAborted(error) || shown !== opened) return;
    frame(null, h("div", { className: "empty", role: "alert" }, h("p", {}, h("b", {}, "The slices cannot be shown.")), h("p", {}, error.message)));
  }
}

/** Listen to what closes the dialog. */
export function watchViewer() {
  const dialog = byId("viewer");
  dialog.addEventListener("close", () => {
    document.documentElement.classList.remove("viewing");
    close();
  });
}
