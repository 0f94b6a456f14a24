"""`label` and `view`: from a few labels to all, and by eye."""

import argparse
import functools
import os
import sys

from seer_jax.commands import collection
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files


def _add_label(parser):
  parser.add_argument(
    "examples",
    metavar="EXAMPLES",
    help="a folder with a sub-folder of examples per category, or a CSV file"
    " with columns id and label",
  )
  parser.add_argument(
    "source",
    metavar="SOURCE",
    help="embeddings, as seer-jax embed writes them; or images, with --weights",
  )
  add = functools.partial(option, parser)
  add("--weights", "W", "to embed SOURCE, or if they have moved")
  add("--out", "DIR", "for predictions and pages", "sorted")
  add("--precision", "P", "wanted of accepted predictions", 0.95)
  add(
    "--shares",
    "LIST",
    "how frequent categories are, if not as among the examples: harmful=0.01",
  )
  add("--ask", "N", "write ask.csv: the N images most worth labelling", 0)
  add("--links", "DIR", "a folder of links for each category")


def _label(options: argparse.Namespace) -> None:
  found = _embedded(options)
  from seer_jax.apps import tables
  from seer_jax.apps.collection import cluster, examples, label
  from seer_jax.apps.collection import label_report as report
  from seer_jax.apps.embedding import shards
  from seer_jax.apps.view import gallery

  if files.user_path(options.examples).is_dir():
    known = examples.of_folder(options.examples, found, options.weights)
  else:
    known = examples.of_table(options.examples, found)
  shares = examples.shares_of(options.shares, known) if options.shares else None
  predictions = label.predict(known, found.features, options.precision, shares)
  rows = report.rows_of(found, known, predictions)
  groups = report.members(known, predictions)
  print(tables.terminal(report.table(found, known, predictions)))
  for line in report.sentences(found, known, predictions, options.precision):
    print(line)
  out = files.user_path(options.out)
  collection.write(out / "predictions.csv", shards.as_csv(rows))
  collection.write(
    out / "predictions.html",
    gallery.page(
      f"Sorted into {len(known.names)} categories",
      "The most certain predictions of each category, with their probability;"
      " last, images of which the classifier is not sure.",
      found,
      gallery.first_of(found, groups, predictions.confidence),
    ),
  )
  if options.ask:
    asked = label.ask(predictions, found.features, known.rows_E, options.ask)
    rows = report.questions(found, asked)
    collection.write(out / "ask.csv", shards.as_csv(rows))
  if options.links:
    links = cluster.link(files.user_path(options.links), found, groups)
    print(f"{links} links in {options.links}")


def _embedded(options):
  """The embeddings in SOURCE, or those made of its images."""
  from seer_jax.apps.embedding import embed_folder

  source = files.user_path(options.source)
  if not (source / embed_folder.ABOUT).exists():
    if not options.weights:
      raise errors.UserError(
        f"{options.source} has no embeddings: run seer-jax embed first, or give"
        " --weights to embed it here"
      )
    target = str(files.user_path(options.out) / "embedded")
    arguments = [options.source, "--weights", options.weights, "--out", target]
    collection.EMBED("embed", arguments)
    options.source = target
  return collection.opened(options.source)


def _add_view(parser):
  parser.add_argument(
    "folder", metavar="DIR", help="embeddings, as seer-jax embed writes them"
  )
  add = functools.partial(option, parser)
  add(
    "--map",
    None,
    "auto: UMAP for up to 50,000 images, if it is installed",
    "auto",
    choices=("auto", "umap", "pca"),
  )
  add("--port", "N", "to listen at; 0 is any free one", 0)
  parser.add_argument(
    "--no-browser", action="store_true", help="only print the address"
  )


def _view(options: argparse.Namespace) -> None:
  import webbrowser

  found = collection.opened(options.folder)
  from seer_jax.apps.view import collection_view, server

  view = collection_view.CollectionView(found, options.map)
  with server.Server(view, options.port) as serving:
    try:
      print(f"{serving.url}\nopen it in a browser of this machine; Ctrl-C ends")
      sys.stdout.flush()
      if not options.no_browser and _has_screen():
        webbrowser.open(serving.url)
      serving.serve_forever()
    except KeyboardInterrupt:
      print(f"ended; labels are in {found.folder / collection_view.LABELS}")


def _has_screen():
  """Without a screen, a terminal browser would open, or an error appear."""
  return sys.platform != "linux" or bool(
    {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
  )


LABEL = Command(
  "Sorts images by a few examples per category; says where it is not sure.",
  (
    "seer-jax label ~/examples ~/photos.seer --precision 0.95",
    "seer-jax label ~/labels.csv ~/photos.seer --ask 20",
  ),
  _add_label,
  _label,
)
VIEW = Command(
  "Shows a map of the images in the browser, to look, select and label.",
  (
    "seer-jax view ~/photos.seer",
    "seer-jax view ~/photos.seer --map pca --port 8080 --no-browser",
  ),
  _add_view,
  _view,
)
