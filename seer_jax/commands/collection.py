"""`embed`, `search`, `duplicates` and `cluster`: uses of a folder of images."""

import argparse
import functools
import os
from typing import Any

from seer_jax.commands import data, logs, process
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files

_SHOWN = 20  # Rows in the terminal, and groups on a page.


def _add_folder(parser):
  parser.add_argument(
    "folder", metavar="DIR", help="embeddings, as seer-jax embed writes them"
  )


def opened(folder: str) -> Any:
  """Opens embeddings, and shows the log. Raises UserError if there are none."""
  from seer_jax.apps.embedding import embeddings

  logs.show()
  process.keep_compiled()
  return embeddings.Embeddings(folder)


def write(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file, and prints its path."""

  files.write_text(files.user_path(os.fspath(path)), text)
  print(f"written: {path}")


def _add_embed(parser):
  data.add_source(parser)
  add = functools.partial(option, parser)
  add("--weights", "W", "what `seer_jax.load` takes", required=True)
  add("--out", "DIR", "the same folder resumes", required=True)
  dtypes = ("float32", "float16")
  add("--dtype", None, "of the embeddings", "float32", choices=dtypes)
  add("--tap", None, "network output: projection, res4:2x2...", "avgpool")
  add("--precision", None, "fp32, bf16, fp16; empty: the hardware's", "")
  add("--batch", "N", "images per batch", 32)
  add("--shard", "N", "images per file; the most that a kill costs", 2048)
  several = parser.add_argument_group(
    "several processes without Ray",
    "They divide the files; detected under SLURM, Open MPI, Kubernetes and on"
    " Cloud TPUs.",
  )
  option(several, "--processes", "N", "how many there are", kind=int)
  option(several, "--process", "I", "index of this one, from 0", kind=int)
  data.add_pool(parser)


def _embed(options: argparse.Namespace) -> None:
  import jax

  from seer_jax.apps.embedding import embed, embed_folder
  from seer_jax.runtime import preemption
  from seer_jax.runtime.parallel import process_pool

  logs.show()
  process.keep_compiled()
  if options.batch < 1:
    raise errors.UserError(f"--batch is {options.batch}; it must be positive")
  if options.on == "ray" and options.task_gpus and not options.precision:
    raise errors.UserError(
      "--task-gpus needs --precision, since this machine may have no GPU to"
      " ask: bf16, or fp16 for V100"
    )
  with preemption.Preemption(process_pool.stop):
    # `view` finds them again from whatever folder it is started in.
    keys = data.absolute_keys(options)
    out = files.user_path(options.out).resolve()
    paths = *data.source_paths(keys), _lasting(options.weights), str(out.parent)
    cluster = data.cluster_of(options, *paths)
    source = data.open_for(cluster, keys)
    which, processes = (0, 1) if cluster else _rank(options)
    collection = embed_folder.EmbeddedFolder(
      source,
      keys,
      embed.open_weights(_lasting(options.weights)),
      out,
      embed.Options(
        tap=options.tap,
        dtype=options.dtype,
        precision=options.precision,
        batch_size=options.batch,
        threads=options.workers if not cluster else _threads(options),
        max_pixels=options.max_pixels,
        shard=options.shard,
      ),
    )
    if processes == 1:
      which, processes = jax.process_index(), jax.process_count()
    print(collection.run(which, processes, cluster))


def _threads(options):
  """Decoding threads of a task."""
  return max(1, round(options.task_cpus))


def _lasting(weights):
  """An absolute path, since `search` loads the weights again."""

  path = files.user_path(weights)
  return str(path.resolve()) if path.exists() else weights


def _rank(options):
  """(index of this process, how many there are)."""
  from seer_jax.runtime import distributed

  # They do not communicate, so the coordinator is unused.
  unused = "none:0" if options.processes is not None else None
  rank = distributed.find_rank(
    os.environ, unused, options.processes, options.process
  )
  return (rank.process, rank.processes) if rank else (0, 1)


def _add_search(parser):
  _add_folder(parser)
  parser.add_argument(
    "query",
    metavar="QUERY",
    nargs="+",
    help="id in DIR or path of an image; of several, the centroid is taken",
  )
  add = functools.partial(option, parser)
  add("--k", "N", "images to find", 10)
  add(
    "--index",
    None,
    "faiss: approximate, built once, for millions of images",
    "exact",
    choices=("exact", "faiss"),
  )
  add("--weights", "W", "for images outside DIR, if the weights have moved")
  add("--out", "FILE", "results as CSV")
  add("--gallery", "FILE", "results as a page of pictures")


def _search(options: argparse.Namespace) -> None:
  found = opened(options.folder)
  from seer_jax.apps import tables
  from seer_jax.apps.collection import search
  from seer_jax.apps.embedding import shards
  from seer_jax.apps.view import gallery

  query_D, own = search.query(found, options.query, options.weights)
  index = search.Index.open(found, options.index)
  similarity, rows = index.search(query_D, options.k, without=own)
  results = [
    {"rank": rank, "cosine": f"{cosine:.4f}", "id": found.ids[row]}
    | {"path": found.column("path")[row]}
    for rank, (cosine, row) in enumerate(
      zip(similarity[0], rows[0], strict=True), 1
    )
    if row >= 0
  ]
  if not results:
    raise errors.UserError(f"{options.folder} has no other image to find")
  table = [list(results[0]), *(list(map(str, r.values())) for r in results)]
  print(tables.terminal(table))
  if options.out:
    write(options.out, shards.as_csv(results))
  if options.gallery:
    captions = [f"{each['cosine']}  {each['id']}" for each in results]
    names = ", ".join(options.query)
    sections = [gallery.Section("Most similar first", rows[0], captions)]
    if own:
      sections.insert(0, gallery.Section("Asked for", own, [""] * len(own)))
    write(
      options.gallery,
      gallery.page(f"Like {names}", f"{found.folder}", found, sections),
    )


def _add_duplicates(parser):
  _add_folder(parser)
  add = functools.partial(option, parser)
  add(
    "--bits",
    "N",
    "how many of the 64 bits of perceptual hashes may differ, up to 11; -1 for"
    " equal files only",
    10,
  )
  add("--cosine", "C", "lowest cosine of the embeddings of copies", 0.8)
  add(
    "--features",
    "C",
    "embeddings this close mean copies, whatever the hashes: crops",
    kind=float,
  )
  add("--out", "FILE", "groups as CSV")
  add("--drop", "FILE", "ids of all but one of each group, for --exclude")
  add("--gallery", "FILE", "groups as a page of pictures")
  data.add_pool(parser)


def _duplicates(options: argparse.Namespace) -> None:
  if not -1 <= options.bits <= 11:
    raise errors.UserError(
      f"--bits is {options.bits}; it must be from -1 to 11"
    )
  found = opened(options.folder)
  from seer_jax.apps.collection import duplicates
  from seer_jax.apps.embedding import shards
  from seer_jax.apps.view import gallery
  from seer_jax.runtime import preemption
  from seer_jax.runtime.parallel import process_pool

  with preemption.Preemption(process_pool.stop):
    cluster = data.cluster_of(options, str(found.folder))
    several = duplicates.groups(
      found,
      options.bits,
      options.cosine,
      options.features,
      cluster or process_pool.Local(),
    )
  rows = list(duplicates.rows_of(found, several))
  exact = sum(group.kind == "exact" for group in several)
  extra = sum(len(group.others) for group in several)
  print(
    f"{len(several)} groups of copies, {exact} of equal files; {extra} of the"
    f" {len(found)} images are superfluous"
  )
  for row in rows[:_SHOWN]:
    mark = "keep" if row["keep"] else f"{row['bits']:2d} bits, {row['cosine']}"
    print(f"  {row['group']:4d}  {row['kind']:5}  {mark:16}  {row['id']}")
  if len(rows) > _SHOWN:
    print(f"  and {len(rows) - _SHOWN} more; --out FILE lists all")
  if options.out:
    write(options.out, shards.as_csv(rows))
  if options.drop:
    dropped = [row["id"] for row in rows if not row["keep"]]
    write(options.drop, "".join(f"{name}\n" for name in dropped))
  if options.gallery:
    sections = [
      gallery.Section(
        f"Group {number}: {group.kind}",
        [group.keep, *group.others],
        ["keep", *(found.ids[row] for row in group.others)],
      )
      for number, group in enumerate(several[:_SHOWN])
    ]
    about = f"The first {len(sections)} of {len(several)} groups."
    write(options.gallery, gallery.page("Copies", about, found, sections))


def _add_cluster(parser):
  _add_folder(parser)
  add = functools.partial(option, parser)
  add(
    "--k",
    "N",
    "clusters (square root of half the images); 1000,50 is a hierarchy",
  )
  add(
    "--method",
    None,
    "spherical k-means; the same with no cluster above the mean size; HDBSCAN;"
    " SwAV's own prototypes",
    "kmeans",
    choices=("kmeans", "balanced", "hdbscan", "prototypes"),
  )
  add("--min-size", "N", "of HDBSCAN's clusters", 5)
  add("--seed", "N", "of k-means", 0)
  add("--out", "DIR", "for the CSV files (DIR/clusters)")
  add("--links", "DIR", "a folder of links for each cluster")
  add("--gallery", "FILE", "the most typical of each, as a page")


def _cluster(options: argparse.Namespace) -> None:
  found = opened(options.folder)
  from seer_jax.apps import tables
  from seer_jax.apps.collection import cluster
  from seer_jax.apps.view import gallery

  if options.method == "prototypes":
    levels = cluster.by_prototypes(found)
  else:
    levels = cluster.cluster(
      found.features,
      _levels(options.k, len(found)),
      method=options.method,
      min_size=options.min_size,
      seed=options.seed,
    )
  finest = levels[0]
  out = (
    files.user_path(options.out) if options.out else found.folder / "clusters"
  )
  cluster.write(out, found, levels)
  rows = list(cluster.summary(finest, found.ids, found.labels))
  if rows:
    shown = [list(map(str, row.values())) for row in rows[:_SHOWN]]
    print(tables.terminal([list(rows[0]), *shown]))
  sizes = finest.sizes
  outside = int((finest.cluster_N < 0).sum())
  print(
    f"{len(sizes)} clusters"
    + (f" of {min(sizes)} to {max(sizes)} images" if len(sizes) else "")
    + f", {outside} images in none" * bool(outside)
  )
  agreement = cluster.agreement(finest.cluster_N, found.labels)
  if agreement:
    print(
      f"purity {agreement.purity:.3f}, NMI {agreement.nmi:.3f}, of"
      f" {agreement.images} labelled images"
    )
  print(f"written: {out}")
  if options.links:
    links = cluster.link(
      files.user_path(options.links), found, cluster.members(finest)
    )
    print(f"{links} links in {options.links}")
  if options.gallery:
    sections = gallery.typical(finest, found)
    about = f"{len(sizes)} clusters, the most typical images of each."
    write(options.gallery, gallery.page("Clusters", about, found, sections))


def _levels(text, images):
  if text is None:
    return max(2, round((images / 2) ** 0.5))
  try:
    return [int(each) for each in text.split(",")]
  except ValueError:
    raise errors.UserError(
      f"--k is {text}; give a number, or a falling list such as 1000,50"
    ) from None


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
SEARCH = Command(
  "Finds the images most similar to one or several images.",
  (
    "seer-jax search ~/photos.seer ~/wanted.jpg",
    "seer-jax search ~/photos.seer a.jpg b.jpg --k 50 --gallery found.html",
  ),
  _add_search,
  _search,
)
DUPLICATES = Command(
  "Finds copies: equal files, and images that look the same.",
  (
    "seer-jax duplicates ~/photos.seer --gallery copies.html",
    "seer-jax duplicates ~/photos.seer --bits -1 --drop copies.txt",
  ),
  _add_duplicates,
  _duplicates,
)
CLUSTER = Command(
  "Clusters images: k-means, a hierarchy, HDBSCAN, prototypes.",
  (
    "seer-jax cluster ~/photos.seer --k 20 --gallery clusters.html",
    "seer-jax cluster ~/photos.seer --k 1000,50 --method balanced --links x",
  ),
  _add_cluster,
  _cluster,
)
