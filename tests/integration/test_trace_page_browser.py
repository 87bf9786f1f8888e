"""The page in a browser: hostile traces stay text, and filters, keys, marks and addresses do what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.cli import main
from w2sr.trace_page import render_page
from w2sr.types import Trace

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent"),
]

ATTACKS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    '<img src="http://hacked.invalid/x.png" onerror="window.hacked = 1">',
    "<svg onload=alert(1)><iframe srcdoc='<script>parent.hacked = 1</script>'>",
    '" onmouseover="window.hacked = 1" x="',
    "javascript:window.hacked=1//",
    "[link](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>",
    "<!-- <script> -->",
    "</script x='<script ",
    "<!--<script <!-- ",
    "]]> <![CDATA[ &lt;b&gt; &amp;",
    "{{7*7}} ${7*7} {% for x in y %} {{ self.__init__ }}",
    "line\u2028para\u2029end",
    "user\u202egnp.exe\u202c \u2066x\u2069",
    "nul\x00, bell\x07, escape\x1b[31m",
    "__proto__",
    "constructor",
    "e\u0301 𝒙 😀 \\frac{1}{2} $x^2$",
    "<style>body { display: none }</style><link rel=stylesheet href=//hacked.invalid/x.css>",
    "<meta http-equiv=refresh content='0;url=http://hacked.invalid'><base href=http://hacked.invalid>",
)
TEXT_FIELDS = (
    "problem_id source problem reference_answer teacher completion answer verdict_reason grader grader_version "
    "sampling template_hash engine"
).split()


class Watch:
    """A page of the browser and everything that it did besides showing itself."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.happened: list[str] = []
        page.on("dialog", lambda dialog: (self.happened.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self.happened.append(f"console {message.text}"))
        page.on("pageerror", lambda error: self.happened.append(f"error {error}"))
        page.on("request", lambda request: self.asked(request.url))
        page.on("popup", lambda _: self.happened.append("popup"))

    def asked(self, url: str) -> None:
        if not url.startswith("file:") or "hacked.invalid" in url:
            self.happened.append(f"request {url}")

    def open(self, file: Path, hash: str = "") -> Any:
        self.page.goto("about:blank")
        self.page.goto(file.as_uri() + hash)
        return self.page

    def text(self, selector: str) -> str:
        return self.page.eval_on_selector(selector, "node => node.textContent")

    def texts(self, selector: str) -> list[str]:
        return self.page.eval_on_selector_all(selector, "nodes => nodes.map(node => node.textContent)")

    def expect(self, selector: str, text: str) -> None:
        """Waits until the element holds the text. (The page's policy forbids what `wait_for_function` does.)"""
        sync_api.expect(self.page.locator(selector)).to_contain_text(text)

    def expect_rows(self, count: int) -> None:
        sync_api.expect(self.page.locator("#rows button")).to_have_count(count)

    def shown(self) -> str:
        return self.text("#detail h2")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=str(CHROMIUM),
            args=ARGUMENTS,
            viewport={"width": 1366, "height": 768},
        )
        yield context
        context.close()


@pytest.fixture
def watch(browser: Any) -> Iterator[Watch]:
    page = browser.new_page()
    watch = Watch(page)
    yield watch
    # nothing that a test opened may have run, fetched or complained
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert watch.happened == []
    page.close()


