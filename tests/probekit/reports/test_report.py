"""The whole report: files, tables that can be traced, a page that needs nobody."""

import html.parser
import re
import shutil
import subprocess

import pandas as pd
import pytest

from probekit.errors import UserError
from probekit.reports import write_report
from probekit.reports.html import p_value
from probekit.results.records import read_records

VOID = {"meta", "img", "br", "link", "input", "hr", "col"}


@pytest.fixture(scope="module")
def report(run_folder, tmp_path_factory):
    return write_report(run_folder, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(report):
    return (report / "index.html").read_text()


class Reader(html.parser.HTMLParser):
    """Collects what a browser would load, identifiers, and whether every element is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.ids, self.open, self.text, self.references = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data") or (name.endswith("href") and tag != "a"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_every_file_is_there(report):
    expected = {f"depth_curve.{end}" for end in ("svg", "png", "pdf", "csv")} | {"index.html"}
    expected |= {f"{name}.{end}" for name in ("table", "comparison") for end in ("md", "csv", "tex")}
    assert {path.name for path in report.iterdir()} == expected


def test_the_page_asks_for_nothing(page):
    read = Reader(page)
    assert all(load.startswith(("#", "data:")) for load in read.loads), read.loads
    assert all(reference.startswith("#") for reference in read.references)
    assert "<script" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", re.sub(r"<title>.*?</title>|<a [^>]*>", "", page))


def test_the_page_is_well_formed_and_its_identifiers_are_unique(page):
    read = Reader(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    targets = {load[1:] for load in read.loads if load.startswith("#")} | {r[1:] for r in read.references}
    assert targets <= set(read.ids)


def test_the_two_sentences_come_first(page, panel):
    text = page[page.index("<main>") :]
    first, second = (text.index(sentence) for sentence in panel.models[0].verdict.sentences())
    assert first < second < text.index("<svg")


def test_colours_follow_the_theme(page):
    assert "prefers-color-scheme: dark" in page
    inside = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--c" in inside
    assert not re.search(r"(?:fill|stroke): ?#(?!000000)[0-9a-f]{6}", inside)


def test_marks_tell_their_numbers(page, panel):
    series = panel.models[0]
    assert f"<title>igpt, layer 8: {series.top1[8]:.1f} %" in page
    assert page.count("not converged") >= 3


def test_each_number_of_a_table_leads_to_its_record(report, run_folder, page):
    records = {record.key: record for record in read_records(run_folder)}
    frame = pd.read_csv(report / "table.csv", dtype={"record": "str"})
    assert set(frame["record"]) == set(records)
    for row in frame.itertuples():
        record = records[row.record]
        assert row.test_accuracy == pytest.approx(record.metrics["top1"])
        assert pytest.approx(record.chosen_C) == row.C
        assert row.converged == record.is_converged
        assert row.record[:10] in page
        assert row.record[:10] in (report / "table.md").read_text()
    markdown = (report / "table.md").read_text()
    assert markdown.count("| NO ") == 1


def test_latex_is_escaped_and_balanced(report):
    tex = (report / "table.tex").read_text()
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert not re.search(r"(?<!\\)[%_#]", tex)


def test_several_protocols_have_their_own_files_and_sections(run_folder, make_run, tmp_path):
    other = make_run(protocol_hash="0123456789")
    lines = (other / "results.jsonl").read_text().replace('"name": "igpt", "stand', '"name": "other", "stand')
    (other / "results.jsonl").write_text(lines)
    page = write_report([run_folder, other], tmp_path / "report")
    names = {path.name for path in page.parent.iterdir()}
    assert {"table-wandering-digits-igpt.md", "table-wandering-digits-other.md"} <= names
    assert page.read_text().count('<section class="panel"') == 2


def test_names_from_users_are_escaped(make_run, tmp_path):
    page = write_report(make_run(series="<b>&net"), tmp_path / "report").read_text()
    assert "<b>&net" not in page
    assert "&lt;b&gt;&amp;net" in page


def test_a_folder_that_cannot_be_written_is_one_sentence(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        write_report(run_folder, tmp_path / "file" / "report")


def test_samples_are_embedded(make_run, tmp_path):
    from PIL import Image

    run = make_run()
    Image.new("RGB", (8, 8), "red").save(run / "samples.png")
    page = write_report(run, tmp_path / "report").read_text()
    assert 'src="data:image/png;base64,' in page


@pytest.mark.parametrize(("p", "text"), [(0.0, "< 0.0001"), (0.04321, "0.043"), (1.0, "1")])
def test_p_value(p, text):
    assert p_value(p) == text


def test_the_page_renders(report, tmp_path):
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None:
        pytest.skip("no Chromium on this machine to render the page with")
    picture = tmp_path / "page.png"
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", "--window-size=1000,1400",
            f"file://{report / 'index.html'}",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    assert image.size == (1000, 1400)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert (0, 114, 178) in colours, "the curve's blue is not on the page"
    assert (255, 255, 255) in colours
