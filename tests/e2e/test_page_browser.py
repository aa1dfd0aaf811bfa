"""The page as a reader meets it: opened from the disk in a real browser."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.export import site
from bench.report import render
from bench.report.large import load
from bench.results.environment import fingerprint_id
from helpers.synthetic import ENV, Synthetic, measured, nll_series, record, sinks_run, write_run
from helpers.tuned import Tuned, tuned_run

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "'\"><img src=x onerror=\"document.title = 'owned'\">",
    "</script><script>document.title = 'owned'</script>",
    "\u202eright to left\u202c",
    "{{ 7 * 7 }} ${7 * 7} javascript:alert(1)",
    "name " * 2000,
)
PUBLISHED = [
    {"model": "another", "policy": "dense", "length": n, "metric": "latency", "value": 30.0 + n / 1000,
     "source": "Table 7"}
    for n in (1024, 4096, 16384)
]  # fmt: skip


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "sinks"
    render(sinks_run(folder), Synthetic(rows=PUBLISHED))  # type: ignore[arg-type]
    return folder / "index.html"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "tuned"
    render(tuned_run(folder), Tuned())  # type: ignore[arg-type]
    return folder / "index.html"


def _column(table: Any, number: int) -> list[str]:
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_every_section_and_chart_is_there(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    links = page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert {"#charts", "#results", "#cells", "#failures", "#asked", "#downloads"} <= set(links)
    assert all(page.locator(link).count() == 1 for link in links)
    charts = page.locator("[data-chart]")
    assert charts.count() == 5  # one view has no value anywhere and says so
    assert page.locator("[data-chart] svg[role=img]").count() == 4
    assert page.locator("[data-chart] .grid table").count() == 1
    assert "no GPU" in page.locator("#charts > details").text_content()
    for place in range(4):
        paths = page.locator("[data-chart] .panels").nth(place).locator("path.line")
        assert paths.count() >= 1
        assert all(len(d) > 10 for d in paths.evaluate_all("ps => ps.map(p => p.getAttribute('d'))"))
    assert page.locator(".chart .static img").count() == 5


def test_hovering_names_values_with_their_intervals(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    panel = page.locator("#view-latency .panel").first
    panel.scroll_into_view_if_needed()
    box = panel.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] / 2)
    tip = panel.locator(".tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert "32,768" in text
    assert "sink 4+1020" in text
    assert re.search(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]", text)
    assert "dense" not in text  # out of memory there
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_a_logarithmic_axis_can_be_switched(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    before = chart.locator("svg[role=img] text").all_text_contents()
    path = chart.locator(".panels path.line").first.get_attribute("d")
    chart.get_by_label("log y").check()
    assert chart.locator("svg[role=img] text").all_text_contents() != before
    assert chart.locator(".panels path.line").first.get_attribute("d") != path
    chart.get_by_label("log y").uncheck()
    assert chart.locator(".panels path.line").first.get_attribute("d") == path


def test_a_series_is_hidden_by_its_legend(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    lines = chart.locator(".panels path.line").count()
    button = chart.locator(".legend button", has_text="window 512")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert chart.locator(".panels path.line").count() == lines - 1
    button.press("Enter")  # the focus stayed on it
    assert chart.locator(".panels path.line").count() == lines


def test_dragging_zooms_and_reset_undoes_it(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    reset = chart.get_by_role("button", name="Reset zoom")
    assert reset.is_disabled()
    whole = chart.locator(".panels path.line").first.get_attribute("d")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg[role=img]").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, middle + 4, steps=4)
    assert chart.locator("rect.select").get_attribute("visibility") == "visible"
    page.mouse.up()
    assert chart.locator(".panels path.line").first.get_attribute("d") != whole
    reset.click()
    assert chart.locator(".panels path.line").first.get_attribute("d") == whole


def test_charts_work_by_keyboard_and_are_read_out(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    drawing = chart.locator("svg[role=img]")
    assert "latency per token" in drawing.get_attribute("aria-label")
    drawing.focus()
    page.keyboard.press("End")
    said = chart.locator("p[role=status]")
    assert "32,768" in said.text_content()
    page.keyboard.press("ArrowLeft")
    assert "16,384" in said.text_content()
    assert "dense" in said.text_content()
    whole = chart.locator(".panels path.line").first.get_attribute("d")
    page.keyboard.press("+")
    assert chart.locator(".panels path.line").first.get_attribute("d") != whole
    page.keyboard.press("0")
    assert chart.locator(".panels path.line").first.get_attribute("d") == whole


def test_values_of_a_chart_are_a_table_too(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    chart.locator("summary", has_text="Values as a table").click()
    heads = chart.locator("details table thead").first.inner_text()
    assert "series" in heads
    assert "low" in heads
    assert "high" in heads


def test_a_published_curve_is_laid_over_and_says_what_it_is(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    chart = page.locator("#view-latency")
    choose = chart.get_by_label("Lay a published curve over ours")
    assert chart.locator("path.line.published").count() == 0
    choose.select_option(index=1)
    assert chart.locator(".panels path.line.published").count() == 1
    legend = chart.locator(".legend").inner_text()
    assert "published, not measured: another · dense (Table 7)" in legend


def test_tables_sort_by_number_and_by_text(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    table = page.locator("#cell-table")
    heads = [re.sub(r"[\s↕▲▼]+$", "", t) for t in table.locator("thead th").all_inner_texts()]
    place = heads.index("length") + 1
    button = table.locator("thead button", has_text="length")
    button.click()
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("length")
    numbers = [int(t.replace(",", "")) for t in _column(table, place)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == 32768
    assert min(numbers) < 10_000
    button.click()
    numbers = [int(t.replace(",", "")) for t in _column(table, place)]
    assert numbers == sorted(numbers)
    button.click()
    assert table.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 0
    table.locator("thead button", has_text="policy").click()
    names = _column(table, heads.index("policy") + 1)
    assert names == sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])


def test_both_tables_write_settings_in_full_and_round_alike(tab: Any, tmp_path: Path) -> None:
    """Settings that differ in the fifth digit read alike; 8,000 bytes were 7.812 KiB here and 7.813 there."""
    cache = {"cache": {"value": 8000, "unit": "bytes"}}
    records = [record("dense", 1024, params={"rate": rate}, metrics=cache) for rate in (1.00001, 1.00002)]
    folder = write_run(tmp_path / "synthetic" / "run", records)
    render(folder, Synthetic())  # type: ignore[arg-type]
    page = tab().open(folder / "index.html")
    for where in ("#results", "#cells"):
        texts = page.locator(f"{where} tbody tr").all_inner_texts()
        assert [rate in row for rate, row in zip(("1.00001", "1.00002"), texts, strict=True)] == [True, True]
        assert all("7.812" in row for row in texts), where


def test_missing_values_sort_last_and_carry_their_reason(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    table = page.locator("#cell-table")
    heads = table.locator("thead th").all_inner_texts()
    place = next(i for i, text in enumerate(heads, 1) if text.startswith("latency"))
    for _ in range(2):
        table.locator("thead button", has_text="latency").click()
        assert re.match("–", _column(table, place)[-1])
    oom = table.locator("tbody tr", has_text="oom").first
    mark = oom.locator("sup").first.inner_text()
    assert "OutOfMemoryError" in table.locator(".notes li", has_text=f"{mark} ").first.inner_text()


def test_tables_filter_by_words_and_by_choice(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    table = page.locator("#cell-table")
    rows = table.locator("tbody tr")
    table.get_by_label("Filter All cells").fill("sink 4 1020")
    assert 0 < rows.count() < 10
    assert all("sink 4+1020" in text for text in rows.all_inner_texts())
    table.get_by_label("Filter All cells").fill("no such thing")
    assert rows.count() == 0
    assert "No row matches" in table.inner_text()
    assert "0 of 33 rows" in table.locator("span[role=status]").inner_text()
    table.get_by_label("Filter All cells").fill("")
    table.get_by_label("Only status").select_option("oom")
    assert rows.count() == 1
    assert "dense" in rows.inner_text()


def test_all_metrics_can_be_shown(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    table = page.locator("#cell-table")
    few = table.locator("thead th").count()
    table.get_by_label("all metrics").check()
    assert table.locator("thead th").count() > few


def test_a_cell_opens_with_all_that_is_known_and_closes(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    first = page.locator("#cell-table tbody button").first
    first.click()
    dialog = page.locator("dialog#cell")
    assert dialog.is_visible()
    text = dialog.inner_text()
    for word in ("Parameters", "Metrics", "Environment", "Synthetic CPU @ 2 GHz", "2.13.0", "no GPU"):
        assert word in text
    assert "must-not-appear" not in text
    command = dialog.locator("pre code").inner_text()
    assert command.startswith("git checkout " + "f" * 40 + "\n")
    assert "python -m bench suites/synthetic.yaml --only 'dense @ 1024' --new" in command
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert first.evaluate("node => node === document.activeElement")


def test_downloads_hold_the_cells(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Cells as CSV").click()
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert len(lines) == 34
    assert lines[0].startswith("run,cell,label,status")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Cells as JSON").click()
    assert '"metric.latency"' in Path(waiting.value.path()).read_text()
    page.locator("#cell-table").get_by_label("Filter All cells").fill("window 512")
    with page.expect_download() as waiting:
        page.locator("#cell-table").get_by_role("button", name="These rows as CSV").click()
    assert len(Path(waiting.value.path()).read_text().splitlines()) == 7


def test_the_slider_walks_through_the_pictures(tab: Any, tuned: Path) -> None:
    page = tab().open(tuned)
    sheets = page.locator(".sheet")
    assert sheets.count() == 2
    first, second = sheets.nth(0), sheets.nth(1)
    base, image = (first.locator("img").nth(i) for i in (0, 1))
    last, start = image.get_attribute("src"), base.get_attribute("src")
    assert last != start
    assert "100" in first.locator("output").inner_text()
    slider = first.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "50" in first.locator("output").inner_text()
    assert image.get_attribute("src") != last
    assert "50" in slider.get_attribute("aria-valuetext")
    assert "50" in second.locator("output").inner_text()  # both move together
    page.get_by_label("move all rows together").uncheck()
    slider.focus()
    page.keyboard.press("Home")
    assert image.get_attribute("src") == start
    assert "50" in second.locator("output").inner_text()
    assert image.evaluate("node => node.naturalWidth") == 128


def test_matrix_path_and_trace_are_drawn(tab: Any, tuned: Path) -> None:
    page = tab().open(tuned)
    grid = page.locator("#view-matrix .grid table")
    assert grid.locator("tbody tr").count() == 2
    assert "2.000" in grid.locator("tbody tr").first.inner_text()
    assert "−1.250" in grid.inner_text()
    assert page.locator("#view-paths path.line").count() >= 2
    assert page.locator("#view-training path.line").count() >= 2
    memory = page.locator("#memory").inner_text()
    assert "measured / predicted" in memory
    assert "no GPU" in memory


def test_hostile_names_are_inert(tab: Any, tmp_path: Path) -> None:
    records = []
    for i, name in enumerate(HOSTILE):
        made = measured("dense", 1024 + i, params={"policy": name}, label=name, columns={"policy": name})
        records.append(made | {"conformance": {name[:50]: name}})
    records.append(record("dense", 99, status="error", reason=HOSTILE[1]))
    suite = {"description": HOSTILE[2], "suite": HOSTILE[0]}
    env = {"id": "0123456789ab", "cpu": {"model": HOSTILE[1]}, "packages": {"torch": HOSTILE[2]}}
    folder = write_run(tmp_path / "run", records, suite=suite, env=env)
    render(folder, Synthetic())  # type: ignore[arg-type]
    view = tab()
    page = view.open(folder / "index.html")
    for button in page.locator("#cell-table tbody button").all():
        button.click()
        page.keyboard.press("Escape")
    page.locator("#view-latency svg[role=img]").hover()
    for summary in page.locator("summary").all():
        summary.click()
    assert page.title() != "owned"
    assert page.locator("img[onerror], img[src=x]").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert HOSTILE[0] in page.locator("h1").inner_text()


def test_ten_thousand_records_stay_usable(tab: Any, tmp_path: Path) -> None:
    """Drawing is bounded in CPU time; how fast the page answers is printed (pytest -s)."""
    records, text = [], nll_series("dense", 1024)
    for i in range(10_000):  # 10 policies, 25 lengths, 40 books
        policy, length, book = f"sink 4+{508 + i % 10}", 1024 * (1 + i // 10 % 25), i // 250
        made = measured(
            policy,
            1024,
            text,
            params={"length": length, "corpus": f"book {book}"},
            columns={"length": length, "corpus": f"book {book}"},
        )
        made["metrics"]["latency"].pop("samples")
        records.append(made | {"cell": f"c{i}", "label": f"{policy} @ {length}, book {book}"})
    folder = write_run(tmp_path / "run", records, suite={"compare": None})
    begin = time.process_time()  # of this process: whatever else the machine is doing
    render(folder, Synthetic())  # type: ignore[arg-type]
    spent = time.process_time() - begin
    print(f"10,000 records drawn in {spent:.1f} CPU seconds")
    assert spent < 30
    assert (folder / "index.html").stat().st_size < 12 * 2**20
    view = tab()
    begin = time.monotonic()
    page = view.open(folder / "index.html")
    print(f"opened in {time.monotonic() - begin:.2f} s")
    table = page.locator("#cell-table")
    assert table.locator("tbody tr").count() == 50
    assert "10,000 rows" in table.locator("span[role=status]").inner_text()

    def answer(what: str, selector: str, event: str, value: str = "") -> None:
        """Print how long the page's script takes for one step of the reader."""
        script = """([host, selector, event, value]) => {
            const node = host.querySelector(selector);
            if (event !== "click") node.value = value;
            const begin = performance.now();
            event === "click" ? node.click() : node.dispatchEvent(new Event(event));
            document.body.getBoundingClientRect();  // and until it is laid out
            return performance.now() - begin;
        }"""
        took = page.evaluate(script, [table.element_handle(), selector, event, value])
        print(f"{what}: {took:.0f} ms")

    place = table.locator("thead button").all_inner_texts().index("length")
    answer("sort", f'[data-column="{place}"]', "click")
    assert "25,600" in table.locator("tbody tr").first.inner_text()
    answer("first filter", "input[type=search]", "input", "book")
    assert "10,000 rows" in table.locator("span[role=status]").inner_text()
    answer("filter", "input[type=search]", "input", "book 17")
    answer("choice", "select[aria-label='Only corpus']", "change", "book 17")
    answer("filter", "input[type=search]", "input", "book")
    assert "rows 1 to 50 of 250" in table.inner_text()
    table.get_by_role("button", name="Last").click()
    assert "rows 201 to 250 of 250" in table.inner_text()


