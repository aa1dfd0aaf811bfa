/* A heat map or a matrix is a table whose fields carry colour: readable without seeing the colour. */

const COOL = [[230, 242, 240], [44, 105, 117]];
const SIGNED = [[178, 82, 20], [246, 246, 246], [22, 105, 150]];

function mix(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (place - i)));
}

function luminance(colour) {
  const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function shade(values, signed) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  const log = !signed && low > 0 && high > 30 * low;
  const f = log ? Math.log : (v) => v;
  return (value) => {
    const share = signed ? 0.5 + value / most / 2 : high > low ? (f(value) - f(low)) / (f(high) - f(low)) : 0.5;
    const colour = mix(signed ? SIGNED : COOL, share);
    return { back: `rgb(${colour.join(",")})`, ink: luminance(colour) > 0.179 ? "#000000" : "#ffffff" };
  };
}

function gridChart(host, spec) {
  if (spec.subtitle) host.append(el("p", { class: "soft small" }, spec.subtitle));
  const colours = shade(spec.panels.flatMap((panel) => panel.fields.flat().filter((field) => typeof field === "number")), spec.signed);
  const better = { lower: "; lower is better", higher: "; higher is better", none: "" }[spec.direction];
  for (const panel of spec.panels) {
    if (panel.title) host.append(el("h4", { dir: "auto" }, clipped(panel.title)));
    const rows = spec.rows.map((name, i) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, clipped(name)), ...panel.fields[i].map((field) => gridField(field, colours))));
    const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, spec.rowLabel), ...spec.columns.map((name) => el("th", { scope: "col", dir: "auto" }, name))));
    const caption = el("caption", {}, `${spec.yLabel}${better}. Across: ${spec.xLabel}.`);
    host.append(el("div", { class: "scroll grid", tabindex: "0", role: "region", "aria-label": `Grid: ${spec.title} ${panel.title}`.slice(0, 200) }, el("table", {}, caption, head, el("tbody", {}, ...rows))));
  }
  host.append(...spec.notes.map((note) => el("p", { class: "soft small" }, note)));
}

function gridField(field, colours) {
  if (typeof field !== "number") return el("td", { class: "none" }, field ?? "");
  const node = el("td", {}, number(field, false));
  const { back, ink } = colours(field);
  node.style.backgroundColor = back;
  node.style.color = ink;
  return node;
}
