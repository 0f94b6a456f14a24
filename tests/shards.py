"""ArrayRecord and tar shards to test with."""

import io
import tarfile

from array_record.python import array_record_module

from seer_jax.data import sources

JPEG = b"\xff\xd8\xff and so on"


def write_shard(path, records):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def image(number, label=-1, name=""):
  return sources.Example(image=JPEG + b"%d" % number, label=label, id=name)


def write_tar(path, members, mode="w"):
  with tarfile.open(path, mode) as tar:
    for name, content in members:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


SAMPLES = (
  ("a/1.cls", b"2"),
  ("a/1.jpg", JPEG),
  ("a/1.json", b"{}"),
  ("a/2.seg.png", b"a mask"),
  ("a/2.png", b"two"),
  ("b/2.PNG", b"three"),
  ("b/2.cls", b"no number"),
  ("c.txt", b"no image"),
)