def test_a_comparison_is_sorted_by_verdict_and_can_be_filtered(tab: Any, tmp_path: Path) -> None:
    folders = []
    for name, change in (("old", 0.0), ("new", 0.25)):
        text = nll_series("dense", 1024) + np.float32(change)
        env = {key: ENV[key] for key in ("python", "packages", "cpu", "gpus")}
        env |= {"id": fingerprint_id(env)}
        made = [measured("dense", n, text) | {"env": env["id"]} for n in (256, 512, 1024)]
        made.append(record("dense", 2048, status="oom", reason="9 GiB"))
        folders.append(write_run(tmp_path / name, made, env=env))
    render(folders[1], Synthetic(views=()), folders[0])  # type: ignore[arg-type]
    page = tab().open(folders[1] / "index.html")
    assert page.locator(".cards .regressed").inner_text() != "0"
    table = page.locator("[data-table=comparison]")
    verdicts = _column(table, 3)
    assert verdicts[0].startswith("regressed")
    assert verdicts[-1].startswith("pass")
    table.get_by_label("Only verdict").select_option("regressed")
    assert {v[:9] for v in _column(table, 3)} == {"regressed"}
    runs = page.locator("#cell-table").get_by_label("Only run")
    assert runs.locator("option").all_inner_texts() == ["all", "new", "old"]


