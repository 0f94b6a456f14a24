"""Devices of many machines as a mesh, none of which is here."""

import types

import jax
import numpy as np
import pytest

from seer_jax.runtime import errors, mesh


def gpus(hosts, each):
  """As JAX describes them: a slice of its own for each host."""
  return [
    types.SimpleNamespace(
      platform="gpu", process_index=host, slice_index=host, id=host * 64 + i
    )
    for host in range(hosts)
    for i in range(each)
  ]


def test_gpus_of_several_hosts_stand_host_by_host():
  devices = gpus(4, 8)
  mixed = [devices[i] for i in np.random.default_rng(0).permutation(32)]
  found = mesh.arranged(mixed, 4, 8)
  assert found.shape == (4, 8)
  for host, row in enumerate(found):
    assert {each.process_index for each in row} == {host}


def test_each_process_reads_the_rows_of_its_devices():
  here = mesh.make(4, 2)
  np.testing.assert_array_equal(mesh.local_rows(here, 16), np.arange(16))
  rows = np.arange(16, dtype=np.int32)
  np.testing.assert_array_equal(mesh.to_global(here, rows), rows)


def test_devices_are_not_left_idle_unasked():
  with pytest.raises(errors.UserError, match="does not divide the 8 devices"):
    mesh.make(-1, 3)
  assert mesh.make(2, 3).size == 6


def test_a_mesh_needs_all_devices_of_several_processes(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(errors.UserError, match="must take part"):
    mesh.make(2, 2)
