"""Defects put in on purpose, each of which a quick test must notice.

    python tests/mutations.py [NAME ...]

Copies the repository, breaks one line of the copy at a time, and runs the tests
that are to fail: first with the line as it is, then broken. Takes about 20 s a
defect. Exit status 1 if one went unnoticed.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Mutation(NamedTuple):
  """A line of a file of seer_jax, what it becomes, and the test that minds."""

  name: str
  file: str
  line: str
  broken: str
  test: str


MUTATIONS = (
  Mutation(
    "queue not saved",
    "weights/checkpoint.py",
    '{"state": state})\n    except',
    '{"state": state.replace(extra=jax.tree.map(jnp.zeros_like, state.extra))}'
    ")\n    except",
    "main_test.py::test_killed_in_the_middle_it_goes_on_bit_for_bit[12-10]",
  ),
  Mutation(
    "sample position not restored",
    "training/saving.py",
    "state, progress = found[0], Progress.of_checkpoint(found[1])\n",
    "state, progress = found[0], Progress.of_checkpoint(found[1])\n"
    "    progress = progress.replace(samples=0)\n",
    "main_test.py::test_killed_in_the_middle_it_goes_on_bit_for_bit[12-10]",
  ),
  Mutation(
    "checksum skipped",
    "runtime/checksums.py",
    "differs = _hash(folder / name) != expected[name]",
    "differs = not (folder / name).exists()",
    "faults/damage_test.py::test_each_file_harmed_in_each_way_is_noticed",
  ),
  Mutation(
    "loss scale not restored",
    "training/saving.py",
    "state, progress = found[0], Progress.of_checkpoint(found[1])\n",
    "state, progress = found[0], Progress.of_checkpoint(found[1])\n"
    "    fresh = self._programs.init().loss_scale\n"
    "    state = state.replace(loss_scale=fresh)\n",
    "faults/divergence_test.py::test_a_resumed_run_goes_on_with_its_loss_scale",
  ),
  Mutation(
    "clock restarted",
    "training/run_log.py",
    "Clock(config.batch_size, seconds)",
    "Clock(config.batch_size)",
    "faults/divergence_test.py::test_the_clock_of_a_resumed_run_goes_on",
  ),
  Mutation(
    "config keys on a command line ignored",
    "config/from_flags.py",
    "flag_values=values, sys_argv=argv",
    "flag_values=values",
    "faults/fuzz_test.py::test_values_on_a_command_line_reach_the_config",
  ),
  Mutation(
    "LARC norm per shard",
    "training/optim.py",
    "norm_p, norm_g = jnp.linalg.norm(param), jnp.linalg.norm(grad)",
    'shards = dict(jax.sharding.get_abstract_mesh().shape).get("fsdp", 1)\n'
    "    first = max(1, param.shape[-1] // shards)\n"
    "    norm_p = jnp.linalg.norm(param[..., :first])\n"
    "    norm_g = jnp.linalg.norm(grad[..., :first])",
    "training/scale_test.py::test_ten_steps_are_the_same_on_every_mesh[1-2-trunk1]",
  ),
  Mutation(
    "gradients summed instead of averaged",
    "training/step.py",
    "lambda s, x: s + x / parts, means, one",
    "lambda s, x: s + x, means, one",
    "training/scale_test.py::test_four_parts_of_a_batch_equal_the_whole[two-heads-1]",
  ),
  Mutation(
    "shard_map removed",
    "models/grouped_conv.py",
    "  if not axes:\n    return fn(x, kernel, *cotangent, axes=())",
    "  if True:\n    return fn(x, kernel, *cotangent, axes=())",
    "training/step_parity_test.py::test_eight_devices_exchange_no_activations[_native]",
  ),
  Mutation(
    "codes per part",
    "training/step.py",
    "slope(state.params, images, targets_of_part)",
    "slope(state.params, images, None)",
    "training/scale_test.py::test_four_parts_of_a_batch_equal_the_whole[two-heads-1]",
  ),
  Mutation(
    "key mapping of VISSL swapped",
    "weights/name_maps.py",
    '"bn_a": "f.a.1",\n    "b": "f.b.0",\n    "bn_b": "f.b.1",\n'
    '    "se/reduce": "f.se.excitation.0",',
    '"bn_a": "f.b.1",\n    "b": "f.b.0",\n    "bn_b": "f.a.1",\n'
    '    "se/reduce": "f.se.excitation.0",',
    "weights/weights_test.py::test_arrays_of_a_block_have_the_names_of_released_files",
  ),
  Mutation(
    "stride bounds of a hostile tensor ignored",
    "weights/formats/lazy_tensors.py",
    "if too_much or start + _span(shape, strides) > count:",
    "if too_much:",
    "weights/formats/torch_file_test.py::test_a_header_that_lies_is_refused",
  ),
)


def passes(folder: pathlib.Path, test: str) -> bool:
  command = [sys.executable, "-m", "pytest", "-q", "-n0", f"tests/{test}"]
  ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  if ended.returncode not in (0, 1):
    sys.exit(ended.stdout + ended.stderr)
  return ended.returncode == 0


def main(names: list[str]) -> int:
  unnoticed = 0
  chosen = [each for each in MUTATIONS if not names or each.name in names]
  with tempfile.TemporaryDirectory() as here:
    folder = pathlib.Path(here, "copy")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs"))
    for test in sorted({each.test for each in chosen}):
      if not passes(folder, test):
        sys.exit(f"{test} fails as it is")
    for each in chosen:
      path = folder / "seer_jax" / each.file
      whole = path.read_text()
      if whole.count(each.line) != 1:
        sys.exit(f"{each.file} has not once what {each.name!r} would break")
      path.write_text(whole.replace(each.line, each.broken))
      noticed = not passes(folder, each.test)
      path.write_text(whole)
      unnoticed += not noticed
      verdict = "fails" if noticed else "PASSES"
      print(f"| {each.name} | {verdict}: {each.test} |", flush=True)
  return int(unnoticed > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