def test_a_site_of_runs_opens_from_the_disk(browser: Any, tmp_path: Path) -> None:
    folder = sinks_run(tmp_path / "run", (512, 1024), oom_at=None)
    site.add(folder, tmp_path / "site")
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.get_by_role("link", name="20260101-000000-abcdef").click()
    page.wait_for_selector("html[data-ready=yes]")
    assert page.locator("h1").inner_text() == "synthetic"
    assert errors == []
    page.close()


@pytest.mark.parametrize("which", ["sinks", "tuned"])
def test_axe_finds_no_barrier(tab: Any, which: str, request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

    def violations(rules: list[str], context: str | None = None) -> list[str]:
        found = axe.Axe().run(page, context=context, options={"runOnly": rules}).response["violations"]
        return [f"{v['id']}: {n['html'][:200]}" for v in found for n in v["nodes"][:3]]

    page = tab(color_scheme="light").open(request.getfixturevalue(which))
    assert violations(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]) == []
    for _ in range(2):  # auto, light, dark
        page.locator("#theme").click()
    assert violations(["color-contrast"]) == []
    page.locator("#cell-table tbody button").first.click()
    assert violations(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "dialog") == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(tab: Any, sinks: Path, tuned: Path, width: int) -> None:
    for path in (sinks, tuned):
        page = tab(width=width).open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light_can_be_chosen(tab: Any, sinks: Path) -> None:
    page = tab(color_scheme="dark").open(sinks)
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(15, 20, 25)"
    page.get_by_role("button", name="Theme").click()
    assert page.get_by_role("button", name="Theme").inner_text() == "Theme: light"
    assert page.evaluate(back) == "rgb(255, 255, 255)"


