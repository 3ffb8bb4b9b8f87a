"""The page in a real browser: it renders, sorts and filters, and asks nobody for anything."""

import contextlib
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest
from fake_reports import write_scored

from unidiff_jax.evals import report
from unidiff_jax.evals.published import published_values

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium")

# Goes to the end of a copy of the page: uses it as a reader would, and writes down what it saw.
PROBE = """
<script>
addEventListener("load", () => {
  const seen = { violations: [] };
  addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.blockedURI));
  const rows = (table) => [...document.querySelectorAll("[data-board]")[table]
    .querySelectorAll("tbody:not([hidden]) [data-row]:not([hidden])")].map((row) => ({
      protocol: row.closest("tbody").dataset.protocol,
      metric: row.closest("tbody").querySelector("th").textContent,
      ...row.dataset, seen: row.offsetHeight > 0,
    }));
  const click = (name) => document.querySelector(`[data-sort="${name}"]`).click();
  const choose = (name, value) => {
    const select = document.querySelector(`[data-filter="${name}"]`);
    select.value = value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  };
  seen.start = rows(0);
  seen.images = [...document.images].map((image) => [image.naturalWidth, image.naturalHeight]);
  click("value"); seen.ascending = rows(0);
  click("value"); seen.descending = rows(0);
  seen.order = document.querySelector('th:has([data-sort="value"])').getAttribute("aria-sort");
  choose("encoder", "clip-vit-l-14"); seen.encoder = rows(0);
  const notes = () => [...document.querySelectorAll("[data-notes]")].filter((n) => n.offsetHeight);
  seen.notes = [notes().length];
  choose("encoder", ""); choose("badge", "published"); seen.badge = rows(0);
  choose("protocol", "gedit_bench/en/fullset"); seen.protocol = rows(0);
  seen.hash = location.hash;
  seen.count = document.querySelector("output").textContent;
  document.querySelector('[type="reset"]').click(); seen.reset = rows(0);
  seen.notes.push(notes().length);
  seen.miniature = rows(1);
  seen.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>
"""


@contextlib.contextmanager
def serve(folder):
    """Address of a server of the folder: what a browser loads from it, its own log can show."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def browse(address, *, profile, log):
    """The DOM after the page's scripts have run; the browser's network log goes to `log`."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--disable-default-apps", "--no-default-browser-check"),
        *("--window-size=1400,1000", "--virtual-time-budget=10000"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
        f"--log-net-log={log}",
        address,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def requests_of_page(log, *, root):
    """What pages under `root` asked for; the browser's own errands have another initiator."""
    events = json.loads(log.read_text())["events"]
    params = [event.get("params", {}) for event in events]
    return {p["url"] for p in params if p.get("initiator") == root.rstrip("/") and "url" in p}


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """What the probe saw, and the addresses that the browser was asked for."""
    folder = tmp_path_factory.mktemp("report")
    write_scored(folder)
    page = report.build_report(folder)
    probed = folder / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    profile, log = tmp_path_factory.mktemp("profile"), folder / "net.json"
    with serve(folder) as root:
        dom = browse(root + "probed.html", profile=profile, log=log)
        seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)[1]))
        again = browse(root + "index.html" + seen["hash"], profile=profile, log=folder / "2.json")
        (folder / "control.html").write_text("<img src=x.png>")
        browse(root + "control.html", profile=profile, log=folder / "3.json")
    control = requests_of_page(folder / "3.json", root=root)
    asked = requests_of_page(log, root=root)
    return {**seen, "asked": asked, "control": control, "root": root, "again": again}


def test_it_renders_and_its_pictures_load(visit):
    assert len(visit["images"]) == 2 * 16 * 3
    assert all(width == height == 8 for width, height in visit["images"])
    assert visit["start"] and all(row["seen"] for row in visit["start"])
    kinds = {row["kind"] for row in visit["start"]}
    assert kinds == {"this run", "no model", "published"}
    content, window = visit["width"]
    assert content <= window, "the page scrolls sideways"


def by_metric(rows):
    groups = {}
    for row in rows:
        groups.setdefault((row["protocol"], row["metric"]), []).append(float(row["value"]))
    return groups


def test_sorting(visit):
    start, up, down = (by_metric(visit[name]) for name in ("start", "ascending", "descending"))
    assert list(start) == list(up) == list(down)
    assert start != up
    for key, values in start.items():
        assert up[key] == sorted(values)
        assert down[key] == sorted(values, reverse=True)
    assert visit["order"] == "descending"


def test_filters(visit):
    assert {row["encoder"] for row in visit["encoder"]} == {"clip-vit-l-14"}
    assert {row["kind"] for row in visit["encoder"]} == {"this run", "no model"}
    assert {row["badge"] for row in visit["badge"]} == {"published"}
    assert len({row["protocol"] for row in visit["badge"]}) > 1
    assert {row["protocol"] for row in visit["protocol"]} == {"gedit_bench/en/fullset"}
    values = published_values("gedit_bench", "overall")
    assert sorted(row["method"] for row in visit["protocol"]) == sorted(v.method for v in values)
    assert visit["count"] == f"{len(values)} of {len(visit['start'])} rows"
    assert visit["reset"] == visit["start"]
    without_papers, with_papers = visit["notes"]
    assert without_papers == 0 < with_papers


def test_a_miniature_stands_alone(visit):
    assert {row["badge"] for row in visit["miniature"]} == {"miniature"}
    assert "miniature" not in {row["badge"] for row in visit["start"]}


def test_nothing_is_fetched(visit):
    assert visit["violations"] == []
    assert all(name.startswith("data:") for name in visit["resources"])
    assert visit["asked"] == set()
    assert visit["root"] + "x.png" in visit["control"], "the log does not show what a page asks for"


def test_the_address_keeps_the_choices(visit):
    assert re.search(r"<output>8 of \d+ rows</output>", visit["again"])
    assert 'aria-sort="descending"' in visit["again"]
