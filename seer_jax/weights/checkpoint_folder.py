"""The folder of a run's checkpoints: which exist, are complete, and are kept.

A checkpoint is a folder named by its step. It is written under another name,
hashed, and renamed when all of it is on disk. Only the primary process changes
anything.
"""

import contextlib
import json
import logging
import pathlib
import re
import shutil
from typing import Any

import ml_collections

from seer_jax.runtime import checksums, distributed, errors, files

_log = logging.getLogger(__name__)

# The file beside the arrays, and its name in older versions.
_PROGRESS, _FORMER_PROGRESS = "progress.json", "place.json"
# Reasons to look for in the messages of libraries.
_REASONS = (
  *("No space left on device", "Disk quota exceeded"),
  *("Read-only file system", "Permission denied", "Input/output error"),
)


class CheckpointFolder:
  """Checkpoints by step; does not read their arrays."""

  def __init__(
    self, path: pathlib.Path, keep: ml_collections.ConfigDict | None
  ):
    """Takes a folder, and `config.checkpoint`; None keeps all."""
    self.path, self._keep = path.absolute(), keep

  def of(self, step: int) -> pathlib.Path:
    return self.path / str(step)

  def steps(self) -> list[int]:
    """Steps of all checkpoints, rising."""
    if not self.path.is_dir():
      return []
    names = [path.name for path in self.path.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))

  def progress(self, step: int) -> dict[str, Any]:
    """The progress saved with a checkpoint, as `publish` got it."""
    path = self.of(step) / _PROGRESS
    if not path.exists():
      path = path.with_name(_FORMER_PROGRESS)
    return json.loads(path.read_text())

  def clean_up(self) -> None:
    """Removes unfinished writes and deletions of killed runs."""
    if distributed.is_primary():
      for path in self.path.glob("*.replaced"):
        _restore_replaced(path)
      for suffix in ("part*", "deleting", "replaced"):
        for path in self.path.glob(f"*.{suffix}"):
          _remove(path)

  def begin(self, step: int, needed: int) -> tuple[pathlib.Path, str]:
    """Prepares a checkpoint of `needed` bytes.

    Returns the folder to write to, and why it cannot be written, or "". Checked
    in advance, since a failed save logs many tracebacks.
    """
    part = self.path / f"{step}.part"
    if not distributed.is_primary():
      return part, ""
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      probe = self.path / "probe.part"
      probe.mkdir(exist_ok=True)
      probe.rmdir()
      free = shutil.disk_usage(self.path).free
      _remove(part)
    except OSError as error:
      return part, self.reason(error)
    if free >= needed:
      return part, ""
    return part, (
      f"No space left on device ({self.path}): {needed / 2**20:,.1f} MiB are"
      f" needed, {free / 2**20:,.1f} MiB are free"
    )

  def publish(
    self, part: pathlib.Path, step: int, progress: dict[str, Any]
  ) -> None:
    """Gives a complete checkpoint its name, replacing an older one.

    Raises OSError if the disk refuses; the older one then stays.
    """
    if not distributed.is_primary():
      return
    final = self.of(step)
    replaced = final.with_suffix(".replaced")
    try:
      (part / _PROGRESS).write_text(json.dumps(progress) + "\n")
      checksums.seal(part)
      if final.exists():  # Of the same step, without its evaluation.
        final.rename(replaced)
      part.rename(final)
      files.flush(self.path)
      files.flush(self.path.parent)
      _remove(replaced)
    except OSError:
      with contextlib.suppress(OSError):
        _restore_replaced(replaced)
      raise

  def abandon(self, part: pathlib.Path) -> None:
    """Removes a checkpoint that could not be written."""
    if distributed.is_primary():
      _remove(part)

  def damage(self, step: int) -> str:
    """What is damaged of a checkpoint, or "": the same on all processes.

    Raises UserError if this user may not read it.
    """
    complaints = []
    if distributed.is_primary():
      try:
        complaints = checksums.complaints(self.of(step))
      except PermissionError as error:
        raise errors.UserError(
          f"cannot read {error.filename}: {error.strerror}; give this user read"
          " and write access to the whole workdir"
        ) from error
    count = distributed.from_primary(len(complaints))
    more = f" (and {count - 1} more)" if count > 1 else ""
    first = complaints[0] if complaints else "damaged files"
    return first + more if count else ""

  def set_aside(self, step: int, damage: str) -> None:
    """Renames a damaged checkpoint, so that no run reads it.

    Raises UserError if it cannot be renamed.
    """
    folder = self.of(step)
    aside, count = folder.with_suffix(".damaged"), 1
    while aside.exists():
      count += 1
      aside = folder.with_suffix(f".damaged{count}")
    _log.warning(
      "the checkpoint of step %d is damaged: %s; renamed to %s",
      step,
      damage,
      aside,
    )
    if distributed.is_primary():
      try:
        folder.rename(aside)
      except OSError as error:
        raise errors.UserError(
          f"cannot rename the damaged checkpoint {folder}: {error.strerror}"
        ) from error

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints after a step to which a run returns."""
    if distributed.is_primary():
      for later in self.steps():
        if later > step:
          _delete(self.of(later))

  def prune(self) -> None:
    """Deletes what `config.checkpoint` does not keep; failing is a warning."""
    if self._keep is None or not distributed.is_primary():
      return
    try:
      for step in set(self.steps()) - self._kept():
        _delete(self.of(step))
    except OSError as error:
      _log.warning("cannot delete old checkpoints: %s", self.reason(error))

  def _kept(self):
    keep, steps = self._keep, self.steps()
    kept = set(steps[-keep.keep :])
    # Rollbacks need one of these, beside those saved at signals and failures.
    kept.update([step for step in steps if step % keep.every == 0][-1:])
    if keep.keep_every:
      kept |= {step for step in steps if step % keep.keep_every == 0}
    if keep.best:
      scores = {step: self._score(step) for step in steps}
      ranked = [step for step in steps if scores[step] is not None]
      ranked.sort(key=lambda step: (scores[step], step))
      kept |= set(ranked[-keep.best :])
    return kept

  def _score(self, step):
    try:
      evaluation = self.progress(step).get("evaluation", {})
      return evaluation.get(self._keep.best_metric)
    except (OSError, ValueError):
      return None

  def reason(self, error: BaseException) -> str:
    """A short reason for an error from layers of libraries."""
    text = " ".join(str(error).split())
    for reason in _REASONS:
      if reason.lower() in text.lower():
        return f"{reason} ({self.path})"
    return f"{type(error).__name__}: {text[:300]}"


def _delete(folder):
  """Renames first, so that no half-deleted folder has a step's name."""
  gone = folder.with_suffix(".deleting")
  _remove(gone)
  folder.rename(gone)
  _remove(gone)


def _restore_replaced(replaced):
  """Undoes the first of two renames, if the second was not done."""
  if replaced.exists() and not replaced.with_suffix("").exists():
    replaced.rename(replaced.with_suffix(""))


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
