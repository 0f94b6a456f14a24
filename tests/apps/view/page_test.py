"""The page of `seer-jax view` in headless Chromium, as a user has it."""

import csv

import pages
import points
import pytest


@pytest.fixture
def opened(browser, serve):
  """`opened(folder, size, scheme)`: (page, its complaints, its requests)."""
  contexts = []

  def open_page(folder, size="desktop", scheme="light", **options):
    page, complaints, requests = pages.new(browser, size, scheme, **options)
    contexts.append(page.context)
    serving = serve(folder)
    page.goto(serving.url)
    page.wait_for_selector("body[data-ready]")
    return serving, page, complaints, requests

  yield open_page
  for context in contexts:
    context.close()


def lasso(page, reach=0.38):
  """Draws around the middle of the map."""
  box = page.locator("#canvas").bounding_box()
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
  by = reach * min(box["width"], box["height"])
  page.click("#lasso")
  page.mouse.move(x - by, y - by)
  page.mouse.down()
  for dx, dy in ((by, -by), (by, by), (-by, by)):
    page.mouse.move(x + dx, y + dy, steps=3)
  page.mouse.up()
  page.click("#lasso")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", pages.SIZES)
@pytest.mark.parametrize("count", [334, 100_000])
def test_it_opens_without_a_complaint(opened, once, count, size, scheme):
  folder = once(f"points-{count}", lambda path: points.make(path, count))
  serving, page, complaints, requests = opened(
    folder / "collection", size, scheme
  )
  painted = page.evaluate(
    "performance.getEntriesByName('first-contentful-paint')[0].startTime"
  )
  assert painted < 3000
  lasso(page)
  page.wait_for_selector("#pictures img")
  page.wait_for_timeout(100)
  pages.check(page)
  assert not complaints
  assert all(url.startswith(serving.url) for url in requests)
  # Something is drawn.
  colours = page.evaluate("""() => {
    const canvas = document.getElementById("canvas");
    const data = canvas.getContext("2d").getImageData(
      0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size;
  }""")
  assert colours > 5


def test_lasso_labels_search_names_and_questions(opened, tmp_path):
  folder = points.make(tmp_path, 80)
  # Playwright's waiting evaluates text, which the page's policy forbids.
  serving, page, complaints, _ = opened(folder, bypass_csp=True)
  # Labels by keyboard, of what the lasso holds.
  lasso(page, 0.2)
  page.wait_for_function(
    "document.getElementById('selected').textContent.includes('selected')"
  )
  some = page.evaluate("chosen()")
  assert 2 <= len(some) < 80
  page.fill("#name", "first")
  page.press("#name", "Enter")
  page.wait_for_function("Object.keys(about.given).length > 0")
  page.evaluate("document.activeElement.blur()")
  # Search by example: a click on a point, and S.
  page.keyboard.press("Escape")
  row = next(at for at in range(80) if at not in some)
  where = page.evaluate(f"[map.x({row}) / map.ratio, map.y({row}) / map.ratio]")
  box = page.locator("#canvas").bounding_box()
  page.mouse.click(box["x"] + where[0], box["y"] + where[1])
  (clicked,) = page.evaluate("chosen()")
  page.keyboard.press("s")
  page.wait_for_function("selection.length > 1")
  near = page.evaluate("selection.map((item) => item.row)")
  wanted = [each["row"] for each in serving.view.near([clicked], 48)]
  assert near == wanted
  near = [at for at in near if at not in some][:6]
  page.evaluate(f"select({near}.map((row) => ({{ row }})))")
  # One is switched off, the others get the second label by its number.
  page.click(f"#pictures button[data-row='{near[0]}']")
  page.evaluate("categories.push('second'); showCategories()")
  page.keyboard.press("2")
  page.wait_for_function("Object.values(about.given).includes('second')")
  with (folder / "labels.csv").open(newline="") as file:
    lines = [(line["id"], line["label"]) for line in csv.DictReader(file)]
  assert lines[: len(some)] == [(f"{at:06}", "first") for at in some]
  assert lines[len(some) :] == [(f"{at:06}", "second") for at in near[1:]]
  # What to label next.
  page.click("#ask")
  page.wait_for_function("selection.some((item) => item.guess)")
  # A label is taken back.
  page.evaluate(f"select([{{row: {near[1]}}}])")
  page.keyboard.press("0")
  page.wait_for_function(f"!({near[1]} in about.given)")
  # A cluster gets a name.
  page.fill("#clusters input >> nth=0", "birds")
  page.press("#clusters input >> nth=0", "Tab")
  page.wait_for_function(
    "document.getElementById('status').textContent.includes('birds')"
  )
  assert serving.view.names == {"0": "birds"}
  # The whole picture, and closed again.
  page.evaluate("select([{row: 1}])")
  page.dblclick("#pictures button")
  page.wait_for_selector("#large[open]")
  page.click("#large button")
  assert not complaints
