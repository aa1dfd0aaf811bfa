/* Put everything in its place. What cannot be drawn says so and leaves the rest of the page alone. */

function place(selector, draw) {
  for (const host of document.querySelectorAll(selector)) {
    try {
      draw(host);
    } catch (error) {
      host.append(el("p", { class: "bad" }, `This part could not be drawn: ${error.message}`));
      console.error(error);
    }
  }
}

const THEMES = ["auto", "light", "dark"];
const darkSystem = matchMedia("(prefers-color-scheme: dark)");

function theme(wanted) {
  const dark = wanted === "dark" || (wanted === "auto" && darkSystem.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${wanted}`;
}

function themes() {
  let wanted = "auto";
  try {
    wanted = localStorage.getItem("theme") ?? "auto";
  } catch {
    /* a page without storage still has a theme */
  }
  if (!THEMES.includes(wanted)) wanted = "auto";
  theme(wanted);
  darkSystem.addEventListener("change", () => theme(wanted));
  document.getElementById("theme").addEventListener("click", () => {
    wanted = THEMES[(THEMES.indexOf(wanted) + 1) % THEMES.length];
    theme(wanted);
    try {
      localStorage.setItem("theme", wanted);
    } catch {
      /* not remembered */
    }
  });
}

function downloads() {
  document.getElementById("get-csv").addEventListener("click", () => {
    const { heads, rows } = allCells();
    save("cells.csv", csv([heads, ...rows]), "text/csv");
  });
  document.getElementById("get-json").addEventListener("click", () => {
    const { heads, rows } = allCells();
    const cells = rows.map((row) => Object.fromEntries(row.map((value, i) => [heads[i], value])));
    save("cells.json", JSON.stringify(cells, null, 1), "application/json");
  });
}

themes();
place("[data-chart]", (host) => chart(host, DATA.charts[host.dataset.chart]));
place("[data-sheet]", (host) => sheet(host, DATA.sheets[host.dataset.sheet]));
place("[data-table]", (host) => ready(host, host.dataset.table));
place("#cell-table", cellTable);
place("#downloads", downloads);
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")].filter((details) => !details.dataset.lazy);
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
document.documentElement.dataset.ready = "yes";
