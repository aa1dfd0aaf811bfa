/* One set of axes of a chart: drawing it, pointing at it, dragging over it, and the keys that do the same. */

class Panel {
  constructor(owner, panel, place) {
    Object.assign(this, { owner, panel, place, cursor: null });
    const { spec } = owner;
    const wide = owner.host.clientWidth || 640;
    const two = spec.panels.length > 1 && matchMedia("(min-width: 62rem)").matches;
    this.width = Math.max(260, two ? (wide - 13) / 2 : wide);
    this.height = this.width < 480 ? 270 : two ? 300 : 360;
    this.box = { left: 62, right: this.width - 22, top: 14 + 15 * Math.min(3, Object.values(panel.marks).flat().length), bottom: this.height - 44 };
    this.tip = el("div", { class: "tip", hidden: true });
    this.host = el("div", { class: "panel" }, ...(panel.title ? [el("h4", { dir: "auto" }, clipped(panel.title))] : []));
    if (!owner.fullX || !owner.fullY) {
      this.host.append(el("p", { class: "empty" }, owner.logY || owner.logX ? "Nothing above zero to show on a logarithmic scale, or every series is hidden." : "Every series is hidden."));
      return;
    }
    this.x = scale(owner.zoom?.x ?? owner.fullX, [this.box.left, this.box.right], owner.logX);
    this.y = scale(owner.zoom?.y ?? owner.fullY, [this.box.bottom, this.box.top], owner.logY);
    this.lines = owner.lines(panel);
    this.draw();
    this.listen();
    this.host.append(this.svg, this.tip);
  }

