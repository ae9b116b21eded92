// From chosen labels to the text of a filter, as `where` in the API takes it.

const quoted = (value) => `'${value.replaceAll("'", "''")}'`;
const column = (name) => `"${name.replaceAll('"', '""')}"`;

function condition(name, values) {
  const texts = values.filter((value) => value !== null);
  const parts = texts.length ? [`${column(name)} in (${texts.map(quoted).join(", ")})`] : [];
  if (texts.length < values.length) parts.push(`${column(name)} is null`);
  return parts.length > 1 ? `(${parts.join(" or ")})` : parts[0];
}

/** The filter of a state, or null. without: a column whose chosen values are left out. */
export function filterOf(state, without = null) {
  const parts = Object.entries(state.facets)
    .filter(([name, values]) => name !== without && values.length)
    .map(([name, values]) => condition(name, values));
  if (state.where) parts.push(parts.length ? `(${state.where})` : state.where);
  return parts.join(" and ") || null;
}
