/* A table that sorts, filters and turns pages. A column says how to get value, text and footnote of a row;
   only the rows of one page are ever in the document, so ten thousand rows cost no more than fifty. */

const PAGE = 50;
const COLLATOR = new Intl.Collator("en", { numeric: true });

class DataTable {
  constructor(host, { name, caption, columns, rows, notes = [], facets = [], extras = null, size = PAGE }) {
    Object.assign(this, { host, name, caption, columns, rows, notes, facets, size });
    this.page = 0;
    this.order = null;
    this.query = "";
    this.chosen = new Map();
    this.status = el("span", { role: "status", class: "small soft" });
    this.body = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${caption}` });
    this.below = el("ul", { class: "notes" });
    this.turn = el("div", { class: "bar turn" });
    host.replaceChildren(rows.length > 8 || extras ? this.controls(extras) : el("span"), this.body, this.turn, this.below);
    this.draw();
  }

  controls(extras) {
    const bar = el("div", { class: "bar" });
    const type = (event) => this.filter(event.target.value);
    bar.append(el("label", {}, "Filter", el("input", { type: "search", oninput: type, "aria-label": `Filter ${this.caption}` })));
    for (const column of this.facets) {
      const values = [...new Set(this.rows.map((row) => column.text(row)))].sort(COLLATOR.compare);
      if (values.length < 2 || values.length > 40) continue;
      const options = values.map((value) => el("option", { value }, value.slice(0, 80)));
      const choose = (event) => this.choose(column, event.target.value, event.target.selectedIndex === 0);
      bar.append(el("label", {}, column.label, el("select", { onchange: choose, "aria-label": `Only ${column.label}` }, el("option", { value: "" }, "all"), ...options)));
    }
    if (extras) bar.append(extras(this));
    bar.append(this.status);
    bar.append(el("button", { type: "button", class: "end", onclick: () => save(`${this.name}.csv`, this.csv(), "text/csv") }, "These rows as CSV"));
    return bar;
  }

  filter(query) {
    this.query = query;
    this.page = 0;
    this.draw();
  }

  choose(column, value, all) {
    if (all) this.chosen.delete(column);
    else this.chosen.set(column, value);
    this.page = 0;
    this.draw();
  }

  sort(column) {
    const first = column.numeric ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    if (this.order?.column !== column) this.order = { column, way: first };
    else if (this.order.way === first) this.order = { column, way: other };
    else this.order = null;
    this.page = 0;
    this.draw();
    this.body.querySelector(`[data-column="${this.columns.indexOf(column)}"]`)?.focus();
  }

  visible() {
    const words = this.query.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = this.rows;
    for (const [column, value] of this.chosen) rows = rows.filter((row) => column.text(row) === value);
    if (words.length) rows = rows.filter((row) => words.every((word) => this.haystack(row).includes(word)));
    if (!this.order) return rows;
    const { column, way } = this.order;
    const sign = way === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [column.value(row), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "number" && typeof b === "number" ? a - b : COLLATOR.compare(String(a), String(b)));
    });
    return keyed.map(([, row]) => row);
  }

  haystack(row) {
    this.hay ??= new Map();
    if (!this.hay.has(row)) this.hay.set(row, this.columns.map((column) => column.text(row)).join("\n").toLowerCase());
    return this.hay.get(row);
  }

  csv() {
    return csv([this.columns.map((column) => column.label), ...this.visible().map((row) => this.columns.map((column) => column.value(row)))]);
  }

  draw() {
    const rows = this.visible();
    const pages = Math.max(1, Math.ceil(rows.length / this.size));
    const shown = rows.slice(this.page * this.size, (this.page + 1) * this.size);
    const columns = this.columns.filter((column) => !column.off);
    const footnotes = [];
    const body = shown.map((row) => el("tr", {}, ...columns.map((column, i) => this.cell(row, column, i === 0, footnotes))));
    const table = el("table", {}, el("caption", { class: "hidden" }, this.caption), el("thead", {}, el("tr", {}, ...columns.map((c) => this.head(c)))), el("tbody", {}, ...body));
    this.body.replaceChildren(table, ...(rows.length ? [] : [el("p", { class: "empty" }, "No row matches.")]));
    this.status.textContent = rows.length === this.rows.length ? `${number(rows.length)} rows` : `${number(rows.length)} of ${number(this.rows.length)} rows`;
    const marks = footnotes.map((note, i) => el("li", {}, el("sup", {}, String(i + 1)), " ", clipped(note)));
    this.below.replaceChildren(...marks, ...this.notes.map((note) => el("li", {}, note)));
    this.turn.replaceChildren(...(pages > 1 ? this.turning(pages, rows.length) : []));
  }

  turning(pages, count) {
    const go = (page) => () => {
      this.page = page;
      this.draw();
      this.turn.querySelector("button:enabled")?.focus();
    };
    const last = Math.min(count, (this.page + 1) * this.size);
    return [
      el("button", { type: "button", disabled: this.page === 0, onclick: go(0) }, "First"),
      el("button", { type: "button", disabled: this.page === 0, onclick: go(this.page - 1) }, "Previous"),
      el("span", { class: "small" }, `rows ${number(this.page * this.size + 1)} to ${number(last)} of ${number(count)}`),
      el("button", { type: "button", disabled: this.page === pages - 1, onclick: go(this.page + 1) }, "Next"),
      el("button", { type: "button", disabled: this.page === pages - 1, onclick: go(pages - 1) }, "Last"),
    ];
  }

  head(column) {
    const way = this.order?.column === column ? this.order.way : "none";
    const button = el("button", { type: "button", "data-column": this.columns.indexOf(column), title: column.help || null, onclick: () => this.sort(column) }, column.label.slice(0, 200));
    return el("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": way }, button);
  }

  cell(row, column, first, footnotes) {
    const text = column.text(row);
    const note = column.note?.(row);
    const content = column.open ? el("button", { type: "button", class: "link clip", dir: "auto", onclick: () => column.open(row) }, text) : clipped(text);
    const parts = [content];
    if (note) {
      if (!footnotes.includes(note)) footnotes.push(note);
      parts.push(el("sup", {}, String(footnotes.indexOf(note) + 1)));
    }
    const look = [column.numeric ? "number" : "", column.look?.(row) || ""].join(" ").trim();
    return el(first ? "th" : "td", { class: look || null, scope: first ? "row" : null }, ...parts);
  }
}

/* Tables that were made beforehand: each field is null, a text, or [value, text, note]. */
function ready(host, name) {
  const made = DATA.tables[name];
  const columns = made.columns.map(([label, numeric], i) => ({
    label,
    numeric,
    value: (row) => (Array.isArray(row[i]) ? row[i][0] : row[i]),
    text: (row) => (Array.isArray(row[i]) ? row[i][1] : row[i] ?? MISSING),
    note: (row) => (Array.isArray(row[i]) && row[i].length > 2 ? made.words[row[i][2]] : null),
    look: label === "verdict" || label === "status" ? (row) => (Array.isArray(row[i]) ? row[i][1] : row[i]) : null,
  }));
  const facets = columns.filter((column, i) => made.facets.includes(i));
  return new DataTable(host, { name, caption: made.title, columns, rows: made.rows, notes: made.notes, facets, size: 20 });
}
