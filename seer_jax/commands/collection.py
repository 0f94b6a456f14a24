"""What people do with a folder of pictures: embed it, and then use it."""

import argparse

from seer_jax.commands import data
from seer_jax.commands.parser import Command
from seer_jax.runtime import errors


def _add_embed(parser):
  data.add_source(parser)
  add = parser.add_argument
  add("--weights", metavar="W", required=True, help="as `seer_jax.load` takes")
  add("--out", metavar="DIR", required=True, help="the same folder goes on")
  add(
    "--dtype",
    choices=("float32", "float16"),
    default="float32",
    help="of the embeddings (%(default)s)",
  )
  add(
    "--tap",
    default="avgpool",
    help="output of the network: projection, res4:2x2... (%(default)s)",
  )
  add(
    "--precision", default="", help="fp32, bf16, fp16; the hardware's if empty"
  )
  add("--batch", metavar="N", type=int, default=32, help="(%(default)s)")
  add(
    "--shard",
    metavar="N",
    type=int,
    default=2048,
    help="images a file, the most that a kill costs (%(default)s)",
  )
  several = parser.add_argument_group(
    "several processes",
    "They divide the files; found by themselves under SLURM, Open MPI,"
    " Kubernetes and on Cloud TPUs.",
  )
  several.add_argument("--processes", metavar="N", type=int)
  several.add_argument(
    "--process", metavar="I", type=int, help="which this is, from 0"
  )


def _embed(options: argparse.Namespace) -> None:
  import jax

  from seer_jax.apps.collection import embed, embed_folder
  from seer_jax.commands.training import keep_compiled
  from seer_jax.data import sources
  from seer_jax.data.storage import files
  from seer_jax.runtime import host, logs

  logs.show()
  keep_compiled()
  if options.batch < 1:
    raise errors.UserError(f"--batch is {options.batch}; it must be positive")
  with data.stopped_by_signals():
    keys = data.keys_of(options)
    # Found again from wherever `view` is started.
    for key in ("path", "labels", "exclude", "only"):
      keys[key] = files.absolute(keys[key])
    source = sources.open_source(keys)
    print(source)
    process, processes = _place(options)
    collection = embed_folder.EmbeddedFolder(
      source,
      keys,
      embed.open_weights(options.weights),
      host.user_path(options.out),
      embed.Options(
        tap=options.tap,
        dtype=options.dtype,
        precision=options.precision,
        batch_size=options.batch,
        threads=options.workers,
        max_pixels=options.max_pixels,
        shard=options.shard,
      ),
    )
    if processes == 1:
      process, processes = jax.process_index(), jax.process_count()
    print(collection.run(process, processes))


def _place(options):
  """(which process this is, of how many); they never talk to each other."""
  import os

  from seer_jax.runtime import distributed

  nobody = "nobody:0" if options.processes is not None else None
  place = distributed.find(
    os.environ, nobody, options.processes, options.process
  )
  return (place.process, place.processes) if place else (0, 1)


EMBED = Command(
  "Embeds images into Parquet files, with any weights; resumes.",
  (
    "seer-jax embed ~/photos --weights runs/photos --out ~/photos.seer",
    "seer-jax embed 'gs://bucket/x-*.tar' --weights seer_32 --out x"
    " --dtype float16",
  ),
  _add_embed,
  _embed,
)
