/* All cells as one table, and one cell in full. See cells.py for how they are packed. */

const CELL = { run: 0, id: 1, label: 2, status: 3, reason: 4, seed: 5, repeat: 6, env: 7, started: 8, seconds: 9, pass: 10, command: 11, params: 12, facts: 13, checks: 14, metrics: 15, artifacts: 16, edited: 17 };
const PACKED = DATA.cells;
const word = (i) => PACKED.words[i];
const scalar = (packed) => (Array.isArray(packed) ? word(packed[0]) : packed);

const EDITED = "edited after it was measured: its numbers are not the ones that were written";

function metricValue(packed) {
  return Array.isArray(packed) ? packed[0] : packed;
}

function metricText(metric, packed) {
  const value = metricValue(packed);
  return value === null ? MISSING : number(metric.divisor === 1 ? value : value / metric.divisor, metric.divisor === 1 && Number.isInteger(value));
}

function metricNote(packed) {
  return Array.isArray(packed) && packed[0] === null ? word(packed[1]) : null;
}

const ARROW = { lower: " ↓", higher: " ↑", none: "" };
const named = (metric) => metric.label + (metric.unit ? ` (${metric.unit})` : "");

function cellColumns() {
  const plain = (label, numeric, value) => ({ label, numeric, value, text: (row) => given(value(row)) });
  const columns = [{ label: "cell", numeric: false, value: (row) => word(row[CELL.label]), text: (row) => word(row[CELL.label]), open: openCell }];
  if (DATA.runs.length > 1) columns.push(plain("run", false, (row) => DATA.runs[row[CELL.run]].name));
  for (const name of PACKED.identity) {
    const i = PACKED.params.indexOf(name);
    if (i < 0) continue;
    const value = (row) => scalar(row[CELL.params][i]) ?? null;
    columns.push(plain(name.replaceAll("_", " "), PACKED.cells.every((row) => ["number", "object"].includes(typeof value(row))), value));
  }
  for (const name of ["seed", "repeat"]) {
    if (new Set(PACKED.cells.map((row) => row[CELL[name]])).size > 1) columns.push(plain(name, true, (row) => row[CELL[name]]));
  }
  const status = plain("status", false, (row) => row[CELL.status]);
  columns.push({ ...status, text: (row) => row[CELL.status] + (row[CELL.edited] ? " (edited)" : ""), look: (row) => (row[CELL.edited] ? "error" : row[CELL.status]), note: (row) => (row[CELL.edited] ? EDITED : row[CELL.reason] === null ? null : word(row[CELL.reason])) });
  const facets = columns.filter((column) => column.label !== "cell");
  const some = PACKED.metrics.some((metric) => metric.headline);
  PACKED.metrics.forEach((metric, i) => {
    columns.push({
      label: named(metric) + ARROW[metric.direction],
      numeric: true,
      help: metric.help,
      off: some && !metric.headline,
      optional: some && !metric.headline,
      value: (row) => metricValue(row[CELL.metrics][i]),
      text: (row) => metricText(metric, row[CELL.metrics][i]),
      note: (row) => (row[CELL.status] === "ok" ? metricNote(row[CELL.metrics][i]) : null),
    });
  });
  return { columns, facets };
}

function cellTable(host) {
  const { columns, facets } = cellColumns();
  const extras = (table) => {
    const flip = (event) => {
      for (const column of columns) if (column.optional) column.off = !event.target.checked;
      table.draw();
    };
    return columns.some((column) => column.optional) ? el("label", {}, el("input", { type: "checkbox", onchange: flip }), "all metrics") : null;
  };
  return new DataTable(host, { name: "cells", caption: "All cells", columns, rows: PACKED.cells, facets, extras });
}

