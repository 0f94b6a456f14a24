"""Every image once an epoch, whatever happens to the run meanwhile."""

import itertools
import json

import cv2
import numpy as np
import pytest
from runs import TINY, Gate, finish, free_port, start

from seer_jax.config import keys
from seer_jax.data import pipeline, shuffle

IMAGES, BATCH, STEPS = 48, 16, 24
OPTIONS = (
  *TINY,
  "--config.data.train.kind=folder",
  "--config.data.train.split=",
  "--config.data.test.kind=",
  f"--config.steps={STEPS}",
  f"--config.batch_size={BATCH}",
  "--config.log.every=1",
  "--config.checkpoint.every=5",
  "--patience=60",
)
# Steps that write down which images they were given, by their grey.
WATCHED = """
import json
import numpy as np
from seer_jax.training import program
call = program.Program.__call__
def watched(self, number, now, batch):
  shards = batch["crops"][0].addressable_shards
  greys = [int(g) for s in shards for g in np.asarray(s.data)[:, 0, 0, 0, 0]]
  with open(SEEN, "a") as file:
    print(json.dumps([number, greys]), file=file)
  return call(self, number, now, batch)
program.Program.__call__ = watched
"""


def begin(photos, workdir, seen, processes, workers, gate):
  """Starts a run that leaves what it saw in `seen`.0, .1, ..."""
  port = free_port()
  started = []
  for process in range(processes):
    place = (
      f"--coordinator=localhost:{port}",
      f"--processes={processes}",
      f"--process={process}",
    )
    code = f"SEEN = {f'{seen}.{process}'!r}\n" + WATCHED + gate.code
    started.append(
      start(
        *OPTIONS,
        f"--config.data.train.path={photos}",
        f"--config.data.workers={workers}",
        f"--workdir={workdir}",
        *(place if processes > 1 else ()),
        code=code,
      )
    )
  return started


def seen_by(seen, processes):
  """Step -> images of each process; the last time that it was taken."""
  found = {}
  for process in range(processes):
    path = seen.with_name(f"{seen.name}.{process}")
    for line in path.read_text().splitlines():
      step, greys = json.loads(line)
      found.setdefault(step, {})[process] = greys
  return found


@pytest.mark.parametrize(
  "workers", [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_killed_and_continued_by_more_and_fewer_processes(tmp_path, workers):
  photos = tmp_path / "photos"
  photos.mkdir()
  for number in range(IMAGES):
    image = np.full((24, 24, 3), 5 * number, np.uint8)
    cv2.imwrite(str(photos / f"{number:02}.png"), image)
  workdir, taken = tmp_path / "run", {}
  for name, processes, until in (("a", 1, 8), ("b", 2, 16), ("c", 1, STEPS)):
    seen, gate = tmp_path / name, Gate(tmp_path / f"{name} gate", until)
    started = begin(photos, workdir, seen, processes, workers, gate)
    if until < STEPS:
      gate.wait(started[0])
      for each in started:
        each.kill()
    ended = [finish(each) for each in started]
    if until == STEPS:
      assert [code for code, _, _ in ended] == [0], ended
    for step, parts in seen_by(seen, processes).items():
      # The last step before a kill may be known of one process alone.
      if len(parts) == processes:
        taken[step] = list(itertools.chain(*parts.values()))
  assert sorted(taken) == list(range(STEPS))
  drawn = [grey // 5 for step in range(STEPS) for grey in taken[step]]
  for epoch in np.reshape(drawn, (-1, IMAGES)):
    assert sorted(epoch) == list(range(IMAGES))
  drawn = np.reshape(drawn, (STEPS, BATCH))
  expected = shuffle.Order((IMAGES,), (1.0,), keys.base().seed)
  numbers = np.arange(STEPS * BATCH).reshape(STEPS, BATCH)
  np.testing.assert_array_equal(
    drawn, expected.at(numbers.ravel()).reshape(STEPS, BATCH)
  )


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_draw_disjoint_images_that_are_all(processes):
  images, batch = 1200, 24
  draws = shuffle.Order((images,), (1.0,), 0)
  rows = np.arange(batch).reshape(processes, -1)
  for first in (0, 3 * images):
    numbers = [pipeline._Numbers(first, batch, mine) for mine in rows]
    steps = images // batch
    drawn = [
      {draws[number] for step in range(steps) for number in each(step)}
      for each in numbers
    ]
    assert sum(map(len, drawn)) == images
    assert set.union(*drawn) == set(range(images))
