"""The report's page in headless Chromium: what a reader clicks, points at and sees, at 1,300 pixels and on a phone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.record import Record
from nas.report.report import write_report
from nas.space import Architecture
from nas.trial import Final, Measurement, Trial

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browsed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH (CHROMIUM=… names one)")


def write_run(folder: Path, strategy: str, seed: int, trials: int = 10, done: bool = True) -> None:
    """Trial k has depth 1 + k % 3 and ends at an accuracy of 0.8 + 0.01 k; trial 4 failed."""
    config = {"space": "</script><b>", "dataset": "digits", "strategy": strategy, "seed": seed}
    with Record.create(folder, config, env={}, fsync=False) as record:
        for k in range(trials):
            arch = Architecture(depth=1 + k % 3, norm="a<b" if k % 2 else "layer", rate=0.001 * 2**k)
            record.start(Trial(k, arch, 3, seed=k, params=1000 * (1 + k), macs_per_image=5000 + k))
            if k == 4:
                record.keep_traceback(k, 'File "<space>.py", line 3\nNameError: nam')
                record.end(k, "failed", "NameError: nam (space.py:3)")
                continue
            for budget in range(1, 4):
                accuracy = 0.8 + 0.01 * k - 0.1 * (3 - budget) + 0.001 * seed
                record.measure(k, Measurement(budget, accuracy, 0.1, accuracy, 0.1, 0.5, 1.0, 0.1))
            record.end(k, "completed")
        best = record.run().best
        if done and best is not None:
            record.final(Final(best.arch, 0, 3, best.valid_accuracy - 0.01, 0.1, params=best.params))
            record.done()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for strategy in ("random", "grid"):
        for seed in range(2):
            write_run(folder / f"{strategy}-{seed}", strategy, seed)
    write_report([folder])
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium, url: str, width: int = 1300, scheme: str = "light"):
    """A page that fails the test on an error of its script and on anything fetched from elsewhere."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    own = url.rpartition("/")[0]
    page.on("request", lambda r: None if r.url.startswith((own, "data:")) else problems.append(r.url))
    page.goto(url)
    return page, problems


@browsed
def test_a_reader_sorts_points_clicks_and_filters(report: Path, chromium) -> None:
    page, problems = opened(chromium, report.as_uri())
    assert page.locator("h1").inner_text() == "Architecture search: </script><b> on digits"
    # The first table is sorted by a click on a head, and the other way round by another.
    table = page.locator("table").first
    table.locator("th", has_text="Strategy").click()
    assert table.locator("tbody td:first-child").all_inner_texts() == ["grid", "random"]
    table.locator("th", has_text="Strategy").click()
    assert table.locator("tbody td:first-child").all_inner_texts() == ["random", "grid"]
    assert table.locator("th[aria-sort=descending]").count() == 1
    # All trials are listed, best first, and sorted by their parameters by a click.
    rows = page.locator(".trials tbody tr")
    assert rows.count() == 40
    assert rows.first.locator("td").nth(3).inner_text() == "89.10"
    page.locator(".trials th", has_text="Params").click()
    assert rows.first.locator("td").nth(5).inner_text() == "10 k"
    page.locator(".trials th", has_text="Params").click()
    assert rows.first.locator("td").nth(5).inner_text() == "1 k"
    # Pointing at a point tells architecture, cost and curve; a click opens the trial in the list.
    dot = page.locator('[data-chart=scatter] circle[data-trial="0:7"]')
    dot.scroll_into_view_if_needed()
    page.wait_for_timeout(300)  # a page that scrolls hides what it tells
    dot.hover(force=True)
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    for part in ("trial 7", "depth=2 norm=a<b", "8 k parameters", "4.8 s", "after 3 epochs"):
        assert part in tip.inner_text()
    assert tip.locator("svg path").count() == 1
    dot.click(force=True)
    assert page.locator(".trials td.open").count() == 1
    assert "epoch: valid. % / training %: 1: 67.10 / 67.10" in page.locator(".trials td.open").inner_text()
    # Failed trials are found by what is typed, and show their traceback.
    page.locator("[data-chart=trials] input").fill("failed GRID")
    assert page.locator(".trials tbody tr[data-trial]").count() == 2
    page.locator(".trials tbody tr[data-trial]").first.click()
    assert 'File "<space>.py", line 3' in page.locator(".trials td.open pre").inner_text()
    # What a point lies over is chosen, as is the cost of a search.
    page.locator("[data-chart=scatter] select").select_option("seconds")
    assert "compute of the trial" in page.locator("[data-chart=scatter] svg").text_content()
    page.locator("[data-chart=anytime] select").select_option("wall_seconds")
    assert "wall clock" in page.locator("[data-chart=anytime] svg").text_content()
    # Two seeds have no band, and each its line: 2 rows x (2 seeds + mean).
    assert page.locator("[data-chart=anytime] svg path").count() == 6
    assert "below 50" in page.locator("[data-chart=importance] .warning").inner_text()
    assert page.locator("[data-chart=curves] path[data-trial]").count() == 36
    assert problems == []