  draw() {
    const { owner, box, width, height } = this;
    const { spec } = owner;
    const clip = `${owner.id}-${this.place}`;
    const label = `${spec.title}${this.panel.title ? ", " + this.panel.title : ""}: ${spec.yLabel} against ${spec.xLabel}. Series: ${this.lines.map((line) => line.name).join(", ")}. Arrow keys read the values.`.slice(0, 600);
    this.svg = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img", "aria-label": label });
    this.svg.append(svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }))));
    this.drawAxes();
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    this.drawMarks(inside);
    for (const line of this.lines) this.drawLine(inside, line);
    this.guide = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.picked = svg("rect", { class: "select", visibility: "hidden" });
    this.svg.append(inside, this.guide, this.picked);
  }

  drawAxes() {
    const { owner, box } = this;
    const { spec } = owner;
    const [xLow, xHigh] = owner.zoom?.x ?? owner.fullX;
    const [yLow, yHigh] = owner.zoom?.y ?? owner.fullY;
    const rooms = Math.max(3, Math.floor((box.right - box.left) / 78));
    const ys = owner.logY ? logTicks(yLow, yHigh, 7, 10) : linearTicks(yLow, yHigh, 6);
    const xs = this.xTicks(xLow, xHigh, rooms);
    for (const tick of ys) {
      const at = this.y(tick);
      this.svg.append(svg("line", { class: "gridline", x1: box.left, x2: box.right, y1: at, y2: at }), svg("text", { x: box.left - 7, y: at + 4, "text-anchor": "end" }, exactly(tick)));
    }
    for (const [tick, name] of xs) {
      const at = this.x(tick);
      this.svg.append(svg("line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 5 }), svg("text", { x: Math.min(at, this.width - 3.6 * name.length), y: box.bottom + 19, "text-anchor": "middle" }, name));
    }
    const middle = (box.top + box.bottom) / 2;
    const fit = Math.floor((box.bottom - box.top) / 6.2);
    const yName = spec.yLabel.length > fit ? spec.yLabel.slice(0, fit - 1) + "…" : spec.yLabel;
    this.svg.append(
      svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      svg("text", { x: (box.left + box.right) / 2, y: this.height - 5, "text-anchor": "middle" }, spec.xLabel.slice(0, Math.floor(this.width / 6.2))),
      svg("text", { transform: `translate(11,${middle}) rotate(-90)`, "text-anchor": "middle" }, yName),
    );
  }

  xTicks(low, high, most) {
    const { spec, logX } = this.owner;
    if (spec.categories) {
      const inside = spec.categories.map((name, i) => [i, name.slice(0, 12)]).filter(([i]) => i >= low && i <= high);
      return inside.filter((_, i) => i % Math.ceil(inside.length / most) === 0);
    }
    const own = [...new Set(this.lines.flatMap((line) => line.x))].filter((v) => v >= low && v <= high).sort((a, b) => a - b);
    const apart = own.every((v, i) => i === 0 || this.x(v) - this.x(own[i - 1]) > 52);
    const ticks = spec.kind === "line" && own.length > 1 && own.length <= most && apart ? own : logX ? logTicks(low, high, most, 2) : linearTicks(low, high, most);
    return ticks.map((tick) => [tick, exactly(tick)]);
  }

  drawMarks(inside) {
    const { box } = this;
    const marks = Object.entries(this.panel.marks).flatMap(([name, values]) => values.map((value) => [name, value]));
    marks.forEach(([name, value], i) => {
      const at = this.x(value);
      if (!(at >= box.left && at <= box.right)) return;
      inside.append(svg("line", { class: "markline", x1: at, x2: at, y1: box.top, y2: box.bottom }));
      const left = at > (box.left + box.right) / 2;
      this.svg.append(svg("text", { x: at, y: 11 + 15 * (i % 3), "text-anchor": left ? "end" : "start" }, `${name.replaceAll("_", " ").slice(0, 30)} ${exactly(value)}`));
    });
  }

  points(line) {
    const { logX, logY } = this.owner;
    return line.x.map((x, i) => {
      const y = line.y[i];
      const ok = x !== null && y !== null && (!logX || x > 0) && (!logY || y > 0);
      return ok ? { line, i, at: x, x: this.x(x), y: this.y(y) } : null;
    });
  }

  drawLine(inside, line) {
    const { pen, dash, shape } = look(line);
    const points = this.points(line);
    const path = points.map((p, i) => (p ? `${i && points[i - 1] ? "L" : "M"}${p.x.toFixed(1)},${p.y.toFixed(1)}` : "")).join("");
    if (line.low) this.drawSpread(inside, line, points, pen);
    inside.append(svg("path", { class: `line ${pen}`, d: path, "stroke-dasharray": dash }));
    const shown = points.filter(Boolean);
    const most = this.owner.spec.kind !== "curve" ? 40 : this.width < 480 ? 7 : 14;
    const every = Math.ceil(shown.length / most);
    shown.forEach((p, i) => i % every === 0 && inside.append(svg("path", { class: `point ${pen}`, d: shape, transform: `translate(${p.x.toFixed(1)},${p.y.toFixed(1)})` })));
  }

  drawSpread(inside, line, points, pen) {
    const limit = (v) => Math.min(Math.max(this.y(this.owner.logY && !(v > 0) ? 1e-300 : v), -1e4), 1e4).toFixed(1);
    let known = points.filter((p) => p && line.low[p.i] !== null && line.high[p.i] !== null);
    if (this.owner.spec.kind === "curve" && known.length > 1) {
      known = line.run ? [] : this.ownStretch(line, known); // of several runs only the first has bands
      if (known.length < 2) return;
      const up = known.map((p) => `${p.x.toFixed(1)},${limit(line.high[p.i])}`);
      const down = known.map((p) => `${p.x.toFixed(1)},${limit(line.low[p.i])}`).reverse();
      inside.append(svg("path", { class: `band ${pen}`, d: `M${[...up, ...down].join("L")}Z` }));
    } else {
      for (const p of known) inside.append(svg("line", { class: `whisker ${pen}`, x1: p.x, x2: p.x, y1: limit(line.low[p.i]), y2: limit(line.high[p.i]) }));
    }
  }

  /* Where a curve lies on one drawn before, one band is enough. */
  ownStretch(line, points) {
    const before = this.lines.slice(0, this.lines.indexOf(line));
    const alike = (p) => before.some((other) => other.x[p.i] === p.at && Math.abs(other.y[p.i] / line.y[p.i] - 1) < 2e-3);
    const first = points.findIndex((p) => !alike(p));
    return first < 0 ? [] : points.slice(Math.max(0, first - 1));
  }

  /* What stands at the cursor: per series the point nearest to it; for paths the nearest point alone. */
  near(px, py) {
    const { box, owner } = this;
    const inside = (p) => p && p.x >= box.left - 1 && p.x <= box.right + 1;
    const all = this.lines.map((line) => this.points(line).filter(inside)).filter((points) => points.length);
    const best = (points, far) => points.reduce((a, b) => (far(b) < far(a) ? b : a));
    if (!all.length) return null;
    if (owner.spec.kind === "scatter") return [best(all.flat(), (p) => Math.hypot(p.x - px, p.y - py))];
    const nearest = best(all.flat(), (p) => Math.abs(p.x - px));
    return all.map((points) => best(points, (p) => Math.abs(p.x - nearest.x))).filter((p) => Math.abs(p.x - nearest.x) < 14);
  }

  show(found, spoken) {
    if (!found?.length) return this.hide();
    const { spec } = this.owner;
    const x = found[0].at;
    const head = `${spec.xLabel} ${spec.categories ? spec.categories[x] : spec.kind === "scatter" ? number(x, false) : exactly(x)}`;
    const rows = found.slice().sort((a, b) => a.y - b.y).map((p) => [p.line, this.text(p)]);
    this.tip.replaceChildren(el("b", {}, head), ...rows.map(([line, text]) => el("div", {}, el("span", { dir: "auto" }, (line.label ?? line.name).slice(0, 80)), el("span", {}, text))));
    this.tip.hidden = false;
    const px = found[0].x;
    this.guide.setAttribute("x1", px);
    this.guide.setAttribute("x2", px);
    this.guide.setAttribute("visibility", "visible");
    const ratio = this.svg.clientWidth / this.width;
    const room = this.host.clientWidth - this.tip.offsetWidth;
    const wanted = px * ratio + (px > this.width / 2 ? -this.tip.offsetWidth - 14 : 14);
    this.tip.style.transform = `translate(${Math.min(Math.max(0, wanted), Math.max(0, room))}px, ${this.svg.offsetTop + 18}px)`;
    if (spoken) this.owner.said.textContent = `${head}: ${rows.map(([line, text]) => `${(line.label ?? line.name).slice(0, 80)} ${text}`).join("; ")}`;
  }

  text({ line, i }) {
    const limits = line.low && line.low[i] !== null && line.high[i] !== null && line.low[i] !== line.high[i];
    return number(line.y[i], false) + (limits ? ` [${number(line.low[i], false)}, ${number(line.high[i], false)}]` : "");
  }

  hide() {
    this.tip.hidden = true;
    this.guide.setAttribute("visibility", "hidden");
  }

  listen() {
    const at = (event) => {
      const frame = this.svg.getBoundingClientRect();
      return [((event.clientX - frame.left) / frame.width) * this.width, ((event.clientY - frame.top) / frame.height) * this.height];
    };
    let start = null;
    this.svg.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (start) this.drag(start, here);
      else this.show(this.near(...here));
    });
    this.svg.addEventListener("pointerleave", () => this.hide());
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button === 0) start = at(event);
    });
    this.svg.addEventListener("pointercancel", () => {
      start = null;
      this.picked.setAttribute("visibility", "hidden");
    });
    this.svg.addEventListener("pointerup", (event) => {
      const from = start;
      start = null;
      this.picked.setAttribute("visibility", "hidden");
      if (from) this.drop(from, at(event));
    });
    this.svg.addEventListener("dblclick", () => this.owner.zoomTo(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("blur", () => this.hide());
  }

  corners([x0, y0], [x1, y1]) {
    const { box } = this;
    const within = (v, a, b) => Math.min(Math.max(v, a), b);
    const flat = Math.abs(y1 - y0) < 24;
    const xs = [x0, x1].map((v) => within(v, box.left, box.right)).sort((a, b) => a - b);
    const ys = flat ? [box.top, box.bottom] : [y0, y1].map((v) => within(v, box.top, box.bottom)).sort((a, b) => a - b);
    return { xs, ys, flat };
  }

  drag(from, to) {
    const { xs, ys } = this.corners(from, to);
    const shape = { x: xs[0], y: ys[0], width: xs[1] - xs[0], height: ys[1] - ys[0], visibility: "visible" };
    for (const [name, value] of Object.entries(shape)) this.picked.setAttribute(name, value);
  }

  drop(from, to) {
    const { xs, ys, flat } = this.corners(from, to);
    if (xs[1] - xs[0] < 10) return;
    this.owner.zoomTo({ x: xs.map(this.x.value), y: flat ? (this.owner.zoom?.y ?? this.owner.fullY) : [this.y.value(ys[1]), this.y.value(ys[0])] });
  }

  key(event) {
    const { owner } = this;
    const xs = [...new Set(this.lines.flatMap((line) => this.points(line).filter(Boolean).map((p) => p.x)))].sort((a, b) => a - b).filter((x) => x >= this.box.left - 1 && x <= this.box.right + 1);
    if (!xs.length) return;
    const last = xs.length - 1;
    const i = this.cursor ?? -1;
    const to = { ArrowRight: Math.min(last, i + 1), ArrowLeft: Math.max(0, i < 0 ? last : i - 1), Home: 0, End: last }[event.key];
    if (to !== undefined) {
      this.cursor = to;
      this.show(this.near(xs[to], (this.box.top + this.box.bottom) / 2), true);
    } else if (event.key === "+" || event.key === "-") {
      const centre = xs[Math.max(0, i)];
      const half = ((this.box.right - this.box.left) / 2) * (event.key === "+" ? 0.5 : 2);
      if (event.key === "-" && owner.zoom === null) return;
      owner.zoomTo({ x: [this.x.value(centre - half), this.x.value(centre + half)], y: owner.zoom?.y ?? owner.fullY });
    } else if (event.key === "0" || event.key === "Escape") {
      owner.zoomTo(null);
    } else return;
    event.preventDefault();
  }
}
