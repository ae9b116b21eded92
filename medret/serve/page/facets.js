// The filter: values of labels with counts, a part of the volume_id, and conditions in words of the API.

import { byId, h, settled, words } from "./dom.js";
import { getJson, isAborted } from "./api.js";
import { filterOf } from "./where.js";
import { go, now } from "./state.js";

const SHOWN = 6;
const open = new Set(); // columns of which all values are shown
let asking = null;

/** The values that can be chosen, counted among the volumes that all other choices keep. */
async function countsFor(state, signal) {
  const ask = (without) =>
    getJson("v1/volumes", { where: filterOf(state, without), contains: state.contains, limit: 1, facets: true }, signal);
  const chosen = Object.keys(state.facets).filter((column) => state.facets[column].length);
  const [all, ...others] = await Promise.all([ask(null), ...chosen.map(ask)]);
  chosen.forEach((column, number) => (all.facets[column] = others[number].facets[column] ?? all.facets[column]));
  return all.facets;
}

function choose(column, value, isChosen) {
  const values = (now().facets[column] ?? []).filter((each) => each !== value);
  if (isChosen) values.push(value);
  const facets = { ...now().facets, [column]: values };
  if (!values.length) delete facets[column];
  go({ facets });
}

function group(column, values, chosen) {
  const missing = chosen.filter((value) => !values.some((each) => each.value === value));
  const all = [...values, ...missing.map((value) => ({ value, count: 0 }))];
  const isLong = all.length > SHOWN + 1 && !open.has(column);
  const shown = isLong ? all.filter(({ value }, number) => number < SHOWN || chosen.includes(value)) : all;
  return h(
    "fieldset",
    {},
    h("legend", {}, words(column)),
    shown.map(({ value, count }) => {
      const field = h("input", {
        type: "checkbox",
        id: `facet ${column} ${value}`,
        checked: chosen.includes(value),
        onchange: () => choose(column, value, field.checked),
      });
      return h(
        "label",
        { className: "choice" },
        field,
        h("span", { className: value === null ? "soft" : "" }, value ?? "no value"),
        h("span", { className: "count" }, count.toLocaleString("en")),
      );
    }),
    isLong &&
      h(
        "button",
        {
          type: "button",
          className: "small",
          onclick: (event) => {
            open.add(column);
            event.target.closest("fieldset").replaceWith(group(column, values, chosen));
          },
        },
        `Show all ${all.length}`,
      ),
  );
}

const useful = (values) => values.length <= SHOWN || values.some(({ count }) => count > 1);

function texts(state) {
  const name = h("input", {
    id: "contains",
    type: "search",
    value: state.contains ?? "",
    autocomplete: "off",
    oninput: settled(() => name.value.trim() !== (now().contains ?? "") && go({ contains: name.value.trim() || null }), 350),
  });
  const where = h("input", {
    id: "where",
    value: state.where ?? "",
    autocomplete: "off",
    spellcheck: false,
    placeholder: "organ <> 'Brain'",
    "aria-describedby": "where-wrong",
  });
  const submit = (event) => {
    event.preventDefault();
    go({ where: where.value.trim() || null });
  };
  return [
    h("div", { className: "field" }, h("label", { htmlFor: "contains" }, "Volumes whose id contains"), name),
    h(
      "form",
      { className: "field", onsubmit: submit },
      h("label", { htmlFor: "where" }, "Condition on labels"),
      where,
      h("div", { className: "row" }, h("button", { className: "small" }, "Apply the condition")),
      h("p", { id: "where-wrong", className: "wrong", hidden: true }),
    ),
  ];
}

/** Draw the filter for a state, and count the values again. */
export async function showFilter(state, last) {
  const body = byId("filter").querySelector("div");
  if (!body.childElementCount) body.append(h("div", { className: "texts" }, texts(state)), h("div", { className: "facets" }));
  const isSame = last && filterOf(state) === filterOf(last) && state.contains === last.contains;
  for (const id of ["contains", "where"]) {
    const field = byId(id);
    if (document.activeElement !== field || id === "where") field.value = state[id] ?? "";
  }
  if (isSame && body.querySelector("fieldset")) return;
  asking?.abort();
  asking = new AbortController();
  const wrong = byId("where-wrong");
  try {
    const facets = await countsFor(state, asking.signal);
    const focused = document.activeElement?.id;
    const groups = Object.entries(facets).filter(([column, values]) => useful(values) || state.facets[column]);
    body.querySelector(".facets").replaceChildren(...groups.map(([column, values]) => group(column, values, state.facets[column] ?? [])));
    if (focused?.startsWith("facet ")) byId(focused)?.focus();
    wrong.hidden = true;
  } catch (error) {
    if (isAborted(error)) return;
    wrong.textContent = error.message;
    wrong.hidden = false;
  }
}
