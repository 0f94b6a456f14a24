"""Checkpoints: state and place in the run together, arrays through orbax.

A checkpoint is a folder named after its step. It is written under another name,
hashed, and renamed when the disk has all of it: so it is complete or it is not
there. Of several processes each writes its arrays; the first does the rest.
"""

import concurrent.futures
import contextlib
import ctypes
import json
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from orbax.checkpoint import v1 as ocp

from seer_jax.runtime import checksums, distributed, errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import state

_log = logging.getLogger(__name__)

# Each of orbax's threads shouts what we tell in one line.
logging.getLogger("absl").addFilter(
  lambda record: not (record.exc_info and "orbax" in record.pathname)
)

_PLACE = "place.json"
_SLOW = 10  # Seconds that a save may wait for the one before, untold.
_GIVE_UP = 24 * 3600  # Seconds of a save; a stuck one is the watchdog's.


class Checkpoints:
  """The checkpoints of one folder, written in the background.

  Arrays are saved as the mesh stores them (see `mesh.py`), beside the shapes of
  those that it padded: so any mesh can read what any other saved.

  Attributes:
    newest: step of the newest that is known to be on disk, 0 before any.
  """

  def __init__(
    self, folder: pathlib.Path, keep: ml_collections.ConfigDict | None = None
  ):
    """Takes the folder, and which to keep: `config.checkpoint`; None all."""
    self._folder, self._keep = folder.absolute(), keep
    # Orbax gives up a save after 20 minutes, and tells the loop only then.
    self._patience = ocp.Context()
    self._patience.asynchronous.timeout_secs = _GIVE_UP
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future[None] | None = None
    self._failure = ""
    self.newest = 0

  def tidy(self) -> None:
    """Removes what was being written or deleted when a run was killed."""
    if distributed.is_lead():
      for path in self._folder.glob("*.replaced"):
        _put_back(path)
      for ending in ("part*", "deleting", "replaced"):
        for path in self._folder.glob(f"*.{ending}"):
          _remove(path)

  def save(
    self,
    step: int,
    now: state.State,
    natural: state.State,
    place: dict[str, Any],
  ) -> None:
    """Copies the state and returns; the writing goes on behind.

    Waits for the save before, with `checkpoint.wait` for this one too. Whether
    it all went well, `failure` says.

    Args:
      step: names the checkpoint.
      now: the state at that step.
      natural: its shapes without padding.
      place: where the run stands, as JSON.
    """
    self.wait()
    shapes, stored = _shapes(natural), _shapes(now)
    padded = {
      path: shape for path, shape in shapes.items() if shape != stored[path]
    }
    part = self._folder / f"{step}.part"
    words = self._obstacle(now)
    if distributed.any_of(bool(words)):
      self.fail(words)
      return
    try:
      if distributed.is_lead():
        _remove(part)
      with self._patience:
        response = ocp.save_checkpointables_async(part, {"state": now})
    except Exception as error:  # Orbax raises whatever its layers raise.
      self._failure = self._reason(error)
      return
    self._writing = self._writer.submit(
      self._finish, response, step, part, place | {"padded": padded}
    )
    if self._keep is not None and self._keep.wait:
      self.wait()

  def _obstacle(self, now):
    """Looked for first: a save that fails in its middle is a noisy affair."""
    if not distributed.is_lead():
      return ""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(now))
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      probe = self._folder / "probe.part"
      probe.mkdir(exist_ok=True)
      probe.rmdir()
      free = shutil.disk_usage(self._folder).free
    except OSError as error:
      return self._reason(error)
    if free >= needed:
      return ""
    return (
      f"No space left on device ({self._folder}): {needed / 2**20:,.1f} MiB are"
      f" needed, {free / 2**20:,.1f} MiB are free"
    )

  def _finish(self, response, step, part, place):
    final = self._folder / str(step)
    replaced = final.with_suffix(".replaced")
    try:
      response.result()
      if distributed.is_lead():
        (part / _PLACE).write_text(json.dumps(place) + "\n")
        checksums.seal(part)
        if final.exists():  # Of the same step, without its evaluation.
          final.rename(replaced)
        part.rename(final)
        checksums.flush(self._folder)
        checksums.flush(self._folder.parent)
        _remove(replaced)
      self.newest = step
    except Exception as error:
      self._failure = self._reason(error)
      if distributed.is_lead():
        with contextlib.suppress(OSError):
          _put_back(replaced)
        _remove(part)
      return
    if distributed.is_lead():
      try:
        self._thin_out()
      except OSError as error:
        _log.warning("cannot delete old checkpoints: %s", self._reason(error))
    _give_memory_back()

  def wait(self) -> None:
    """Returns when nothing is being written."""
    if self._writing is not None:
      began = time.monotonic()
      self._writing.result()
      self._writing = None
      waited = time.monotonic() - began
      if waited > _SLOW:
        _log.warning(
          "waited %.0f s for the checkpoint before: the disk of %s is slow;"
          " raise config.checkpoint.every, or keep the workdir elsewhere",
          waited,
          self._folder,
        )

  def fail(self, words: str) -> None:
    """Counts as a save that failed."""
    self._failure = words

  def failure(self) -> str:
    """Why the last save failed, told once; "" when it did not (yet)."""
    words, self._failure = self._failure, ""
    return words

  def restore(
    self,
    abstract: state.State,
    natural: state.State,
    wanted: Callable[[int], bool] = lambda step: True,
  ) -> tuple[state.State, dict[str, Any]] | None:
    """The newest whole checkpoint: state and place; None where there is none.

    Damaged ones on the way to it are set aside.

    Args:
      abstract: shapes, dtypes and shardings to store it in.
      natural: the shapes without padding.
      wanted: whether a step's will do.

    Raises:
      UserError: it is of another network; or all there are are damaged.
    """
    self.wait()
    damaged = []
    for step in self._steps(wanted):
      words = self._complaint(step)
      if not words:
        found = self._load(step, abstract, natural)
        if _finite(found[0]):
          for each in damaged:
            self._set_aside(*each)
          self.newest = step
          return found
        words = "it holds values that are not finite"
      damaged.append((step, words))
    if damaged:
      step, words = damaged[0]
      raise errors.UserError(
        f"no checkpoint in {self._folder} is whole; of {step}: {words}. Put"
        " back a copy; or, to begin again, remove them"
      )
    return None

  def _steps(self, wanted) -> Iterator[int]:
    """Newest first, alike on all processes: as process 0 sees them."""
    steps = sorted(filter(wanted, self._there()))
    while True:
      step = distributed.tell(steps.pop() if steps else -1)
      if step < 0:
        return
      yield step

  def _complaint(self, step):
    """What is wrong with the files; read by process 0 alone."""
    words = []
    if distributed.is_lead():
      try:
        words = checksums.complaints(self._folder / str(step))
      except PermissionError as error:  # Nothing is damaged.
        raise errors.UserError(
          f"cannot read {error.filename}: {error.strerror}; let this user read"
          " and write all of the workdir"
        ) from error
    count = distributed.tell(len(words))
    more = f" (and {count - 1} more)" if count > 1 else ""
    return (words[0] if words else "damaged files") + more if count else ""

  def _load(self, step, abstract, natural):
    folder = self._folder / str(step)
    place = json.loads((folder / _PLACE).read_text())
    saved = _shapes(ocp.checkpointables_metadata(folder).metadata["state"])
    saved |= _natural_shapes(place)
    del place["padded"]
    wanted = _shapes(natural)
    differing = [
      f"{path}: {saved.get(path, 'nothing')} there,"
      f" {wanted.get(path, 'nothing')} here"
      for path in sorted(saved.keys() | wanted.keys())
      if saved.get(path) != wanted.get(path)
    ]
    if differing:
      more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
      raise errors.UserError(
        f"the checkpoint {folder} is of another network:"
        f" {'; '.join(differing[:3])}{more}. Give another --workdir"
      )
    context = ocp.Context()
    # The padding of this mesh may differ from that of the saving one. All else
    # about shapes was compared above.
    context.array.loading.enable_padding_and_truncation = True
    with context:
      found = ocp.load_checkpointables(folder, {"state": abstract})
    return found["state"], place

  def _set_aside(self, step, words):
    """Keeps what is damaged, for people, under a name that is not used."""
    folder = self._folder / str(step)
    aside, count = folder.with_suffix(".damaged"), 1
    while aside.exists():
      count += 1
      aside = folder.with_suffix(f".damaged{count}")
    _log.warning(
      "the checkpoint of step %d is damaged: %s; set aside as %s",
      step,
      words,
      aside,
    )
    if distributed.is_lead():
      try:
        folder.rename(aside)
      except OSError as error:
        raise errors.UserError(
          f"cannot set the damaged checkpoint {folder} aside: {error.strerror}"
        ) from error

  def drop_after(self, step: int) -> None:
    """Forgets what a run saved beyond a step that it goes back to."""
    if distributed.is_lead():
      for later in [each for each in self._there() if each > step]:
        _delete(self._folder / str(later))

  def _thin_out(self):
    """Deletes what `config.checkpoint` does not ask to keep."""
    if self._keep is None:
      return
    steps = sorted(self._there())
    kept = set(steps[-self._keep.keep :])
    # Rollbacks go to these, wherever signals and failures had others saved.
    regular = [step for step in steps if step % self._keep.every == 0]
    kept |= set(regular[-1:])
    if self._keep.keep_every:
      kept |= {step for step in steps if step % self._keep.keep_every == 0}
    if self._keep.best:
      scores = {step: self._score(step) for step in steps}
      ranked = [step for step in steps if scores[step] is not None]
      ranked.sort(key=lambda step: (scores[step], step))
      kept |= set(ranked[-self._keep.best :])
    for step in set(steps) - kept:
      _delete(self._folder / str(step))

  def _score(self, step):
    try:
      place = json.loads((self._folder / str(step) / _PLACE).read_text())
      return place.get("evaluation", {}).get(self._keep.best_metric)
    except (OSError, ValueError):
      return None

  def read(self, step: int | None = None) -> dict[str, Any]:
    """A state as nested dicts on one device, whatever mesh saved it.

    Args:
      step: of the checkpoint; None for the newest.

    Raises:
      UserError: there is no such checkpoint.
    """
    self.wait()
    step = max(self._there(), default=None) if step is None else step
    folder = self._folder / str(step)
    if step is None or not folder.exists():
      raise errors.UserError(f"no checkpoint in {self._folder}")
    place = json.loads((folder / _PLACE).read_text())
    saved = ocp.checkpointables_metadata(folder).metadata["state"]
    shapes = _shapes(saved) | _natural_shapes(place)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    found = ocp.load_checkpointables(folder, {"state": abstract})["state"]
    return jax.tree.map_with_path(
      lambda path, leaf: leaf[
        tuple(slice(n) for n in shapes[mesh_lib.path_of(path)])
      ],
      found,
    )

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._writer.shutdown()

  def _there(self):
    if not self._folder.is_dir():
      return []
    names = [path.name for path in self._folder.iterdir()]
    return [int(name) for name in names if re.fullmatch(r"\d+", name)]

  def _reason(self, error):
    """In plain words, of what comes from many layers of libraries."""
    text = " ".join(str(error).split())
    for words in (
      "No space left on device",
      "Disk quota exceeded",
      "Read-only file system",
      "Permission denied",
      "Input/output error",
    ):
      if words.lower() in text.lower():
        return f"{words} ({self._folder})"
    return f"{type(error).__name__}: {text[:300]}"


@jax.jit
def _all_finite(tree):
  floats = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _finite(now):
  learned = now.params, now.batch_stats, now.opt_state, now.extra
  return bool(np.asarray(_all_finite(learned)))


def _natural_shapes(place):
  return {path: tuple(shape) for path, shape in place["padded"].items()}


def _give_memory_back():
  """To the system: a save leaves a third of the process free, but held."""
  with contextlib.suppress(OSError, AttributeError):  # glibc alone can.
    ctypes.CDLL(None).malloc_trim(0)


def _delete(folder):
  """Renamed first: what is half deleted has no step's name."""
  gone = folder.with_suffix(".deleting")
  _remove(gone)
  folder.rename(gone)
  _remove(gone)


def _put_back(replaced):
  """Undoes the first of two renames, if the second was not done."""
  if replaced.exists() and not replaced.with_suffix("").exists():
    replaced.rename(replaced.with_suffix(""))


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)


def _shapes(tree):
  return {
    mesh_lib.path_of(path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
