"""`eval` and `labels`: measuring representations."""

import argparse
import functools

from seer_jax.commands import logs, process
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files


def _add_common(parser):
  add = functools.partial(option, parser)
  add("--train", "SRC", "labelled images to learn from")
  add("--test", "SRC", "labelled images to test on")
  add(
    "--out", "DIR", "results and their runs; the same folder resumes", "evals"
  )
  add("--finetune", "FILE", "config of fine-tuning and of scratch")


def _add_eval(parser):
  parser.add_argument(
    "what",
    metavar="WHAT",
    nargs="+",
    help="workdir, checkpoint, weights by path or name, or a baseline: pixels,"
    " phash, untrained",
  )
  add = functools.partial(option, parser)
  add(
    "--evals",
    "LIST",
    "of stats, knn, logistic, svm, accuracy, linear, finetune, scratch;"
    " finetune@1%% takes a share of the labels; fairness: associations, same;"
    " robustness: shifts, corruptions; retrieval; geolocation",
    "knn,logistic",
  )
  add("--by", "LIST", "columns to split figures by; a*b crosses two", "")
  add(
    "--attributes",
    "FILE",
    "CSV or Parquet with these columns (the --test list, if it is one)",
    "",
  )
  add("--shifts", "LIST", "shifted test sets, imagenet_a=FOLDER,...", "")
  add("--seeds", "N", "of evaluations that train", 1)
  add("--linear", "FILE", "config of the linear probe's training")
  parser.add_argument(
    "--without-labels",
    action="store_true",
    help="rank by signs that need no labels: RankMe, alpha, unique prototypes",
  )
  _add_common(parser)


def _eval(options: argparse.Namespace) -> None:
  config, recipes, out = _begin(
    options, options.what, linear=options.linear, finetune=options.finetune
  )
  from seer_jax.apps import evaluate, subjects, tables

  if options.seeds < 1:
    raise errors.UserError(f"--seeds is {options.seeds}; it must be positive")
  asked = evaluate.wanted("stats" if options.without_labels else options.evals)
  for key, value in (("by", options.by), ("shifts", options.shifts)):
    if value:
      config.eval[key] = tuple(each.strip() for each in value.split(","))
  config.eval.attributes = options.attributes or config.eval.attributes
  evaluation = evaluate.Evaluation(
    evaluate.without_bank(config, asked),
    recipes,
    out,
    options.seeds,
    labelled=any(each.name != "stats" for each in asked),
  )
  opened = subjects.opened(options.what, config.seed)
  figures = tables.collect(
    result for subject in opened for result in evaluation.run(subject, asked)
  )
  if not figures:
    raise errors.UserError(
      f"--evals {options.evals} measures nothing: accuracy, associations,"
      " shifts and geolocation need weights with a classifier, which linear and"
      " finetune train, and pixels and phash have no trunk to train"
    )
  columns = [subject.name for subject in opened]
  if options.without_labels:
    columns = tables.by_rankme(figures, columns)
  rows = tables.cells(figures, columns)
  if options.without_labels:
    order = map(str, range(1, len(columns) + 1))
    rows.insert(1, ["rank, by features/rankme", *order])
  files.write_text(out / "evals.md", tables.markdown(rows) + "\n")
  print(tables.terminal(rows))


def _add_labels(parser):
  parser.add_argument(
    "what", metavar="WHAT", help="workdir, checkpoint, weights by path or name"
  )
  add = functools.partial(option, parser)
  add("--shares", "LIST", "of the labels, in percent", "1,2,5,10,20,50,100")
  add("--seeds", "N", "draws of the labels", 3)
  add(
    "--seeds-trained",
    "N",
    "of all but the probe, if as many of these take too long",
    kind=int,
  )
  _add_common(parser)


def _labels(options: argparse.Namespace) -> None:
  config, recipes, out = _begin(
    options, [options.what], finetune=options.finetune
  )
  from seer_jax.apps import evaluate, label_curve, subjects, tables

  shares = _shares(options.shares)
  seeds = options.seeds
  trained = options.seeds_trained or seeds
  if min(seeds, trained) < 1:
    raise errors.UserError(
      f"--seeds is {min(seeds, trained)}; it must be positive"
    )
  evaluation = evaluate.Evaluation(config, recipes, out)
  ours, pixels = subjects.opened([options.what, "pixels"], config.seed)
  curves = label_curve.measured(
    evaluation, ours, pixels, shares, seeds, trained
  )
  table = label_curve.rows(curves, shares, evaluation.images)
  said = label_curve.sentences(curves, shares)
  text = "\n\n".join([tables.markdown(table), *said])
  files.write_text(out / "labels.md", text + "\n")
  for kind in ("png", "svg"):
    with files.whole_file(out / f"labels.{kind}") as file:
      label_curve.plot(curves, shares, evaluation.images, ours.name, file, kind)
  print("\n".join([tables.terminal(table), *said]))


def _shares(text):
  try:
    shares = [float(each) / 100 for each in text.split(",")]
  except ValueError:
    shares = []
  if not shares or sorted(set(shares)) != shares or shares[0] <= 0:
    raise errors.UserError(
      f"--shares is {text}; give rising percentages, such as 1,10,100"
    )
  if shares[-1] > 1:
    raise errors.UserError(f"--shares is {text}; the last may be 100 at most")
  return shares


def _begin(options, names, **recipes):
  """(config, configs of what trains, out) of the options."""
  from seer_jax.config import defaults, from_flags

  logs.show()
  process.keep_compiled()
  path = options.config or defaults.__file__
  config = from_flags.read(path, options.overrides)
  for which in ("train", "test"):
    if getattr(options, which):
      _point(config.data[which], getattr(options, which))
  _take_data(config, names, bool(options.test))
  of_recipes = {
    name: from_flags.read(
      path or f"{defaults.__file__}:labelled", options.overrides
    )
    for name, path in recipes.items()
  }
  return config, of_recipes, files.user_path(options.out)


def _point(source, path):
  from seer_jax.data import pack

  source.path = path
  source.kind = pack.kind_of(str(files.user_path(path)))


def _take_data(config, names, has_test):
  """Uses the data of the first run, if no images are given."""
  from seer_jax.config import resolved

  train = config.data.train
  if train.path or train.name or train.kind not in ("folder", "tfds"):
    return
  for name in names:
    workdir = files.user_path(name)
    workdir = workdir.parent.parent if workdir.name.isdigit() else workdir
    if (workdir / "config.json").exists():
      data = resolved.of_run(workdir).data
      config.data.train = data.train
      if not has_test:
        config.data.test = data.test
      return


EVAL = Command(
  "Measures representations: kNN, probes, fine-tuning, few labels; resumes.",
  (
    "seer-jax eval runs/photos untrained pixels --train ~/a --test ~/b",
    "seer-jax eval seer_32 --evals knn,linear,finetune@1% --train ~/in1k/train"
    " --test ~/in1k/val",
  ),
  _add_eval,
  _eval,
  has_config=True,
)
LABELS = Command(
  "Plots accuracy over the number of labels, against training from scratch.",
  (
    "seer-jax labels runs/photos --train ~/a --test ~/b --shares 1,10,100",
    "seer-jax labels seer_32 --train ~/in1k/train --test ~/in1k/val --seeds 1",
  ),
  _add_labels,
  _labels,
  has_config=True,
)
