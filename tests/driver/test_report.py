"""The report of a run: its numbers, its pictures, and its page in a browser that may ask nobody for anything."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
import train
from driver import charts, pictures, report
from driver.controls import CONTROLS
from driver.explained import packed
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.driver.cases import answers

TINY = {"epochs": 2, "train-images": 32, "val-images": 10, "test-images": 60, "warmup": 1, "device": "cpu"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny comparison over two seeds."""
    path = tmp_path_factory.mktemp("report") / "run"
    tiny = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    flags = ["--compare", "--seeds", "2", "--faithfulness", "10", "--no-progress", "--output", str(path)]
    assert train.main(flags + tiny) == 0
    return path


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


class Links(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                self.found.append(value)
                if tag == "img":
                    self.images.append(value)


def test_page_asks_for_nothing(page):
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", page)


def test_page_shows_every_method_twin_class_measure_and_setting(page, folder):
    summary = json.loads((folder / "summary.json").read_text())
    links = Links()
    links.feed(page)
    looks = 10
    assert len(links.images) == looks * 2 * (1 + len(summary))
    for column in summary.values():
        assert column["title"] in page
        assert len(column["classes"]) == 10
    assert "; ".join(control.title for control in CONTROLS.values()) in page
    for title in ("Content Heatmap (CH)", "insertion AUC", "consistency", "of the baseline, as sharp", "dead heatmaps"):
        assert title in page
    for name in ("batch-size", "consistency", "train-images", "faithfulness"):
        assert f"<dt>{name}</dt>" in page
    assert page.count("in the box</span>") + page.count(">dead</span>") >= looks * len(summary)
    assert "nan" not in re.sub(r"data:image/[^\"]*", "", page).lower().replace("isnan", "")


def test_inlined_pictures_are_whole(page):
    links = Links()
    links.feed(page)
    for source in links.images[:8]:
        kind, text = source.split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(text, validate=True)[-2:] == b"\xff\xd9"


def run_chromium(tmp_path, *more):
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def seen_by_chromium(page, tmp_path):
    """What a browser sees of a page, and its log.

    A probe appended to the page writes into its body what it saw when all had loaded; a policy forbids every address
    but those inside the page, and a breach of it is an error on the console.
    """
    policy = (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
    )
    probe = """<script>
addEventListener("load", () => {
  document.querySelector("button.sort").click();
  const images = [...document.images];
  const seen = {
    images: images.length,
    loaded: images.filter((image) => image.complete && image.naturalWidth > 0).length,
    requests: performance.getEntriesByType("resource").map((one) => one.name).filter((name) => !/^data:/.test(name)),
    charts: [...document.querySelectorAll("svg.chart")].filter((one) => one.getBoundingClientRect().height > 20).length,
    wide: document.documentElement.scrollWidth > innerWidth,
    sorted: document.querySelector("th[aria-sort]") !== null,
    errors: window.problems,
  };
  document.body.innerHTML = "<pre id=seen>" + JSON.stringify(seen) + "</pre>";
});
</script>"""
    catcher = """<script>
window.problems = [];
addEventListener("error", (event) => window.problems.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", (event) => window.problems.push(event.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => window.problems.push(words.join(" "));
</script>"""
    path = tmp_path / "page.html"
    path.write_text(page.replace('<meta charset="utf-8">', '<meta charset="utf-8">' + policy + catcher) + probe)
    done = run_chromium(tmp_path, "--window-size=1280,900", "--dump-dom", path.as_uri())
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(match[1].replace("&amp;", "&")), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_page_in_a_browser(page, tmp_path):
    """All pictures load, nothing stands on the console, nothing but the file itself is asked for."""
    seen, log = seen_by_chromium(page, tmp_path)
    assert seen["images"] == seen["loaded"] == 80
    assert seen["requests"] == []
    assert seen["errors"] == []
    assert seen["charts"] == 4 + 6 + 2
    assert seen["sorted"]
    assert not seen["wide"]
    assert "CONSOLE" not in log, log[-2000:]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_browser_check_can_fail(page, tmp_path):
    """A picture cut short, one from elsewhere and an error on the console are all noticed."""
    first, second = re.findall(r'src="(data:image/jpeg;base64,[^"]*)"', page)[:2]
    spoilt = page.replace(first, first[:40]).replace(second, "http://localhost:9/picture.jpg")
    seen, log = seen_by_chromium(spoilt.replace('"use strict";', '"use strict"; nothing();'), tmp_path)
    assert seen["loaded"] == 80 - page.count(first) - page.count(second)  # dead heatmaps look alike
    assert any("localhost" in problem for problem in seen["errors"])
    assert any("nothing is not defined" in problem for problem in seen["errors"])
    assert "CONSOLE" in log


# ---- Parts.


def test_first_of_each_class_is_readable():
    labels, corrupt = torch.tensor([3, 1, 3, 1, 0]), torch.tensor([True, False, False, False, False])
    assert pictures.first_of_each_class(labels, corrupt) == [4, 1, 2]


def test_table_leaves_out_what_is_unknown():
    explained = answers(torch.ones(2, 4, 4), ranks=torch.tensor([0, 1]), labels=torch.tensor([0, 0]), image_size=8)
    entries = [report.Entry("a", "A", seed, explained, []) for seed in (0, 1)]
    text = report.table(report.summarise(entries, "a", ("cat",)))
    assert "accuracy   " in text
    assert "50.0 ± 0.0" in text
    for absent in ("Content Heatmap", "pointing", "insertion", "seconds", "unreadable"):
        assert absent not in text
    broken = explained._replace(corrupt=torch.tensor([True, False]))
    text = report.table(report.summarise([report.Entry("a", "A", 0, broken, [])], "a", ("cat",)))
    assert "unreadable images (number)" in text


def two_objects(heatmaps, **more):
    """Two images of 8 px: the object of class 0 on the left, another of class 1 on the right."""
    left = torch.zeros(2, 8, 8, dtype=torch.bool)
    left[:, :, :4] = True
    boxes = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 8.0]] * 2), "box_counts": torch.tensor([1, 1])}
    masks = {"masks": packed(left), "distractor_masks": packed(~left), "distractors": torch.tensor([1, 1])}
    return answers(heatmaps, **boxes, **masks, **more)


