"""The whole report: files, tables that can be traced, a page that needs nobody."""

import base64
import html
import html.parser
import io
import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

from probekit.reports import write_report
from probekit.reports.figures.depth import depth_figure
from probekit.reports.page import _controls, _model, p_value
from probekit.reports.published import comparison_table
from probekit.reports.tables import choose_columns, layer_frame, printed_frame
from probekit.results.record import read_records
from probekit.runtime.errors import UserError

RISING = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.72, 0.74, 0.76, 0.8)
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
    expected = {f"depth_curve.{end}" for end in ("svg", "png", "pdf", "csv")}
    expected |= {"index.html", "penalty_paths.csv"}
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
    text = page[page.index("<main>") :].replace("\xa0", " ").replace("\N{MINUS SIGN}", "-")
    first, second = (text.index(html.escape(sentence)) for sentence in panel.models[0].verdict.sentences())
    assert first < second < text.index("<svg")


def test_colours_follow_the_theme(page):
    assert "prefers-color-scheme: dark" in page
    inside = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    inside = re.sub(r'<g id="[^"]*QuadMesh.*?</g>', "", inside, flags=re.DOTALL)  # cells stand for numbers in both
    assert "var(--c" in inside
    assert not re.search(r"(?:fill|stroke): ?#(?!000000)[0-9a-f]{6}", inside)


def test_marks_tell_their_numbers(page, panel):
    series = panel.models[0]
    assert f"<title>igpt, layer 8: {series.values[8]:.1f} %" in page
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
    body = tex.removeprefix("% needs \\usepackage{booktabs}\n")
    assert not re.search(r"(?<!\\)[%_#]", body)
    assert len(rows[0].split(" & ")) == 5
    assert tex.count(r"\label{") == 1
    assert not re.search(r"(?<![\w-])-\d", body), "a hyphen stands where a minus belongs"
    (bold,) = [row for row in rows if row.startswith(r"\textbf{igpt}") and "+" not in row.split(" & ")[1]]
    assert "77.3" in bold


def test_columns_of_a_table_are_chosen_by_name_or_its_beginning(panel):
    frame = layer_frame([panel])
    printed = printed_frame(frame)
    chosen = choose_columns(printed, ["layer", "TEST", "Series"], "tex")
    assert list(chosen.columns) == ["Layer", "Test % [95 % interval]", "Series"]
    for wrong, words in (("accuracy", "no column"), ("p", "fits")):
        with pytest.raises(UserError, match=words):
            choose_columns(printed, [wrong], "md")


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


def test_further_figures_stay_in_the_folder_and_replace_nothing(run_folder, report, tmp_path):
    from matplotlib.figure import Figure

    names = ["../out", "table", "\\1", "<i>", "a/b", "a-b"]
    page = write_report(run_folder, tmp_path / "report", dict.fromkeys(names, lambda panel: Figure()))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (page.parent / "table.csv").read_bytes() == (report / "table.csv").read_bytes()
    own = {path.name for path in page.parent.iterdir()} - {path.name for path in report.iterdir()}
    assert len(own) == 4 * len(names)  # svg, png, pdf, csv
    assert own <= set(re.findall(r'href="([^"]+)"', page.read_text()))


def test_a_folder_that_cannot_be_written_is_one_sentence(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        write_report(run_folder, tmp_path / "file" / "report")


def test_samples_beside_the_results_and_of_the_probed_runs_are_embedded(make_run, tmp_path):
    from PIL import Image

    trained, moved = tmp_path / "trained", tmp_path / "moved" / "checkpoints" / "0000004"
    private = tmp_path / "private" / "checkpoints" / "0000004"  # named by a record that has never seen its weights
    checkpoint = trained / "checkpoints" / "0000004"
    for folder in (checkpoint, private):
        (folder.parents[1] / "samples").mkdir(parents=True)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"weights_hash": "w" if folder == checkpoint else "secret"}))
        for step in range(5):
            Image.new("RGB", (8, 8), (step, 0, 0)).save(folder.parents[1] / "samples" / f"{step:07d}.png")
    run = make_run(encoder={"name": "igpt", "weights_hash": "w", "checkpoint": str(checkpoint)})
    gone = make_run(series="other", encoder={"name": "other", "weights_hash": "v", "checkpoint": str(moved)})
    other = make_run(series="third", encoder={"name": "third", "weights_hash": "v", "checkpoint": str(private)})
    Image.new("RGB", (8, 8), "red").save(run / "samples.png")
    page = write_report([run, gone, other], tmp_path / "report").read_text()
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"><figcaption>([^<]+)', page)
    newest = [trained / "samples" / f"{step:07d}.png" for step in (2, 3, 4)]
    assert [name for _, name in shown] == [f"{run.name}/samples.png", *(f"trained/samples/{p.name}" for p in newest)]
    with Image.open(io.BytesIO(base64.b64decode(shown[-1][0]))) as again:  # decoded and encoded again
        assert (again.size, again.getpixel((3, 3))) == ((8, 8), (4, 0, 0))


@pytest.mark.parametrize(("p", "text"), [(0.0, "< 0.0001"), (0.04321, "0.043"), (1.0, "1")])
def test_a_p_value_is_written_with_two_digits(p, text):
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
        check=True, capture_output=True, timeout=1200,
    )  # fmt: skip
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    assert image.size == (1000, 1400)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert (0, 114, 178) in colours, "the curve's blue is not on the page"
    assert (255, 255, 255) in colours


def facts_of(panel):
    """The large figures above the curve: what, value."""
    return {name: value for name, value, _ in _model(panel.models[0], list(_controls(panel)))["facts"]}


def test_a_best_layer_that_is_the_last_is_measured_against_the_strongest_control(make_panel, panel):
    assert facts_of(panel)["Points above the last layer"] == f"{panel.models[0].verdict.gain.points[0]:+.1f}"
    rising = make_panel(trained=RISING, unconverged=())
    model, random, pixels = rising.series
    assert model.verdict.shape == "no fall"
    assert pixels.values[0] > random.values[random.peak]
    facts = facts_of(rising)
    assert facts["Points above raw pixels"] == f"{model.values[-1] - pixels.values[0]:+.1f}"
    assert not any("last layer" in name for name in facts)


def test_a_sweep_that_left_out_the_last_layers_never_speaks_of_them(make_panel):
    part = make_panel(trained=RISING[:9], encoder={"name": "igpt", "last_depth": 10})
    said = _model(part.models[0], list(_controls(part)))
    assert "layer 10 was not probed" in said["sentences"][1]
    assert "8 of 10" in dict(facts_of(part)).values()
    assert "Points above\nlayer 8" in [axes.get_ylabel() for axes in depth_figure(part).axes]
    ours = comparison_table([part]).frame.query("method == 'igpt' and source.str.startswith('record')")
    assert "8, best layer (on val)" in set(ours["layers"])
    assert not ours["layers"].str.contains("last").any()
