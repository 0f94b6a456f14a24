"""Time of SwAV's codes and loss, alone: ours beside the published formula.

    python benchmarks/loss.py [--cases=256x3000,512x16384] [--alone]

A case is images x prototypes, of 2 assigning and 6 predicting crops. Ours is
`tasks/swav_loss.py` in the log domain, the peer SwAV's in PyTorch
(`published_swav.py`), both with the gradient by the projections and the
prototypes, in turn in each round. Prints a table and one line of JSON.
"""

import argparse
import json
import statistics
import time

VIEWS, WIDTH = 6, 128
ITERATIONS, EPSILON, TEMPERATURE = 3, 0.05, 0.1
CASES = "256x3000,1024x3000,8192x3000,256x16384,1024x16384"


def ours(images: int, prototypes: int):
  """A function that runs once, and what it needs."""
  import jax
  import jax.numpy as jnp

  from seer_jax.tasks import swav_loss

  def loss(z_BxVxP, kernel_PxK):
    scores_BxVxK = jnp.matmul(z_BxVxP, kernel_PxK, precision="highest")
    codes_BxAxK = swav_loss.assign(scores_BxVxK, (0, 1), EPSILON, ITERATIONS)
    return swav_loss.swapped_loss(
      scores_BxVxK, codes_BxAxK, (0, 1), TEMPERATURE
    )

  keys = jax.random.split(jax.random.key(0))
  z_BxVxP = jax.random.normal(keys[0], (images, VIEWS, WIDTH))
  z_BxVxP /= jnp.linalg.norm(z_BxVxP, axis=-1, keepdims=True)
  kernel_PxK = jax.random.normal(keys[1], (WIDTH, prototypes))
  kernel_PxK /= jnp.linalg.norm(kernel_PxK, axis=0)
  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  return lambda: float(jax.block_until_ready(step(z_BxVxP, kernel_PxK))[0])


def published(images: int, prototypes: int):
  """The same of the peer."""
  import published_swav
  import torch
  import torch.nn.functional as F

  device = "cuda" if torch.cuda.is_available() else "cpu"
  z_NxP = torch.randn(VIEWS * images, WIDTH, device=device)
  z_NxP = F.normalize(z_NxP, dim=1).requires_grad_()
  kernel_KxP = torch.randn(prototypes, WIDTH, device=device)
  kernel_KxP = F.normalize(kernel_KxP, dim=1).requires_grad_()

  def run():
    scores = (z_NxP @ kernel_KxP.t()).split(images)
    loss = published_swav.swapped_loss(scores, EPSILON, ITERATIONS, TEMPERATURE)
    torch.autograd.grad(loss, (z_NxP, kernel_KxP))
    return float(loss.detach())

  return run


def measure(case: str, rounds: int, alone: bool) -> dict:
  """Medians of rounds, in milliseconds."""
  images, prototypes = map(int, case.split("x"))
  ways = {"ours": ours(images, prototypes)}
  if not alone:
    ways["peer"] = published(images, prototypes)
  seconds = {name: [] for name in ways}
  for run in ways.values():
    run()
  for _ in range(rounds):
    for name, run in ways.items():
      began = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - began)
  found = {"images": images, "prototypes": prototypes}
  for name, each in seconds.items():
    found[f"{name}_ms"] = 1000 * statistics.median(each)
  if not alone:
    found["ratio"] = statistics.median(
      theirs / mine
      for theirs, mine in zip(seconds["peer"], seconds["ours"], strict=True)
    )
  return found


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cases", default=CASES)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--alone", action="store_true")
  options = parser.parse_args()
  results = []
  print("| images | prototypes | ours, ms | PyTorch, ms | ratio |")
  print("| --- | --- | --- | --- | --- |")
  for case in options.cases.split(","):
    found = measure(case, options.rounds, options.alone)
    results.append(found)
    print(
      f"| {found['images']} | {found['prototypes']} | {found['ours_ms']:.1f} |"
      f" {found.get('peer_ms', float('nan')):.1f} |"
      f" {found.get('ratio', float('nan')):.2f} |",
      flush=True,
    )
  print(json.dumps(results))


if __name__ == "__main__":
  import bare  # noqa: F401

  main()
