"""Did it work? A verdict on a run in words, with what to do next."""

import shlex
from typing import NamedTuple

from seer_jax.apps.report import checks as checks_lib
from seer_jax.apps.report.checks import BAD, GOOD, UNSURE, Check, named, percent
from seer_jax.apps.report.history import History
from seer_jax.apps.report.worth import Worth
from seer_jax.training import monitors


class Advice(NamedTuple):
  """Something to do, and the command for it, or ""."""

  text: str
  command: str = ""


class Verdict(NamedTuple):
  """The top of a report."""

  state: str  # `GOOD`, `UNSURE` or `BAD`.
  title: str
  sentence: str
  checks: list[Check]  # The signs behind it.
  advice: list[Advice]  # What to do next, the most promising first.


def judge(history: History, worth: Worth | None = None) -> Verdict:
  """Judges a run by its history, and by its features on a sample."""
  signs = list(checks_lib.of_learning(history))
  beside_pixels = (
    [checks_lib.of_worth(worth)] if worth and history.is_pretraining else []
  )
  checks = [*signs, *beside_pixels, *checks_lib.of_operation(history)]
  state, title, sentence, advice = (
    _diverged(history)
    or _empty(history)
    or _collapsed(history)
    or _unfinished(history)
    or _doubtful(history, signs)
    or _beaten(history, beside_pixels)
    or _learned(history)
  )
  return Verdict(state, title, sentence, checks, advice + _upkeep(history))


def _diverged(history):
  if not history.gave_up:
    return None
  rate = history.config.optim.lr / 3
  return (
    BAD,
    "It diverged",
    f"After step {history.step} of {history.config.steps} the loss or the"
    " gradient was no longer a finite number, again after a rollback, and the"
    " run gave up. Its last checkpoint is from before that.",
    [
      Advice(
        "Find the cause: run the same command with replay instead of train. It"
        " repeats the step and names the images or the layer.",
        f"seer-jax replay --config … --workdir {_quoted(history)}",
      ),
      Advice(
        "Then train again, in a new workdir, with a lower rate",
        f"--config.optim.lr={rate:.3g}",
      ),
    ],
  )


def _empty(history):
  if history.curve("loss"):
    return None
  return (
    UNSURE,
    "It has not begun",
    "No step has been logged, so there is nothing to judge yet.",
    [Advice("Run the same command again: it resumes where it stopped.")],
  )


def _collapsed(history):
  found = _collapse(history)
  if found is None:
    return None
  steps, step = history.config.steps, history.step
  if step < monitors.patience(steps or 0):
    title = "Too short to tell" if history.is_done else "Too early to tell"
    advice = Advice(
      "Train for longer: the loss stays at ln K for the first hundred steps"
      " even when all is well",
      f"--config.steps={max(1000, 4 * step)}" if history.is_done else "",
    )
    return UNSURE, title, f"After {step} steps {found.what}.", [advice]
  return (
    BAD,
    "It did not learn",
    f"It collapsed: after {step} steps {found.what}. Do not use its features.",
    [
      Advice(
        "Train again in a new workdir (--workdir) with the same command and"
        " one of the following changes, the most promising first. The loss of"
        f" a healthy run leaves ln K within {monitors.patience(steps)} steps;"
        " stop one that does not."
      ),
      *(
        Advice(what[:1].upper() + what[1:], flag) for what, flag in found.tries
      ),
    ],
  )


def _collapse(history):
  newest = {
    name: history.last(name)
    for name in ("prototypes/max_share", "loss_over_lnk")
  }
  return monitors.collapse(
    {name: value for name, value in newest.items() if value is not None},
    history.config,
  )


def _unfinished(history):
  if history.is_done or history.config.steps is None:
    return None
  return (
    UNSURE,
    "It is not finished",
    f"Step {history.step} of {history.config.steps}: it is running, or it was"
    f" stopped. So far: {_progress(history)}",
    [
      Advice(
        "If it is not running, run the same command again: it resumes where it"
        " stopped, and loses nothing."
      )
    ],
  )


def _doubtful(history, signs):
  for state, title in (
    (BAD, "It did not learn what it should"),
    (UNSURE, "It learned little"),
  ):
    for sign in signs:
      if sign.state == state:
        sentence = f"{sign.meaning} {_progress(history)}"
        return state, title, sentence, _weak(history)
  return None


def _beaten(history, beside_pixels):
  for check in beside_pixels:
    if check.state != GOOD:
      return (
        UNSURE,
        "It learned, but raw pixels still do better",
        f"On a sample, {check.value}. {_progress(history)}",
        _weak(history),
      )
  return None


def _learned(history):
  lead = words = ""
  if history.score and history.is_pretraining:
    lead = "Its features tell images apart better than before training. "
  if not history.score:
    words = (
      " There were no labels to test the features with, so this is judged by"
      " the loss, the prototypes and the spread of the features alone."
    )
  sentence = lead + _progress(history) + words
  return GOOD, "It learned", sentence, _next_steps(history)


def _weak(history):
  """Advice for a run that learned too little."""
  more = 4 * (history.config.steps or 0)
  return [
    Advice("Train for longer, in a new workdir", f"--config.steps={more}"),
    Advice(
      "Compare it with the raw pixels and with the untrained network on all"
      " of your labelled images",
      f"seer-jax eval {_quoted(history)} untrained pixels",
    ),
    Advice(
      "With few images, take released weights instead of training your own",
      "seer-jax embed FOLDER --weights seer_32 --out EMBEDDED",
    ),
  ]


def _next_steps(history):
  """Uses of a run that learned."""
  name = _quoted(history)
  if not history.is_pretraining:
    return [
      Advice(
        "Take the weights elsewhere",
        f"seer-jax convert {name} model.safetensors --to timm",
      )
    ]
  return [
    Advice(
      "Embed your pictures, and then search, cluster and label them",
      f"seer-jax embed FOLDER --weights {name} --out EMBEDDED",
    ),
    Advice(
      "Measure what the features are worth beside the untrained network and"
      " raw pixels (needs labels)",
      f"seer-jax eval {name} untrained pixels",
    ),
    Advice(
      "Take the weights elsewhere",
      f"seer-jax convert {name} model.safetensors --to timm",
    ),
  ]


def _upkeep(history):
  """Advice that helps any run."""
  found = []
  waited = history.median("data_wait") or 0
  if monitors.is_starved(waited):
    cores = history.record.starts[-1].cores if history.record.starts else 1
    words = monitors.feeding(history.config.data.workers or 0, cores)
    found.append(
      Advice(f"Steps waited for images {waited:.0%} of the time: {words}")
    )
  if count := len(history.bad_images):
    files = "1 file" if count == 1 else f"{count:,} files"
    found.append(
      Advice(
        f"{files} could not be used as images: listed below, to be repaired or"
        " removed"
      )
    )
  return found


def _progress(history):
  """What changed over the run, in one or two sentences."""
  parts = []
  score = history.score
  if score:
    before, after = history.first(score), history.last(score)
    parts.append(
      f"{named(score)} is {percent(after)}; before training it was"
      f" {percent(before)}."
    )
  if history.is_pretraining and (loss := history.last("loss_over_lnk")):
    parts.append(f"The loss is {loss:.2f} of ln K, where 1 is guessing.")
  elif history.curve("loss"):
    first, last = history.first("loss"), history.last("loss")
    parts.append(f"The loss went from {first:.3g} to {last:.3g}.")
  return " ".join(parts)


def _quoted(history):
  return shlex.quote(str(history.workdir))
