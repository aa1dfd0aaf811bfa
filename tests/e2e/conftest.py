"""A real Chromium for pages. Where none is to be had, tests say so and are skipped.

On a CI machine (``CI`` set, running as root, with apt-get) the Debian package is installed once; nobody
else's machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """Path of a Chromium: $CHROMIUM, one on the PATH, or (in CI, as root) Debian's, freshly installed."""
    wanted = os.environ.get("CHROMIUM")
    found = wanted or next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 540}
        install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        try:
            subprocess.run(["apt-get", "update"], check=True, **quiet)
            subprocess.run(
                install, check=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet
            )
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no Chromium here, and it could not be installed: {error}")
        found = shutil.which("chromium")
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium, or set CHROMIUM to its path")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for the session."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Tab:
    """A tab that remembers what went wrong in it and what it asked for."""

    def __init__(self, browser: Any, width: int = 1280, height: int = 900, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.errors.append(m.text))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog opened"), dialog.dismiss()))
        self.context.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> Any:
        """Open a page from the disk and wait until its script is done."""
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")
        return self.page

    def clean(self) -> None:
        """Nothing went wrong, and nothing but the page itself was asked for."""
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("data:", "blob:"))][1:] == []


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """Makes tabs: ``tab(width=…)``. At the end none may have complained or asked for anything."""
    tabs: list[Tab] = []

    def make(**options: Any) -> Tab:
        tabs.append(Tab(browser, **options))
        return tabs[-1]

    yield make
    for made in tabs:
        made.clean()
        made.context.close()
