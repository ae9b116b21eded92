// Elements from code: every text becomes a text node, so that nothing from a store or a file is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && element.namespaceURI !== SVG) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...real(children));
  return element;
}

const real = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Fill an element with children instead of those it has; null and false are left out. */
export const put = (element, ...children) => element.replaceChildren(...real(children));

/** An HTML element. properties: its properties, attributes, and listeners as `onclick`. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Say something to people who look and to those who listen. */
export function say(text, kind = "") {
  const status = byId("status");
  status.className = `status ${kind}`;
  status.textContent = text;
}

/** The last part of a path, and what comes before it. */
export function splitName(text) {
  const at = text.lastIndexOf("/") + 1;
  return [text.slice(0, at), text.slice(at)];
}

/** A text that may be broken after its punctuation. */
const breakable = (text) => text.split(/(?<=[_.\-/])/).flatMap((part) => [part, h("wbr")]);

/** A volume_id with its last part in bold. */
export function nameOf(text) {
  const [folder, name] = splitName(text);
  return h("span", { className: "name" }, folder && h("span", { className: "folder" }, breakable(folder)), h("b", {}, breakable(name)));
}

/** Labels as a list of chips. */
export function chips(labels) {
  const known = Object.entries(labels).filter(([, value]) => value !== null && value !== "");
  if (!known.length) return null;
  return h(
    "ul",
    { className: "chips", ariaLabel: "Labels" },
    known.map(([name, value]) => h("li", { title: words(name) }, h("span", { className: "unseen" }, `${words(name)}: `), value)),
  );
}

/** The name of a label column or of a window in words. */
export function words(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A number with as many digits as people compare. */
export const score = (value) => value.toFixed(3);

/** Call a function once calls have stopped for a while. */
export function settled(call, milliseconds) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), milliseconds);
  };
}
