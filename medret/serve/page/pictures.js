// Pictures of slices: loaded when they come into view, a few at a time, and kept for a while.

import { h, put } from "./dom.js";
import { isAborted, request } from "./api.js";

const AT_A_TIME = 4;
const KEPT = 400;
const kept = new Map(); // path -> promise of a blob's address
const waiting = [];
let loading = 0;

function next() {
  while (loading < AT_A_TIME && waiting.length) {
    const { path, resolve, reject } = waiting.pop(); // what came last is looked at now
    loading++;
    request(path, {}, undefined, true)
      .then((response) => response.blob())
      .then((blob) => resolve(URL.createObjectURL(blob)), reject)
      .finally(() => {
        loading--;
        next();
      });
  }
}

/** The address of a picture for an <img>: it is asked for with the token, so that it is a blob of this page. */
export function load(path) {
  if (path.startsWith("data:")) return Promise.resolve(path);
  const known = kept.get(path);
  kept.delete(path);
  const promise = known ?? new Promise((resolve, reject) => {
    waiting.push({ path, resolve, reject });
    next();
  });
  kept.set(path, promise);
  promise.catch(() => kept.delete(path));
  if (kept.size > KEPT) {
    const [oldest, address] = kept.entries().next().value;
    kept.delete(oldest);
    address.then(URL.revokeObjectURL, () => {});
  }
  return promise;
}

/** Forget what waits: the pictures are out of sight. */
export function dropWaiting() {
  for (const { path, reject } of waiting.splice(0)) {
    kept.delete(path);
    reject(new DOMException("out of sight", "AbortError"));
  }
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      entry.target.dispatchEvent(new Event("seen"));
    }
  },
  { rootMargin: "200px" },
);

/**
 * A figure with one slice. source: where it comes from (sources.js). place: {plane, index}, or null for a slice in the
 * middle. caption: a function of the slice that is shown, {plane, index, preview}.
 */
export function figureOf(source, place, alt, caption) {
  const image = h("img", { alt, decoding: "async" });
  const frame = h("div", { className: "frame loading" }, image);
  const text = h("figcaption", {}, place ? caption(place) : "\u00a0");
  const figure = h("figure", {}, frame, text);
  frame.addEventListener("seen", async () => {
    try {
      const shown = await source.picture(place);
      image.src = await load(shown.path);
      put(text, caption(shown));
    } catch (error) {
      if (isAborted(error)) return;
      frame.replaceChildren(h("p", { className: "absent" }, h("b", {}, "No picture"), h("span", {}, error.message)));
    } finally {
      frame.classList.remove("loading");
    }
  });
  seen.observe(frame);
  return figure;
}
