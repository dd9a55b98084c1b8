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

# text with less contrast to what lies behind it than WCAG AA asks: 4.5, or 3 where letters are large
PALE = r"""(() => {
  const numbers = colour => (colour.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const over = (a, b) => { const share = a[3] ?? 1; return [0, 1, 2].map(i => share * a[i] + (1 - share) * b[i]); };
  const behind = e => { if (!e) return [255, 255, 255]; const c = numbers(getComputedStyle(e).backgroundColor); return (c[3] ?? 1) == 1 ? c : over(c, behind(e.parentElement)); };
  const opacity = e => e ? getComputedStyle(e).opacity * opacity(e.parentElement) : 1;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || !box.width || !box.height || style.visibility != 'visible' || e.closest('.katex, script, style, noscript')) continue;
    const back = behind(e), colour = numbers(style.color), front = over([...colour.slice(0, 3), (colour[3] ?? 1) * opacity(e)], back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05), size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) found[style.color + ' on ' + back.map(Math.round)] = ratio.toFixed(2) + ': ' + walker.currentNode.data.trim().slice(0, 40);
  }
  return found;
})()"""
WITHOUT_ALT = "[...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 60))"
SIDEWAYS = "document.documentElement.scrollWidth > window.innerWidth || document.body.scrollWidth > window.innerWidth"
AXE = ROOT / "node_modules/axe-core/axe.min.js"
# pages with tables, formulas, figures and code of every kind
SAMPLE = [p for p in ("index.html", "spectrum.html", "metrics.html", "sharing.html", "figures.html", "formats.html", "trainer.html", "results.html") if p in PAGES]


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


@pytest.fixture(scope="module")
def telephone():
    if not chromium.executable(): pytest.skip("no Chromium is installed")
    with chromium.Chromium() as tab:
        tab.resize(390)
        yield tab


@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_telephone(page, telephone, site):
    "No page is wider than the screen, every figure is said in words, and text stands out from what is behind it."
    telephone.open(f"{site}/{page}")
    assert not telephone.evaluate(SIDEWAYS), "something is wider than the screen"
    assert telephone.evaluate(WITHOUT_ALT) == [], "give the cells of these figures a `#| fig-alt`"
    assert telephone.evaluate(PALE) == {}, "text with too little contrast: nbs/styles.css"
    assert telephone.evaluate("[...document.querySelectorAll('main pre')].filter(e => /\\]\\(\\w+\\.html/.test(e.textContent)).length") == 0, \
        "a name in backticks in a parameter's comment becomes a raw link"


@pytest.mark.parametrize("page", SAMPLE)
def test_page_as_axe_sees_it(page, telephone, site):
    "The rules of WCAG 2 A and AA that a program can judge, by a judge that is not ours."
    if not AXE.exists(): pytest.skip("no axe-core in node_modules: make docs, with npm")
    telephone.open(f"{site}/{page}")
    telephone.evaluate(AXE.read_text(encoding="utf-8") + ";1")
    found = telephone.evaluate("""axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})
        .then(done => done.violations.map(v => `${v.id}: ${v.help}: ${v.nodes[0].html.slice(0, 120)}`))""", timeout=300)
    assert found == []


def test_by_keyboard(tab, site):
    "The first stop is a way past the sidebar; each stop shows where one is; sections of the sidebar open."
    tab.open(f"{site}/index.html")
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip-link"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "the link is out of sight"
    tab.press("Enter")
    assert tab.until("location.hash == '#quarto-document-content'")
    for _ in range(3):
        tab.press("Tab")
        assert tab.evaluate("!!document.activeElement.closest('main')"), "the sidebar was not passed by"
        assert tab.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    section = "document.querySelector('#quarto-sidebar-section-1')"
    assert tab.evaluate(f"{section}.classList.contains('show')")
    tab.evaluate("document.querySelector('a[data-bs-target=\"#quarto-sidebar-section-1\"]').focus()")
    tab.press("Enter")
    assert tab.until(f"!{section}.classList.contains('show')"), "Enter does not close a section"


def test_search_finds_a_page(tab, site):
    tab.open(f"{site}/{PAGES[-1]}")
    title = tab.evaluate("document.querySelector('h1').innerText.trim()")
    tab.evaluate(f"""(() => {{ const box = document.querySelector('#quarto-search input');
        box.focus(); box.value = {title!r}; box.dispatchEvent(new Event('input', {{bubbles: true}})); }})()""")
    assert tab.until("document.querySelectorAll('#quarto-search .search-result').length > 0"), f"no result for {title!r}"
    assert title in tab.evaluate("document.querySelector('#quarto-search .smalldocs-search-results').innerText")


def test_the_checks_see_a_fault(tab, tmp_path):
    "A page with a raw formula, a missing picture and a script that throws is caught by what the tests above look at."
    (tmp_path / "index.html").write_text("""<main><p>a $x_0$ b</p><img src="gone.png">
        <p style="background: #f4f4f4"><b style="color: rgb(150, 150, 150)">pale</b></p></main>
        <script>throw new Error('planted')</script>""")
    with chromium.Served(tmp_path) as served:
        tab.open(f"{served.url}/index.html")
        complaints = " ".join(tab.complaints())
        assert "planted" in complaints and "gone.png" in complaints
        assert tab.evaluate(RAW_FORMULAS) == ["a $x_0$ b"]
        assert len(tab.evaluate(WITHOUT_ALT)) == 1 and not tab.evaluate(SIDEWAYS)
        assert tab.evaluate(PALE) == {"rgb(150, 150, 150) on 244,244,244": "2.69: pale"}
        tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width: 3000px\">wide</div>')")
        assert tab.evaluate(SIDEWAYS)