def trace(number: int, **changes: Any) -> Trace:
    base = Trace(
        f"p/{number}",
        "numbers",
        f"What is {number} + 1?",
        str(number + 1),
        "weak",
        f"It is {number + 1}: \\boxed{{{number + 1}}}.",
        "stop",
        num_tokens=10 + number,
        answer=str(number + 1),
        answer_rule="boxed",
        verdict="correct",
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(traces: list[Trace], num_all: int | None = None) -> Path:
        file = tmp_path_factory.mktemp("page") / "page.html"
        file.write_text(render_page(traces, title="some traces", num_all=num_all or len(traces)), encoding="utf-8")
        return file

    return make


def hostile_traces() -> list[Trace]:
    """One trace an attack, which stands in every text field of it; of all verdicts."""
    verdicts = ("correct", "incorrect", "no_answer", "timeout", "")
    return [
        Trace(
            **{name: f"{attack} {number}" if name == "problem_id" else attack for name in TEXT_FIELDS},
            finish_reason="length",
            answer_rule=attack,
            verdict=verdicts[number % 5],  # type: ignore[arg-type]
            num_tokens=number,
        )
        for number, attack in enumerate(ATTACKS)
    ]


def test_hostile_traces_are_text(watch: Watch, tmp_path: Path) -> None:
    store = tmp_path / "<img src=x onerror=hacked=1>.jsonl"
    store.write_text("".join(json.dumps({n: getattr(t, n) for n in t.__slots__}) + "\n" for t in hostile_traces()))
    main(["traces", str(store), "--out", str(tmp_path / "page.html")])
    page = watch.open(tmp_path / "page.html")
    assert watch.text("h1 bdi") == str(store)
    for attack in ATTACKS:
        assert watch.text("#detail .problem") == watch.text("#detail .completion") == attack
        assert watch.texts("#detail dd").count(attack) >= 6  # answers, teacher, source, grader, engine, ...
        assert f" {attack}" in " " + watch.text("#detail .judged")
        page.hover("#detail .completion")
        page.keyboard.press("j")
    for select in ("#teacher", "#source"):
        options = page.eval_on_selector(select, "node => [...node.options].map(option => option.value.slice(1))")
        assert options[0] == "" and set(options[1:]) == set(ATTACKS)
    page.click("#more summary")
    for attack in ATTACKS[:6]:
        page.select_option("#teacher", value=f"={attack}")
        watch.expect("#detail .problem", attack)
        watch.expect_rows(1)
    elements = set(page.evaluate("[...document.querySelectorAll('body *')].map(node => node.localName)"))
    assert not elements & {"img", "iframe", "a", "link", "base", "object", "embed"}
    assert page.evaluate("document.scripts.length") == 2
    assert "U+202E" in "".join(open_at(watch, tmp_path / "page.html", "user").texts("#detail .note"))


def open_at(watch: Watch, file: Path, text: str) -> Watch:
    watch.open(file, f"#q={text}").wait_for_selector("#rows li")
    return watch


def test_half_a_surrogate_pair_and_a_megabyte_in_one_line(watch: Watch, make: Callable[..., Path]) -> None:
    line = "<b>x " * 200_000 + r"7 \boxed{7}" + "<i>x " * 10_000 + "7"
    page = watch.open(make([trace(1, completion=line, problem="half \ud800 pair", answer="7", teacher="\udfff" * 9)]))
    assert watch.text("#detail .problem") == "half \ud800 pair"
    assert "U+D800" in watch.text("#detail .problem + .note")
    assert len(watch.text("#detail .completion")) < 120_000
    assert watch.text("#detail mark") == "7"
    page.click("#detail .gap")
    assert watch.text("#detail .completion") == line
    before = page.evaluate("document.querySelector('mark').previousSibling.data")
    assert before == line[: line.index("{") + 1]


def test_filters_search_and_order(watch: Watch, make: Callable[..., Path]) -> None:
    traces = [trace(number) for number in range(30)]
    traces += [trace(30 + at, teacher="strong", verdict="incorrect", source="words") for at in range(5)]
    traces += [trace(40, finish_reason="length", verdict="no_answer", answer=None, answer_rule="")]
    traces += [trace(41, completion="and so on, and on. " * 60, verdict="timeout")]
    page = watch.open(make(traces))
    assert watch.text("#status") == "37 traces"

    page.check("input[value=incorrect]")
    watch.expect_rows(5)
    assert "incorrect" in watch.text("#detail .judged")
    page.check("input[value=timeout]")
    watch.expect_rows(6)
    page.click("#more summary")
    page.select_option("#loop", "only")
    watch.expect_rows(1)
    page.click("#clear")
    watch.expect_rows(37)
    page.select_option("#teacher", "=strong")
    watch.expect_rows(5)
    assert watch.texts("#teachers tbody th") == ["strong"]
    assert watch.texts("#teachers tbody td") == ["", "0.0 %", "5"]
    page.select_option("#source", "=numbers")
    watch.expect_rows(0)
    assert "No trace matches" in watch.text("#rows") and "No trace is selected" in watch.text("#detail")
    page.click("#clear")
    page.select_option("#finish", "=length")
    watch.expect_rows(1)
    page.click("#clear")
    page.fill("#min", "12")
    page.fill("#max", "14")
    watch.expect_rows(3)
    page.select_option("#sort", "length")
    page.check("#desc")
    watch.expect("#detail h2", "p/4@")
    assert [text.split(" ")[2] for text in watch.texts("#rows .snippet")] == ["4", "3", "2"]
    page.click("#clear")
    page.fill("#search", r"\BOXED{3")  # no pattern, and case does not count
    # answers 3 and 30 to 35, and 41 wrote no box: of numbers 2 and 29 to 34
    watch.expect("#status", "7 of 37 traces match")


@dataclass(frozen=True)
class Scored(Trace):
    """A trace with fields that the page does not know."""

    remark: str = ""
    scores: Any = None


def test_scores_and_unknown_fields_are_shown_and_filtered(watch: Watch, make: Callable[..., Path]) -> None:
    base = [{field.name: getattr(trace(at), field.name) for field in fields(Trace)} for at in range(6)]
    scored = [Scored(**row, remark="<i>sign</i>", scores={"loss": at / 4}) for at, row in enumerate(base[:5])]
    page = watch.open(make([*scored, Scored(**base[5])]))
    assert {"remark", "scores.loss"} <= set(watch.texts("#detail .facts dt"))
    assert {"<i>sign</i>", "0"} <= set(watch.texts("#detail .facts dd"))
    page.click("#more summary")
    page.fill("#smin", "0.5")
    watch.expect("#status", "3 of 6")  # 2/4, 3/4, 4/4; the one without a score is left out
    page.fill("#smax", "0.8")
    watch.expect("#status", "2 of 6")
    assert "smin=0.5" in page.url and "score=scores.loss" in page.url
    page.click("#clear")
    page.select_option("#sort", "score scores.loss")
    page.check("#desc")
    watch.expect("#detail h2", "p/4@")
    assert [text.split(" ")[2] for text in watch.texts("#rows .snippet")] == ["4", "3", "2", "1", "0", "5"]


def test_keys_walk_through_pages_and_leave_fields_alone(watch: Watch, make: Callable[..., Path]) -> None:
    page = watch.open(make([trace(number) for number in range(230)]))
    assert watch.shown() == "p/0@weak#0"
    page.keyboard.press("k")
    assert watch.shown() == "p/0@weak#0"
    for _ in range(100):
        page.keyboard.press("j")
    assert (watch.shown(), watch.text("#page")) == ("p/100@weak#0", "2 / 3")
    page.keyboard.press("k")
    assert (watch.shown(), watch.text("#page")) == ("p/99@weak#0", "1 / 3")
    page.keyboard.press("/")
    page.keyboard.type("kj/")
    assert page.input_value("#search") == "kj/"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    watch.expect("#status", "0 of 230")
    page.fill("#search", "")
    watch.expect("#status", "230 traces")
    page.click("#forth")
    assert len(watch.texts("#rows button")) == 100 and watch.text("#page") == "2 / 3"
    page.focus("#rows button >> nth=3")
    page.keyboard.press("Enter")
    assert watch.shown() == "p/103@weak#0"
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_an_address_opens_what_it_was_taken_from(watch: Watch, make: Callable[..., Path]) -> None:
    file = make([trace(at, teacher=f"t&={at % 3}#", verdict="incorrect" if at % 2 else "correct") for at in range(40)])
    page = watch.open(file)
    page.click("#more summary")
    page.check("input[value=incorrect]")
    page.select_option("#teacher", "=t&=1#")
    page.fill("#min", "15")
    watch.expect("#status", "6 of 40")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    shown, rows, address = watch.shown(), watch.texts("#rows button"), page.url
    assert len(rows) == 6 and "trace=" in address
    watch.open(file, address[address.index("#") :])
    assert (watch.shown(), watch.texts("#rows button")) == (shown, rows)
    assert page.input_value("#teacher") == "=t&=1#"
    page.evaluate("location.hash = '#verdict=correct&teacher=nobody&sort=nothing&loop=x&trace=p/4@t%26%3D1%23%230'")
    watch.expect("#status", "20 of 40")
    assert watch.shown() == "p/4@t&=1##0"


def test_the_answer_is_marked_where_the_rule_found_it(watch: Watch, make: Callable[..., Path]) -> None:
    watch.open(make([trace(1, completion=r"😀 2, 2: \boxed{2}. So 2.", answer="2")]))
    assert watch.texts("#detail mark") == ["2"]
    before = watch.page.evaluate("document.querySelector('mark').previousSibling.data")
    assert before == r"😀 2, 2: \boxed{"


def test_twenty_thousand_traces_are_paged(watch: Watch, make: Callable[..., Path]) -> None:
    texts = "Let me think about it step by step. " * 5
    page = watch.open(make([trace(at, completion=f"{texts}{at + 1}", answer_rule="") for at in range(20_000)], 54_321))
    assert "A sample: 20,000 of 54,321 traces" in watch.text("#scope")
    assert watch.text("#page") == "1 / 200" and len(watch.texts("#rows li")) == 100
    page.fill("#search", "What is 19999")
    watch.expect_rows(1)
    assert watch.shown() == "p/19999@weak#0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_thing_at_a_time(browser: Any, watch: Watch, make: Callable[..., Path], scheme: str) -> None:
    page = watch.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    watch.open(make([trace(at, teacher="organisation/a-teacher-with-a-long-name" * 3) for at in range(9)]))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.is_visible("#detail")
    page.click("#rows button >> nth=4")
    assert watch.shown().startswith("p/4@") and not page.is_visible("#list")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#leave")
    assert page.is_visible("#list") and not page.is_visible("#detail")
    assert contrasts(page) == []


def contrasts(page: Any) -> list[str]:
    """Texts with less than 4.5 to 1 between ink and ground (WCAG 2, level AA), by the formula of its glossary."""
    pairs = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(node => node.offsetParent &&
          [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())).map(node => {
            let under = node;
            while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)" && under.parentElement) {
              under = under.parentElement;
            }
            const [ink, ground] = [getComputedStyle(node).color, getComputedStyle(under).backgroundColor];
            return [node.textContent, ink, ground, node.disabled === true];
          })"""
    )
    assert len(pairs) > 20

    def brightness(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low = []
    for text, ink, ground, disabled in pairs:
        lighter, darker = sorted([brightness(ink), brightness(ground)], reverse=True)
        if not disabled and (lighter + 0.05) / (darker + 0.05) < 4.5:
            low.append(f"{text[:40]}: {ink} on {ground}")
    return low
