"""Pages in headless Chromium: what every one of ours must keep."""

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
# What WCAG AA asks of text.
CONTRAST = 4.5

# [contrast, text] of every element that has text of its own, HTML and SVG.
CONTRASTS = """() => {
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = number(text).map((value) => {
      const x = value / 255;
      return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (number(colour)[3] !== 0) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const ink = (element) => {
    const style = getComputedStyle(element);
    return element instanceof SVGElement ? style.fill : style.color;
  };
  const own = (element) => [...element.childNodes].some(
    (each) => each.nodeType === Node.TEXT_NODE && each.textContent.trim());
  const unread = "script, style, title, noscript, option";
  return [...document.body.querySelectorAll("*")]
    .filter((e) => own(e) && !e.matches(unread) && !e.disabled)
    .filter((e) => e.checkVisibility())
    .map((e) => {
      const [a, b] = [light(ink(e)), light(behind(e))];
      const value = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return [value, e.textContent.trim().slice(0, 30)];
    });
}"""

# Elements that reach out of the window, but for what scrolls by itself.
OUTSIDE = """() => [...document.body.querySelectorAll("*")]
  .filter((e) => e.checkVisibility() && !e.closest(".skip"))
  .filter((e) => !e.closest("tr, thead, tbody"))
  .filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1)
  .filter((e) => !e.parentElement.closest(".scroll"))
  .map((e) => e.outerHTML.slice(0, 80))"""


def new(browser, size="desktop", scheme="light", **options):
  """(a page, what it complains of, addresses that it asks for)."""
  width, height = SIZES[size]
  context = browser.new_context(
    viewport={"width": width, "height": height},
    color_scheme=scheme,
    has_touch=size == "phone",
    **options,
  )
  page = context.new_page()
  complaints, requests = [], []
  page.on("console", lambda message: complaints.append(message.text))
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on("request", lambda request: requests.append(request.url))
  return page, complaints, requests


def check(page):
  """Nothing is cut off, and all text can be read."""
  assert (
    page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    <= 0
  )
  assert not page.evaluate(OUTSIDE)
  found = page.evaluate(CONTRASTS)
  assert found
  assert not [each for each in found if each[0] < CONTRAST]