def test_it_prints_light_and_without_controls(tab: Any, sinks: Path, tmp_path: Path) -> None:
    page = tab(color_scheme="dark").open(sinks)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.locator(".bar").first.is_visible()
    assert page.locator("#view-latency svg[role=img]").is_visible()
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3


def test_the_keyboard_reaches_everything(tab: Any, sinks: Path) -> None:
    page = tab().open(sinks)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    unreachable = page.evaluate(
        "[...document.querySelectorAll('button, select, input, a, summary, svg[role=img], .scroll')]"
        ".filter(n => n.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_without_javascript_pictures_machine_and_commands_are_there(browser: Any, sinks: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(sinks.as_uri())
    assert "need JavaScript" in page.locator("main").inner_text()
    assert page.locator(".static img").count() == 5
    assert "Synthetic CPU" in page.locator("#asked").inner_text()
    context.close()


def test_a_page_of_some_cells_says_which(tab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_CELLS", 50)
    monkeypatch.setattr(load, "CHOSEN_CELLS", 20)
    policies = ("dense", "window 512", "sink 4+508", "sink 4+1020", "window 1024")
    records = [measured(policy, 512 * n) for policy in policies for n in range(1, 13)]
    render(write_run(tmp_path / "run", records), Synthetic())  # type: ignore[arg-type]
    page = tab().open(tmp_path / "run" / "index.html")
    said = "20 of 60 cells are drawn (4 of 12 values of length, evenly spaced)"
    assert said in page.locator("main > p").first.inner_text()
    assert page.locator(".cards strong").first.inner_text() == "60 of 60"
    assert "20 rows" in page.locator("#cell-table span[role=status]").inner_text()
    assert (
        page.locator("#cells h2").inner_text()
        == page.locator("nav a[href='#cells']").inner_text()
        == "Cells drawn"
    )
    charts = page.locator("#charts article")
    drawn = [chart.inner_text() for chart in charts.all() if chart.locator("svg[role=img]").count()]
    assert drawn
    assert all(said in text for text in drawn)
