"""Tables about a run: accuracies, size and time, settings."""

import datetime
import json
from collections.abc import Sequence
from typing import Any

from seer_jax.apps.report import cost
from seer_jax.apps.report.checks import named, percent
from seer_jax.apps.report.history import History
from seer_jax.config import keys
from seer_jax.evals.groups import rates


def scores(each: History) -> list[list[str]]:
  """A table of accuracies: metric, untrained, best, newest."""
  rows = []
  names = dict.fromkeys(
    name
    for line in each.lines
    if "eval_seconds" in line
    for name in rates.whole(line)
    if name == "accuracy" or name.startswith(("knn/", "logistic", "svm"))
  )
  for name in names:
    curve = each.curve(name)
    if name.endswith("/std") or not curve:
      continue
    step, best = max(curve, key=lambda point: (point[1], point[0]))
    rows.append(
      [
        named(name),
        percent(curve[0][1]),
        f"{percent(best)} (step {step:,})",
        percent(curve[-1][1]),
      ]
    )
  return rows


def facts(each: History) -> list[tuple[str, str]]:
  """Size, time and hardware of a run."""
  record, config = each.record, each.config
  found = []
  if record.images:
    labels = (
      f", {len(record.labels)} labels" if record.labels else ", no labels"
    )
    found.append(("Images", f"{record.images:,}{labels}"))
    found.append(("Source", record.source))
  if seen := each.last("images_seen"):
    epochs = f" ({seen / record.images:.1f} epochs)" if record.images else ""
    found.append(("Images seen", f"{seen:,.0f}{epochs}"))
  found.append(("Steps", f"{each.step:,} of {config.steps or 0:,}"))
  found.append(("Batch", f"{config.batch_size or 0:,} images"))
  if seconds := each.last("seconds"):
    tests = cost.duration(each.total("eval_seconds"))
    found.append(
      ("Time", f"{cost.duration(seconds)}, of which evaluation {tests}")
    )
  if rate := each.median("images_per_second"):
    found.append(("Images per second", f"{rate:,.0f} (median)"))
  if (waited := each.median("data_wait")) is not None:
    found.append(("Waiting for images", f"{percent(waited)} of the time"))
  if record.starts:
    newest = record.starts[-1]
    begun = datetime.datetime.fromtimestamp(record.starts[0].time, datetime.UTC)
    found += [
      ("Begun", f"{begun:%Y-%m-%d %H:%M} UTC; started {_times(record.starts)}"),
      ("Devices", f"{newest.devices} x {newest.device}, {newest.cores} cores"),
      ("Versions", f"seer_jax {newest.seer_jax}, jax {newest.jax}"),
    ]
  return found


def _times(starts):
  return "once" if len(starts) == 1 else f"{len(starts)} times"


def settings(each: History) -> list[tuple[str, str, str]]:
  """Keys that the experiment changed: (key, value, default)."""
  chosen = {choice.key for choice in each.record.choices}
  defaults = dict(keys.flatten(keys.base()))
  return [
    (key, shown(value), shown(defaults[key]))
    for key, value in keys.flatten(each.config)
    if key not in chosen and _plain(value) != _plain(defaults[key])
  ]


def _plain(value):
  return json.loads(json.dumps(value, default=str))


def shown(value: Any) -> str:
  """A value of a config, as text."""
  if value is None:
    return "open"
  return json.dumps(_plain(value))


def differences(histories: Sequence[History]) -> list[tuple[str, list[str]]]:
  """Keys that differ between runs: (key, a value for each)."""
  flat = [dict(keys.flatten(each.config)) for each in histories]
  return [
    (key, [shown(config[key]) for config in flat])
    for key in flat[0]
    if len({json.dumps(_plain(config[key])) for config in flat}) > 1
  ]
