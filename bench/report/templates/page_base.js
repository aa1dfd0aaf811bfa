"use strict";
/* The page's own few tools. Text enters the page as text only: nothing here parses markup. */

const DATA = JSON.parse(document.getElementById("data").textContent);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return dress(node, attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const MISSING = "–";
const GROUPED = new Map();

function grouped(value, decimals) {
  if (!GROUPED.has(decimals)) {
    // Ties as Python rounds them, which writes README.md and the tables: 8,000 bytes are 7.812 KiB in both.
    const both = { minimumFractionDigits: decimals, maximumFractionDigits: decimals, roundingMode: "halfEven" };
    GROUPED.set(decimals, new Intl.NumberFormat("en-US", both));
  }
  return GROUPED.get(decimals).format(value).replace("-", "−");
}

/* About four significant digits, as everywhere in the report. */
function number(value, whole = Number.isInteger(value)) {
  if (value === null || value === undefined) return MISSING;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1e15 || (size >= 1e12 && !whole)) return value.toPrecision(4);
  if (whole || value === 0) return grouped(value, 0);
  if (size < 1e-4) return value.toExponential(2);
  return grouped(value, Math.max(0, 3 - Math.floor(Math.log10(size))));
}

/* A setting: as any number, but never rounded, so that no two of them read alike. */
function given(value) {
  const text = number(value);
  if (typeof value !== "number" || Number(text.replaceAll(",", "").replace("−", "-")) === value) return text;
  return String(value);
}

/* A tick or a position: written out, without rounding. */
function exactly(value) {
  return value.toLocaleString("en-US", { maximumSignificantDigits: 10 }).replace("-", "−");
}

function clipped(text) {
  return text.length > 120 ? el("span", { class: "clip", dir: "auto", tabindex: "0" }, text) : text;
}

function save(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csv(rows) {
  return rows.map((row) => row.map(field).join(",")).join("\n") + "\n";
}

/* A field that a spreadsheet would run as a formula becomes plain text. */
function field(value) {
  if (value === null || value === undefined) return "";
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text) && isNaN(Number(text))) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
