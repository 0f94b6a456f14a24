"""Names of figures in words, and figures as text."""

import re
from collections.abc import Mapping

from seer_jax.apps.report import checks

_SHIFTS = {
  "imagenet_a": "ImageNet-A",
  "imagenet_r": "ImageNet-R",
  "imagenet_sketch": "ImageNet-Sketch",
  "imagenet_v2": "ImageNet-V2",
  "imagenet_real": "ImageNet ReaL",
  "objectnet": "ObjectNet",
}


def named(name: str) -> str:
  """A figure in words."""
  kind, _, rest = name.partition("/")
  match kind:
    case "logistic" | "svm":
      labels = {"100%": "all labels"}.get(rest, f"{rest} of the labels")
      labels = rest if rest.endswith("-shot") else labels
      return checks.named(f"{kind}/").replace("()", f"({labels})")
    case "knn":
      return checks.named(name)
    case "accuracy" | "linear" | "finetune" | "scratch":
      what = {"accuracy": "Accuracy", "linear": "Linear probe, accuracy"}.get(
        kind, f"{kind.capitalize()}, accuracy"
      )
      return what + (", one of five right" if rest == "top5" else "")
    case "corruptions":
      under = "on clean images" if rest == "clean" else f"under {rest}"
      return f"Accuracy {under.replace('_', ' ')}"
    case "shift":
      shift, _, what = rest.partition("/")
      return f"{_SHIFTS.get(shift, shift)}{what and ', '}{what}"
    case "retrieval":
      *which, what = rest.split("/")
      what = re.sub("^mP@", "precision at ", what).replace(
        "mAP", "mean average precision"
      )
      return " ".join(["Retrieval,", *which, what])
    case "same":
      return f"Same attribute among the {rest.partition('@')[2]} nearest"
    case "associations":
      bucket, _, threshold = rest.rpartition("/t=")
      return (
        f"Associated with {bucket!r}"
        + f" (probability {threshold} or more)" * (float(threshold) > 0)
      ).replace("'", '"')
    case "geolocation":
      return f"Placed within {rest.replace('km', ' km')}"
  return name.replace("/", ", ")


def column(name: str) -> str:
  """A column of attributes in words."""
  return " and ".join(name.replace("_", " ").split("*"))


def share(value: float | None) -> str:
  """A share as "47.9 %"; "" if it was not measured."""
  return "" if value is None else checks.percent(value)


def rate(figures: Mapping[str, float], name: str) -> str:
  """A figure with its interval: "47.9 % (45.8 to 50.1)"."""
  value = figures.get(name)
  if value is None:
    return "too few" if f"{name}/n" in figures else ""
  low, high = (figures.get(f"{name}/{end}") for end in ("low", "high"))
  text = checks.percent(value)
  if low is None or high is None:
    return text
  return f"{text} ({100 * low:.1f} to {100 * high:.1f})"
