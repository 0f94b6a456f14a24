"""The page in headless Chromium: digits, CIFAR-10 and a collapsed run."""

import itertools

import pages
import pytest

from seer_jax.apps.report import report


@pytest.fixture(scope="session")
def written(once):
  """`written(name, workdirs)`: the page of runs, with pictures."""

  def write(name, *workdirs):
    def make(folder):
      folder.mkdir()
      report.write(workdirs, folder / report.NAME, images=120)

    return once(f"page-{name}", make) / report.NAME

  return write


@pytest.fixture(params=["tiny", "cifar", "collapsed", "compared"])
def path(request, written):
  """The page of each of the runs, and of two side by side."""
  names = [request.param]
  if request.param == "compared":
    names = ["tiny", "collapsed"]
  workdirs = [request.getfixturevalue(name) for name in names]
  return written(request.param, *workdirs)


def test_it_opens_from_disk_without_a_complaint_or_a_request(browser, path):
  for size in pages.SIZES:
    for scheme in ("light", "dark"):
      page, complaints, requests = pages.new(browser, size, scheme)
      page.goto(path.as_uri())
      page.wait_for_selector("body[data-ready]")
      pages.check(page)
      drawn = page.locator(".plot svg").count()
      assert drawn == page.locator(".plot").count() > 5
      # All numbers open: nothing overflows then either.
      page.evaluate(
        "document.querySelectorAll('details').forEach(e => e.open = true)"
      )
      pages.check(page)
      assert not complaints
      assert [each for each in requests if not each.startswith("data:")] == [
        path.as_uri()
      ]
      page.context.close()


def test_it_is_used_by_keyboard_and_read_aloud(browser, written, tiny):
  page, complaints, _ = pages.new(browser)
  page.goto(written("tiny", tiny).as_uri())
  page.wait_for_selector("body[data-ready]")
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.textContent").startswith("Skip")
  # Each picture and each chart says what it shows.
  silent = page.evaluate("""() => [
    ...document.querySelectorAll("img:not([alt]), img[alt='']"),
    ...document.querySelectorAll("[role=img]:not([aria-label])"),
  ].length""")
  assert silent == 0
  heard = page.locator(".plot").first.get_attribute("aria-label")
  assert "at step" in heard and "lowest" in heard
  # Headings do not skip a level.
  levels = page.evaluate(
    "[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])"
  )
  assert levels[0] == 1
  steps = itertools.pairwise(levels)
  assert all(after - before <= 1 for before, after in steps)
  # A label alone, by keyboard, and all of them again.
  button = page.locator(".legend button").first
  before = page.locator("#map-0 svg circle").count()
  button.press("Enter")
  assert button.get_attribute("aria-pressed") == "true"
  assert page.locator("#map-0 svg circle").count() < before
  button.press("Enter")
  assert page.locator("#map-0 svg circle").count() == before
  assert not complaints


def test_without_scripts_the_numbers_are_there(browser, written, tiny):
  page, _, _ = pages.new(browser, java_script_enabled=False)
  page.goto(written("tiny", tiny).as_uri())
  assert "switched off here" in page.locator("noscript").first.inner_text()
  assert page.locator(".chart table tbody tr").count() > 20
