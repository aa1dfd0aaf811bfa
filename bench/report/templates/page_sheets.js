/* Picture sheets: the first one of a row (the base) beside the one that the slider has reached. */

function sheet(host, spec) {
  const rows = [];
  let together = true;
  const move = (value) => {
    for (const row of rows) {
      const gaps = row.frames.map((frame) => Math.abs(frame.x - value));
      row.show(gaps.indexOf(Math.min(...gaps)));
    }
  };
  if (spec.rows.length > 1) {
    const flip = (event) => (together = event.target.checked);
    host.append(el("p", { class: "bar" }, el("label", {}, el("input", { type: "checkbox", checked: true, onchange: flip }), "move all rows together")));
  }
  for (const row of spec.rows) rows.push(sheetRow(host, spec, row, (value) => together && move(value)));
  for (const note of spec.notes) host.append(el("p", { class: "soft small" }, note));
}

function sheetRow(host, spec, { name, frames }, moved) {
  const last = frames.length - 1;
  const source = (i) => spec.pictures[frames[i].picture];
  const words = (i) => `${name}, ${spec.xLabel} ${number(frames[i].x)}`;
  const base = el("figure", {}, el("img", { src: source(0), alt: `Pictures of ${words(0)}` }), el("figcaption", { class: "small soft" }, `${spec.xLabel} ${number(frames[0].x)}`));
  const image = el("img", { src: source(last), alt: `Pictures of ${words(last)}` });
  const caption = el("figcaption", { class: "small soft" });
  const slider = el("input", { type: "range", min: 0, max: last, step: 1, value: last, "aria-label": `${spec.xLabel}, ${name}` });
  const output = el("output", { class: "small" });
  const show = (i) => {
    slider.value = i;
    slider.setAttribute("aria-valuetext", `${spec.xLabel} ${number(frames[i].x)}`);
    image.src = source(i);
    image.alt = `Pictures of ${words(i)}`;
    caption.textContent = output.textContent = `${spec.xLabel} ${number(frames[i].x)}`;
  };
  slider.addEventListener("input", () => {
    const i = Number(slider.value);
    show(i);
    moved(frames[i].x);
  });
  const tuned = el("figure", {}, image, caption);
  const bar = el("div", { class: "bar" }, slider, output);
  host.append(el("div", { class: "sheet" }, el("h4", { dir: "auto" }, clipped(name)), ...(last ? [bar] : []), el("div", { class: "pair" }, ...(last ? [base, tuned] : [tuned]))));
  show(last);
  return { frames, show };
}