@browsed
def test_trials_are_kept_by_a_part_of_an_axis(report: Path, chromium) -> None:
    page, problems = opened(chromium, report.as_uri())
    plot = page.locator("[data-chart=parallel]")
    assert plot.locator("path[data-kept=true]").count() == 36
    plot.scroll_into_view_if_needed()
    box = plot.locator('rect[data-axis="depth"]').bounding_box()
    x, top = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(x, top + 1)  # depth=3 is at the top
    page.mouse.down()
    page.mouse.move(x, top + 0.25 * box["height"])
    page.mouse.up()
    assert plot.locator("path[data-kept=true]").count() == 12
    assert "12 of 36 trials" in plot.inner_text()
    plot.locator("button").click()
    assert plot.locator("path[data-kept=true]").count() == 36
    assert problems == []


@browsed
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_nothing_is_cut_off_and_no_labels_overlap(report: Path, chromium, width: int, scheme: str) -> None:
    page, problems = opened(chromium, report.as_uri(), width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(
        "[...document.querySelectorAll('.wide')].map((e) => [e.scrollWidth, e.clientWidth])"
    )
    assert len(boxes) >= 5
    if width == 1300:
        assert all(needed <= given for needed, given in boxes)
    overlaps = """[...document.querySelectorAll('svg')].flatMap((svg) => ['ytick', 'xtick'].map((kind) => {
        const of = [...svg.querySelectorAll('.' + kind)].map((t) => t.getBoundingClientRect());
        return of.some((a, i) => of.some((b, k) => k > i && a.left < b.right && b.left < a.right &&
            a.top + 2 < b.bottom && b.top + 2 < a.bottom));
    }))"""
    assert not any(page.evaluate(overlaps))
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(23, 24, 27)")
    assert problems == []


class Watched:
    """A `report.py --watch` of a folder, ended by Ctrl-C."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "report.py"), str(folder), "--watch"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[0]

    def get(self, path: str = "", host: str | None = None) -> str:
        request = urllib.request.Request(self.url + path, headers={} if host is None else {"Host": host})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def end(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        said, errors = self.process.communicate(timeout=30)
        return self.process.returncode, said, errors


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "runs").mkdir()
    process = Watched(tmp_path / "runs")
    yield process
    process.process.kill()
    process.process.communicate()


def test_a_running_search_is_watched_on_loopback_until_ctrl_c(watched: Watched, tmp_path: Path) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends\)\n", watched.line)
    assert "no run folder in it" in watched.get()
    before = watched.get("version")
    write_run(tmp_path / "runs" / "a", "random", 0, trials=3, done=False)
    assert watched.get("version") != before
    assert "3 trials so far" in watched.get()
    assert not (tmp_path / "runs" / "report.html").exists()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        watched.get(host="evil.example")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        watched.get("../etc/passwd")
    assert watched.end() == (0, "no longer watched\n", "")


@browsed
def test_a_watched_page_shows_what_is_new_and_keeps_what_was_sorted(
    watched: Watched, tmp_path: Path, chromium
) -> None:
    write_run(tmp_path / "runs" / "a", "random", 0, trials=3, done=False)
    page, problems = opened(chromium, watched.url)
    assert page.locator(".trials tbody tr").count() == 3
    page.locator(".trials th", has_text="Trial").click()
    time.sleep(0.5)
    write_run(tmp_path / "runs" / "b", "grid", 0, trials=3)
    page.wait_for_function("document.querySelectorAll('.trials tbody tr').length === 6", timeout=20_000)
    assert page.locator(".trials th[aria-sort=ascending]").inner_text().startswith("Trial")
    assert problems == []