def test_table_shows_every_measure_with_its_controls():
    """The baseline's heatmap has 1/4 beside the object, the method's none; both say the label of the first image."""
    wide = torch.zeros(2, 8, 8)
    wide[:, 2:4, 2:4], wide[:, 2:4, 4:6] = 3.0, 1.0
    sharp = torch.zeros(2, 8, 8)
    sharp[:, 2:4, 2:4] = 1.0
    baseline = two_objects(
        wide,
        ranks=torch.tensor([0, 1]),
        runner_up_heatmaps=wide,
        distractor_heatmaps=wide,
        norms=sharp,
        centred_heatmaps=sharp,
        more_heatmaps=wide[:, None].repeat(1, 3, 1, 1),
        more_crops=torch.tensor([0, 0, 8, 8, 0]).expand(2, 3, 5),
    )
    method = two_objects(sharp, runner_up_heatmaps=wide, distractor_heatmaps=sharp.flip(2))
    entries = [report.Entry(name, name, 0, explained, []) for name, explained in (("a", baseline), ("b", method))]
    summary = report.summarise(entries, "a", ("cat", "dog"))
    table = {row[0].strip(): row[1:] for row in report.rows(summary)}
    text = report.table(summary)
    for control in CONTROLS.values():
        assert text.count(f"  of the baseline, {control.title}") == len(control.measures)
    assert table["accuracy"] == ["50.0", "100.0"]
    assert table["less the baseline's, 95 %"] == ["-", "+50.0 [+0.0, +100.0]"]
    assert table["CH, by mask"] == ["75.0", "100.0"]
    assert table["peak in mask"] == ["100.0", "100.0"]
    assert table["likeness to the runner-up's heatmap"] == ["100.0", f"{100 * 3 / 10**0.5:.1f}"]
    assert table["two objects: denser on the label's"] == ["100.0", "100.0"]
    assert table["two objects: denser on the other's, by its heatmap"] == ["0.0", "100.0"]
    own = summary["b"]
    assert own["sharpness_matched_content_mask"] == pytest.approx(100, abs=1e-3)  # the power cuts the fainter part off
    assert own["channel_norm_content_heatmap"] == pytest.approx(100)
    assert own["five_views_peak_in_mask"] == pytest.approx(100)
    assert own["sharpness_matched_likeness"] == pytest.approx(100)
    assert 50 < own["blurred_content_mask"] < 100
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3, 97), (-2.5, 2.5), (0.001, 0.0012), (40, 40), (0, 0), (86.1, 87.9)]
)
def test_ticks_take_in_all_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 6
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1


def test_charts_escape_titles_and_skip_gaps():
    nan = float("nan")
    chart = charts.line_chart([charts.Series(0, "<b>", [1.0, nan, 3.0], [[1.0, nan, 3.0]])], [1, 2, 3], "epoch")
    assert "<b>" not in chart
    assert "&lt;b&gt;" in chart
    assert "nan" not in chart
    assert chart.count("M") >= 2
    assert charts.line_chart([charts.Series(1, "x", [nan], [[nan]])], [1], "epoch") == ""
    bars = charts.dot_chart([("x", 2.0, [1.0, 3.0], [("as <sharp>", 3.0), ("blurred", 4.0)]), ("y", None, [], [])])
    assert "as &lt;sharp&gt;: 3.0" in bars
    assert bars.count('class="control"') == 2


def test_titles_of_the_gallery_stand_beside_each_other(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    views = [torch.rand(3, 8, 8), torch.rand(3, 8, 8), torch.zeros(0, 4)]
    titles = ["cross-entropy", "CGC + consistency", "CGC, λ = 1, + consistency"]
    looks = [pictures.Look(0, *views, [torch.rand(8, 8)] * 3, [torch.rand(8, 8)] * 3) for _ in range(2)]
    pictures.gallery(tmp_path / "gallery.png", looks, titles)
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    places = sorted(axis.title.get_window_extent().extents.tolist() for axis in figure.axes if axis.get_title())
    assert len(places) == 8
    assert all(left[2] < right[0] for left, right in pairwise(places))


def test_a_method_has_one_colour_in_every_picture(monkeypatch, tmp_path):
    """One without a colour of its own, by its place among the methods."""
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    keys = ("baseline", "another", "a third")
    pictures.curves(
        tmp_path / "curves.png", {key: [[{"epoch": 1}]] for key in keys}, dict(zip(keys, keys, strict=True))
    )
    (figure,) = drawn
    shades = [line.get_color() for line in figure.axes[0].lines]
    assert shades == [pictures.colour(key, place) for place, key in enumerate(keys)]
    assert len(set(shades)) == 3
