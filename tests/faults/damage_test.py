"""Files of a checkpoint truncated, emptied, flipped or removed, in turn."""

import shutil

import jax
import numpy as np
import pytest
import runs
import ten_steps

from seer_jax.config import keys
from seer_jax.runtime import checksums, errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import checkpoint


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def empty(path):
  path.write_bytes(b"")


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def remove(path):
  path.unlink()


HARMS = (truncate, empty, flip, remove)


@pytest.fixture(scope="module")
def programs():
  mesh = mesh_lib.make(1)
  with jax.set_mesh(mesh):
    config = ten_steps.make_config("one-head", **ten_steps.SMALL)
    yield ten_steps.build(config, mesh)[1]


@pytest.fixture
def kept(tmp_path, programs):
  """Checkpoints of steps 1 and 2."""
  kept = checkpoint.Checkpoints(tmp_path / "checkpoints")
  now = programs.init()
  for step in (1, 2):
    kept.save(step, now.replace(step=now.step + step), programs.unpadded, {})
  kept.wait()
  assert kept.failure() == ""
  yield kept
  kept.close()


def restored(kept, programs):
  found = kept.restore(programs.abstract, programs.unpadded)
  return None if found is None else int(found[0].step)


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def harms(path):
  return [h for h in HARMS if path.stat().st_size or h is remove]


def test_each_file_harmed_in_each_way_is_noticed(kept, tmp_path):
  whole, harmed = tmp_path / "checkpoints" / "2", tmp_path / "harmed"
  assert checksums.complaints(whole) == []
  count = 0
  for path in files_of(whole):
    for harm in harms(path):
      shutil.copytree(whole, harmed)
      harm(harmed / path.relative_to(whole))
      assert checksums.complaints(harmed), (harm, path)
      shutil.rmtree(harmed)
      count += 1
  print(f"{count} harms, all noticed")
  assert count > 20


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checkpoint_is_set_aside_for_the_one_before(
  kept, programs, tmp_path, harm
):
  folder = tmp_path / "checkpoints"
  assert restored(kept, programs) == 2
  harm(files_of(folder / "2" / "state" / "d")[0])
  assert restored(kept, programs) == 1
  assert (folder / "2.damaged").is_dir()
  assert not (folder / "2").exists()


def test_what_is_wrong_is_told(kept, programs, tmp_path, caplog):
  victim = files_of(tmp_path / "checkpoints" / "2" / "state" / "d")[0]
  flip(victim)
  assert restored(kept, programs) == 1
  assert "the checkpoint of step 2 is damaged" in caplog.text
  assert f"{victim.name} has another checksum" in caplog.text


def test_nothing_whole_is_an_error_and_nothing_is_moved(
  kept, programs, tmp_path
):
  for step in "12":
    remove(tmp_path / "checkpoints" / step / "progress.json")
  with pytest.raises(errors.UserError, match=r"all checkpoints .* are damaged"):
    restored(kept, programs)
  assert (tmp_path / "checkpoints" / "2").exists()


def test_values_that_are_not_finite_are_no_checkpoint(kept, programs):
  now = programs.init()
  bad = jax.tree.map(lambda x: x * np.nan, now.params)
  kept.save(3, now.replace(params=bad), programs.unpadded, {})
  assert restored(kept, programs) == 2


def test_what_was_being_written_or_deleted_is_cleaned_up(
  kept, programs, tmp_path
):
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "2", folder / "3.part")
  shutil.copytree(folder / "2", folder / "0.deleting")
  (folder / "2").rename(folder / "2.replaced")
  kept.folder.clean_up()
  assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
  ("changes", "kept_steps"),
  [
    ({}, [4, 5]),
    ({"keep": 1}, [5]),
    ({"keep_every": 3}, [3, 4, 5]),
    ({"best": 2, "best_metric": "right"}, [1, 3, 4, 5]),
    ({"keep": 1, "best": 1, "best_metric": "absent"}, [5]),
  ],
)
def test_what_is_kept(programs, tmp_path, changes, kept_steps):
  options = keys.base().checkpoint
  options.update(changes)
  kept = checkpoint.Checkpoints(tmp_path / "some", options)
  scores = {1: 0.9, 2: 0.1, 3: 0.8, 5: 0.2}
  for step in range(1, 6):
    score = {"right": scores[step]} if step in scores else {}
    now = programs.init()
    kept.save(step, now, programs.unpadded, {"evaluation": score})
  kept.close()
  names = [path.name for path in (tmp_path / "some").iterdir()]
  assert sorted(map(int, names)) == kept_steps


def test_a_run_with_a_damaged_checkpoint_ends_as_the_undisturbed_one(
  tiny, tmp_path
):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  for step in (40, 30):
    flip(files_of(workdir / "checkpoints" / str(step) / "state")[-1])
  code, _, err = runs.run(*runs.TINY, f"--workdir={workdir}")
  assert code == 0, err
  assert "resumed at step 20" in err
  assert "Traceback" not in err
  runs.assert_same_run(workdir, tiny)
