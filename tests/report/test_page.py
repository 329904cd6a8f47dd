"""The page: whole, self-contained, closed to what the data say, and made by the stage."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.report import made_up
from xmsd_jax.config import UserError, load
from xmsd_jax.pipeline.report import ReportConfig, run
from xmsd_jax.report.cards import answer
from xmsd_jax.report.page import style
from xmsd_jax.runs import Row, read_results

HOSTILE = '<script>alert("x")</script> "quoted" & <img src="http://elsewhere.example/p.png" onerror=alert(1)>'


class Structure(HTMLParser):
    """Tags, attributes and text of a page; checks that every element is closed where it was opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def made(run_dir, rows=None, **more):
    made_up.write_run(run_dir, rows, **more)
    run(ReportConfig(), run_dir)
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return made(tmp_path_factory.mktemp("made-up-run"))


def test_every_row_of_results_appears(html):
    texts = Structure(html).texts
    for row in made_up.rows():
        assert row.row in texts
        assert row.metric in texts
    assert f"All {len(made_up.rows())} numbers of this run" in texts
    assert html.count("<td>n-gram + ride</td>") >= 2 * len(made_up._METRICS)


def test_the_page_asks_nothing_of_any_other_machine_and_runs_no_script(html):
    page = Structure(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert not re.search(r"@import|url\((?!#)", style())
    assert not re.search(r"(?:https?:)?//[a-z]", html)


def test_the_browser_is_told_to_fetch_nothing(html):
    policies = [a["content"] for tag, a in Structure(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:")


def test_hostile_text_stays_text(tmp_path):
    rows = [*made_up.rows(), Row(row=HOSTILE, metric="tau", value=2.0, settings={"clips": HOSTILE})]
    page = made(tmp_path, rows, question=HOSTILE)
    structure = Structure(page)
    assert "<script" not in page
    assert all("onerror" not in attributes for _, attributes in structure.tags)
    assert sum(tag == "img" for tag, _ in structure.tags) == 4  # two clips, two pictures each
    assert HOSTILE in structure.texts


def test_pictures_are_inlined_byte_by_byte(html, tmp_path):
    made_up.write_run(tmp_path)
    inlined = {base64.b64decode(a["src"].partition(",")[2]) for tag, a in Structure(html).tags if tag == "img"}
    assert inlined == {path.read_bytes() for path in (tmp_path / "gallery").glob("*.png")}
    assert all(a.get("alt") for tag, a in Structure(html).tags if tag == "img")


def test_a_token_is_marked_by_its_origin_and_white_space_is_not():
    shown = answer(("A", " red", "  ", " car\n", ""), ("prefill-draft", "draft", "draft", "target", "target"))
    assert Structure(shown).tags[1:] == [
        ("span", {"class": f"token {origin}", "title": words})
        for origin, words in (
            ("prefill-draft", "free in the prefill"),
            ("draft", "accepted draft"),
            ("target", "the target's own token"),
            ("target", "the target's own token"),
        )
    ]
    assert "".join(Structure(shown).texts) == "A red   car\n∎"


def test_each_origin_has_a_second_cue_beside_its_colour():
    for origin, cue in (("prefill-draft", "double"), ("draft", "dotted")):
        assert re.search(rf"\.token\.{origin} {{[^}}]*border-bottom: \dpx {cue}", style())


def test_what_lost_and_what_was_not_measured_is_said(html):
    texts = Structure(html).texts
    assert "slower than the baseline" in texts
    assert "predicted, not run" in texts
    assert any(text.startswith("Slower than the baseline on") for text in texts)


def test_a_failed_certificate_leads_the_page(tmp_path):
    page = made(tmp_path, [*made_up.rows(), *made_up.certificate("template", "more clips", 5, divergences=1)])
    head, _, _ = page.partition("<main>")
    assert '<p class="lead">The certificate FAILS: 1 of' in head
    assert "FAILS" in page.partition('id="certificate"')[2]


def test_an_answer_that_differs_shows_what_the_target_says(tmp_path):
    made_up.write_run(tmp_path)
    gallery = tmp_path / "gallery.json"
    gallery.write_text(gallery.read_text().replace('"reference": "A red', '"reference": "A dark'))
    run(ReportConfig(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "differs from the target alone" in page
    assert "<q>A dark car" in page


def test_the_page_reads_on_narrow_screens_and_in_the_dark():
    assert "@media (prefers-color-scheme: dark)" in style()
    assert "@media (max-width: 52rem)" in style()


def test_the_stage_writes_three_files_and_prints_the_table(tmp_path, capsys):
    made_up.write_run(tmp_path)
    written = run(ReportConfig(), tmp_path)
    assert written == tmp_path / "report.html"
    printed = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text() in printed
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 1 + len(made_up.rows())


def test_another_run_can_be_reported_elsewhere(tmp_path):
    source = made_up.write_run(tmp_path / "source")
    run(ReportConfig(source=source, title="A title & more"), tmp_path / "elsewhere")
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert "<title>A title &amp; more</title>" in page
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"report.html", "report.md", "report.csv"}


def test_a_speed_up_without_baseline_stops_the_stage_before_anything_is_written(tmp_path):
    made_up.write_run(tmp_path, [*made_up.rows(), Row(row="x", metric="speedup", value=9.0)])
    with pytest.raises(UserError, match="names no baseline"):
        run(ReportConfig(), tmp_path)
    assert not list(tmp_path.glob("report.*"))


def test_a_run_with_nothing_but_one_number_has_a_page(tmp_path):
    made_up.write_run(tmp_path, [Row(row="a", metric="facts_right", value=0.9)])
    (tmp_path / "gallery.json").unlink()
    run(ReportConfig(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    Structure(page)
    assert "facts_right" in page


def test_the_packaged_config_loads(request):
    config = load(ReportConfig, request.config.rootpath / "configs" / "report" / "small.yaml")
    assert config == ReportConfig()
    with pytest.raises(UserError, match="0 or more"):
        ReportConfig(cards=-1)


def test_results_pass_through_unchanged(tmp_path):
    made_up.write_run(tmp_path)
    assert read_results(tmp_path)[0] == made_up.rows()


def test_the_report_needs_neither_torch_nor_jax():
    code = "import sys, xmsd_jax.pipeline.report; print({'torch', 'jax', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
