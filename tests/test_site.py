"""The built site in a real browser: `make docs` first, and a Chromium; both are skipped over where they are not."""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_docs"
sys.path.insert(0, str(ROOT / "tools"))
chromium = pytest.importorskip("chromium", reason="the pipe to the browser needs a POSIX system")

PAGES = sorted(p.name for p in SITE.glob("*.html"))
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").glob("*.ipynb"))]
pytestmark = pytest.mark.skipif(not PAGES, reason="no site in _docs/: run `make docs`")
# text that a reader sees, outside code and outside what KaTeX has drawn
RAW_FORMULAS = r"""(() => {
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest('code, pre, .katex, script, style, .cell-output')) continue;
    if (/\$\$|\$[^$\n]+\$|\\\(|\\\[|\\begin\{|\\(frac|alpha|sigma|Lambda|lambda|top|hat)\b/.test(node.data)) found.push(node.data.trim());
  }
  document.querySelectorAll('main .katex-error').forEach(e => found.push(e.title || e.textContent));
  document.querySelectorAll('main .math').forEach(e => { if (!e.querySelector('.katex')) found.push(e.textContent); });
  return found;
})()"""


class Links(HTMLParser):
    "The addresses that a page points to, and the places in it that can be pointed to."
    def __init__(self, html):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.update(filter(None, [attrs.get("id"), attrs.get("name")]))
        self.targets += filter(None, [attrs.get("href"), attrs.get("src")])


@pytest.fixture(scope="module")
def parsed():
    return {p: Links((SITE / p).read_text(encoding="utf-8")) for p in PAGES}


@pytest.fixture(scope="module")
def site():
    with chromium.Served(SITE) as served: yield served.url


@pytest.fixture(scope="module")
def tab():
    if not chromium.executable(): pytest.skip("no Chromium is installed")
    with chromium.Chromium() as tab: yield tab


def test_every_notebook_has_its_page():
    expected = {re.sub(r"^\d+_", "", p.stem) + ".html" for p in NOTEBOOKS}
    assert expected <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page, parsed):
    broken = []
    for target in parsed[page].targets:
        url = urlsplit(target)
        if url.scheme or url.netloc: continue
        file = unquote(url.path) or page
        path = SITE / (file if not file.endswith("/") else f"{file}index.html")
        inside = parsed.get(path.name)
        if not path.exists(): broken.append(target)
        elif url.fragment and inside and unquote(url.fragment) not in inside.ids: broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_page_in_the_browser(page, tab, site):
    tab.open(f"{site}/{page}")
    local = "jsdelivr" not in (SITE / page).read_text(encoding="utf-8")
    complaints = [what for what in tab.complaints() if local or "jsdelivr" not in what]
    assert not complaints, "the browser's console shows errors"
    if local or tab.evaluate("typeof katex == 'object'"):
        assert not tab.evaluate(RAW_FORMULAS), "formulas that were not drawn"
    assert tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    shown = "document.querySelectorAll('#quarto-sidebar a[href]').length"
    assert tab.evaluate(shown) >= len(NOTEBOOKS), "the sidebar does not name every page"
    assert tab.evaluate("!!document.querySelector('#quarto-search input').offsetParent"), "there is no search box"
    assert tab.evaluate("document.querySelector('h1').innerText.trim()")
    style = "getComputedStyle(document.{}).getPropertyValue('{}')"
    assert tab.evaluate(style.format("documentElement", "--bs-body-color")), "the theme's style sheet is damaged"
    assert "sans-serif" in tab.evaluate(style.format("body", "font-family"))
    # prose, code and figures stay within the window
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"


def test_search_finds_a_page(tab, site):
    tab.open(f"{site}/{PAGES[-1]}")
    title = tab.evaluate("document.querySelector('h1').innerText.trim()")
    tab.evaluate(f"""(() => {{ const box = document.querySelector('#quarto-search input');
        box.focus(); box.value = {title!r}; box.dispatchEvent(new Event('input', {{bubbles: true}})); }})()""")
    assert tab.until("document.querySelectorAll('#quarto-search .search-result').length > 0"), f"no result for {title!r}"
    assert title in tab.evaluate("document.querySelector('#quarto-search .smalldocs-search-results').innerText")


def test_the_checks_see_a_fault(tab, tmp_path):
    "A page with a raw formula, a missing picture and a script that throws is caught by what the tests above look at."
    (tmp_path / "index.html").write_text("""<main><p>a $x_0$ b</p><img src="gone.png"></main>
        <script>throw new Error('planted')</script>""")
    with chromium.Served(tmp_path) as served:
        tab.open(f"{served.url}/index.html")
        complaints = " ".join(tab.complaints())
        assert "planted" in complaints and "gone.png" in complaints
        assert tab.evaluate(RAW_FORMULAS) == ["a $x_0$ b"]