function pairs(caption, entries, written = number) {
  const rows = entries.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, clipped(written(value)))));
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "name"), el("th", { scope: "col" }, "value")));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${caption}` }, el("table", {}, el("caption", { class: "hidden" }, caption), head, el("tbody", {}, ...rows)));
}

function cellMetrics(row) {
  const body = PACKED.metrics.map((metric, i) => {
    const packed = row[CELL.metrics][i];
    const value = metricValue(packed);
    const spread = Array.isArray(packed) && packed.length > 2 ? `${number(packed[1])} samples, ${number(packed[2] / metric.divisor)} to ${number(packed[3] / metric.divisor)}` : metricNote(packed) ?? (packed === null ? "not measured by this cell" : "");
    return el("tr", {}, el("th", { scope: "row", title: metric.help || null }, named(metric) + ARROW[metric.direction]), el("td", { class: "number" }, metricText(metric, packed)), el("td", { class: "number" }, value === null ? "" : String(value)), el("td", {}, spread), el("td", {}, metric.class));
  });
  const heads = ["metric", "value", "raw", "samples, or why there is no value", "compared as"];
  const head = el("thead", {}, el("tr", {}, ...heads.map((text, i) => el("th", { scope: "col", class: i === 1 || i === 2 ? "number" : null }, text))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table: metrics of this cell" }, el("table", {}, el("caption", { class: "hidden" }, "Metrics of this cell"), head, el("tbody", {}, ...body)));
}

function openCell(row) {
  const dialog = document.getElementById("cell");
  const run = DATA.runs[row[CELL.run]];
  const filled = (names, values) => names.map((name, i) => [name.replaceAll("_", " "), scalar(values[i])]).filter(([, value]) => value !== null);
  const command = (run.checkout ? `git checkout ${run.checkout}\n` : "") + word(row[CELL.command]);
  const code = el("code", {}, command);
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const copied = el("span", { role: "status", class: "small soft" });
  const copy = el("button", { type: "button", onclick: () => copyText(command, code, copied) }, "Copy");
  const parts = [
    row[CELL.edited] ? el("p", { class: "bad" }, el("b", {}, `This record was ${EDITED}.`)) : "",
    el("p", {}, el("b", { class: row[CELL.status] }, row[CELL.status]), row[CELL.reason] === null ? "" : ": ", row[CELL.reason] === null ? "" : clipped(word(row[CELL.reason]))),
    el("p", { class: "soft small" }, `cell ${row[CELL.id]}, pass ${row[CELL.pass]}, seed ${row[CELL.seed]}, repeat ${row[CELL.repeat]}; started ${row[CELL.started].slice(0, 19).replace("T", " ")} UTC, ${number(row[CELL.seconds])} s into its pass`),
    el("h3", {}, "Measure it again"),
    el("p", { class: "soft small" }, run.dirty ? "The code had changes that were not committed: the commit below is the one they were made to." : "Suites and code as they were; --only takes all seeds and repeats of this cell."),
    el("pre", {}, code),
    el("p", { class: "bar" }, copy, copied),
    el("h3", {}, "Parameters"),
    pairs("Parameters", filled(PACKED.params, row[CELL.params]), given),
    el("h3", {}, "Metrics"),
    cellMetrics(row),
  ];
  const more = [["Found while measuring", filled(PACKED.facts, row[CELL.facts])], ["Conformance", filled(PACKED.checks, row[CELL.checks])], ["Environment", DATA.envs[row[CELL.env]] ?? [["fingerprint", `${row[CELL.env]} (not described in env.json)`]]], ["Artifacts", row[CELL.artifacts].map(([path, bytes, sha]) => [word(path), `${number(bytes)} bytes, sha256 ${sha}`])]];
  for (const [title, entries] of more) if (entries.length) parts.push(el("h3", {}, title), pairs(title, entries));
  dialog.replaceChildren(el("div", { class: "top" }, el("h2", { id: "cell-title", dir: "auto" }, word(row[CELL.label])), close), el("div", {}, ...parts));
  dialog.showModal();
  dialog.scrollTop = 0;
  close.focus();
}

async function copyText(text, node, status) {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(node);
    status.textContent = "selected: press Ctrl+C";
  }
}

function allCells() {
  const names = ["run", "cell", "label", "status", "reason", "seed", "repeat", "env", "started", "seconds", "edited"];
  const heads = [...names, ...PACKED.params, ...PACKED.facts, ...PACKED.metrics.flatMap((m) => [`metric.${m.name}`, `metric.${m.name}.reason`])];
  const rows = PACKED.cells.map((row) => [
    DATA.runs[row[CELL.run]].name, row[CELL.id], word(row[CELL.label]), row[CELL.status], row[CELL.reason] === null ? null : word(row[CELL.reason]),
    row[CELL.seed], row[CELL.repeat], row[CELL.env], row[CELL.started], row[CELL.seconds], row[CELL.edited],
    ...row[CELL.params].map(scalar), ...row[CELL.facts].map(scalar), ...row[CELL.metrics].flatMap((packed) => [metricValue(packed), metricNote(packed)]),
  ]);
  return { heads, rows };
}
