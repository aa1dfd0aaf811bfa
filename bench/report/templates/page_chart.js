/* Lines that can be pointed at, hidden, zoomed into and put on a logarithmic scale; also by keyboard. */

const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const SHAPES = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.6,-3.6h7.2v7.2h-7.2z", "M0,-4.8L4.8,0L0,4.8L-4.8,0z", "M0,-4.4L4.6,3.6H-4.6z", "M0,4.4L4.6,-3.6H-4.6z",
  "M-1.6,-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z", "M0,-4.8L4.6,-1.4L2.8,4H-2.8L-4.6,-1.4z",
];
let charts = 0;

function look(line) {
  if (line.published) return { pen: "penpub published", dash: "3 3", shape: SHAPES[2] };
  const turn = line.pen < 0 ? 0 : Math.floor(line.pen / 7) + (line.pen % 7) + 1;
  const dash = line.run === undefined ? turn : line.run;
  return { pen: line.pen < 0 ? "penref" : `pen${line.pen % 7}`, dash: DASHES[dash % 4], shape: SHAPES[(line.pen + 1) % 7] };
}

function chart(host, spec) {
  if (["heatmap", "map", "matrix"].includes(spec.kind)) return gridChart(host, spec);
  return new Chart(host, spec);
}

class Chart {
  constructor(host, spec) {
    Object.assign(this, { host, spec, id: `chart${charts++}`, hidden: new Set(), laid: [], zoom: null });
    this.logX = spec.logX && !spec.categories;
    this.logY = spec.logY;
    this.legend = el("div", { class: "legend", role: "group", "aria-label": `Series of ${spec.title}` });
    this.panels = el("div", { class: `panels${spec.panels.length > 1 ? " many" : ""}` });
    this.said = el("p", { class: "hidden", role: "status" });
    this.notes = el("div", { class: "soft small" });
    host.append(...(spec.subtitle ? [el("p", { class: "soft small" }, spec.subtitle)] : []), this.toolbar(), this.legend, this.panels, this.said, this.notes, this.values());
    this.redraw();
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (host.clientWidth !== width) {
        width = host.clientWidth;
        this.redraw();
      }
    }).observe(host);
  }

  toolbar() {
    const tick = (name, key) => el("label", { class: "small" }, el("input", { type: "checkbox", checked: this[key], onchange: (event) => this.set(key, event.target.checked) }), name);
    this.reset = el("button", { type: "button", class: "small", disabled: true, onclick: () => this.zoomTo(null) }, "Reset zoom");
    const tools = el("div", { class: "bar" });
    if (!this.spec.categories) tools.append(tick("log x", "logX"));
    tools.append(tick("log y", "logY"), this.reset);
    if (this.spec.published?.length) tools.append(this.overlay());
    return tools;
  }

  overlay() {
    const choose = el("select", { class: "small", "aria-label": "Lay a published curve over ours" }, el("option", { value: "" }, "Overlay a published curve"));
    this.spec.published.forEach((line, i) => choose.append(el("option", { value: i }, `${line.matches ? "same setting: " : ""}${line.name} (${line.source})`.slice(0, 120))));
    choose.addEventListener("change", () => {
      const line = this.spec.published[Number(choose.value)];
      if (choose.value !== "" && !this.laid.includes(line)) this.laid.push(Object.assign(line, { published: true, label: `published, not measured: ${line.name} (${line.source}${line.note ? "; " + line.note : ""})` }));
      choose.value = "";
      this.redraw();
    });
    return choose;
  }

  set(key, value) {
    this[key] = value;
    this.zoom = null;
    this.redraw();
  }

  zoomTo(zoom) {
    this.zoom = zoom;
    this.redraw();
  }

  /* Lines of one panel; published ones, once chosen, lie over every panel. */
  lines(panel) {
    return [...panel.lines, ...this.laid].filter((line) => !this.hidden.has(line.label ?? line.name));
  }

  redraw() {
    const focused = this.panels.contains(document.activeElement) ? [...this.panels.querySelectorAll("svg")].indexOf(document.activeElement) : -1;
    const all = this.spec.panels.flatMap((panel) => this.lines(panel));
    this.fullX = xDomain(all.flatMap((line) => line.x), this.logX, this.spec.categories);
    this.fullY = yDomain(all.flatMap((line) => [...line.y, ...(line.low ?? []), ...(line.high ?? [])]), this.logY);
    this.reset.disabled = this.zoom === null;
    this.drawLegend();
    this.panels.replaceChildren(...this.spec.panels.map((panel, i) => new Panel(this, panel, i).host));
    this.notes.replaceChildren(...[...this.off(all), ...this.spec.notes].map((note) => el("p", {}, note)));
    if (focused >= 0) this.panels.querySelectorAll("svg")[focused]?.focus();
  }

  off(lines) {
    if (!this.fullY || this.zoom || this.logY) return [];
    const high = (line) => Math.max(...line.y.filter((v) => v !== null));
    return lines.filter((line) => high(line) > this.fullY[1]).map((line) => `Off the scale: ${line.name}, up to ${number(high(line))} (tick log y to see it).`);
  }

  drawLegend() {
    const known = new Map();
    for (const line of [...this.spec.panels.flatMap((panel) => panel.lines), ...this.laid]) known.set(line.label ?? line.name, line);
    const focused = this.legend.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const buttons = [...known].map(([name, line]) => {
      const flip = () => {
        if (this.hidden.has(name)) this.hidden.delete(name);
        else this.hidden.add(name);
        this.redraw();
      };
      const { pen, dash, shape } = look(line);
      const swatch = svg("svg", { viewBox: "0 0 34 14", "aria-hidden": "true", class: pen }, svg("path", { d: "M1,7H33", class: `line ${pen}`, "stroke-dasharray": dash }), svg("path", { d: shape, transform: "translate(17,7)", class: `point ${pen}` }));
      return el("button", { type: "button", "aria-pressed": String(!this.hidden.has(name)), "data-name": name, onclick: flip }, swatch, el("span", { dir: "auto" }, name.slice(0, 300)));
    });
    this.legend.replaceChildren(...buttons);
    if (focused !== null) buttons.find((button) => button.dataset.name === focused)?.focus();
  }

  values() {
    const details = el("details", { "data-lazy": "yes" }, el("summary", {}, "Values as a table"));
    details.addEventListener("toggle", () => details.open && details.childElementCount < 2 && details.append(this.valueTable()));
    return details;
  }

  valueTable() {
    const { spec } = this;
    const lines = spec.panels.flatMap((panel) => panel.lines.map((line) => [panel, line]));
    const rows = [...lines, ...(spec.published ?? []).map((line) => [{ title: "published, not measured" }, line])].flatMap(([panel, line]) => line.x.map((x, i) => [panel.title, line.name, spec.categories ? spec.categories[x] : x, line.y[i], line.low?.[i] ?? null, line.high?.[i] ?? null]));
    const names = [["panel", false], ["series", false], [spec.xLabel, !spec.categories], [spec.yLabel, true], ["low", true], ["high", true]];
    const used = names.map((name, i) => i).filter((i) => rows.some((row) => row[i] !== null && row[i] !== ""));
    const columns = used.map((i) => ({ label: names[i][0], numeric: names[i][1], value: (row) => row[i], text: (row) => (i === 2 && typeof row[2] === "number" ? exactly(row[2]) : number(row[i], false)) }));
    const host = el("div");
    new DataTable(host, { name: spec.name, caption: `Values of ${spec.title}`, columns, rows, facets: columns.filter((c) => c.label === "series" || c.label === "panel"), size: 20 });
    return host;
  }
}
