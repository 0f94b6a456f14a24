"""SwAV: swapped prediction of cluster assignments (Caron et al. 2020).

Two views of an image should fall into the same clusters. In the paper's order:

  z = f(x) / |f(x)|                     features of a crop, on the unit sphere
  s = z C                               scores against the prototypes (columns)
  Q = Diag(u) exp(s / epsilon) Diag(v)  codes: Sinkhorn's balanced assignment
  p = softmax(s / tau)                  each crop's own prediction
  L = - sum_{a, p != a} q_a . log p_p   codes of one crop, predicted by others

Everything is float32 and in the log domain, whatever the precision of the
trunk: exp(s / epsilon) overflows float16 at the published epsilon of 0.05, and
float32 at 0.01. Arrays are global; means over the batch are means over every
device.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def sinkhorn(
  scores_NxK: jax.Array,
  epsilon: float,
  iterations: int,
  used_N: jax.Array | None = None,
  power: float = 0.0,
) -> jax.Array:
  """Codes: soft assignments that use all prototypes equally (section 3.1).

  Solves for the codes as log Q = s / epsilon + u_K + v_N, where u balances the
  prototypes and v makes each row sum to one. With u and v separate from the
  scores, nothing as large as the scores is stored between iterations.

  With a power, prototype k gets a share proportional to (k + 1)^-power: the
  concepts of uncurated images have a long tail, which equal shares would spread
  over the prototypes (PMSN, Assran et al. 2023).

  Args:
    scores_NxK: similarities of rows to prototypes, in [-1, 1].
    epsilon: entropy of the assignment; smaller is sharper (0.05; SEER-10B
      0.03). Any value above zero is stable.
    iterations: alternations (3; SEER 10); 0 is a softmax of each row.
    used_N: rows that take part in balancing, all by default. Codes of the other
      rows are still computed.
    power: of the decay of the prototypes' shares; 0 for equal shares.

  Returns:
    codes_NxK, float32, rows summing to one; no gradient flows through them.
  """
  logits_NxK = jax.lax.stop_gradient(scores_NxK).astype(jnp.float32) / epsilon
  rows_Nx1 = (
    jnp.zeros((logits_NxK.shape[0], 1))
    if used_N is None
    else jnp.where(used_N, 0.0, -jnp.inf)[:, None]
  )
  # Up to a constant, which v absorbs.
  log_share_K = -power * np.log(np.arange(1, logits_NxK.shape[1] + 1))
  u_K = jnp.zeros(logits_NxK.shape[1])
  v_Nx1 = jnp.zeros_like(rows_Nx1)
  for _ in range(iterations):
    u_K = -jax.nn.logsumexp(logits_NxK + v_Nx1 + rows_Nx1, axis=0)
    if power:
      u_K += log_share_K
    v_Nx1 = -jax.nn.logsumexp(logits_NxK + u_K, axis=1, keepdims=True)
  return jax.nn.softmax(logits_NxK + u_K)


def swapped_loss(
  scores_BxVxK: jax.Array,
  codes_BxAxK: jax.Array,
  assign_crops: Sequence[int],
  temperature: float,
) -> jax.Array:
  """Cross-entropy of every crop against the codes of another (equation 2).

  Args:
    scores_BxVxK: similarities of every crop.
    codes_BxAxK: codes of the crops that assign.
    assign_crops: which of the V crops those are; a crop never predicts itself.
    temperature: tau of the prediction (0.1).

  Returns:
    The mean over images, assigning crops and the V - 1 crops that predict each:
    a scalar that is ln K if predictions are uniform.
  """
  logits_BxVxK = scores_BxVxK.astype(jnp.float32) / temperature
  log_p_BxVxK = jax.nn.log_softmax(logits_BxVxK)
  entropy_AxV = -jnp.einsum(
    "bak,bvk->av", codes_BxAxK, log_p_BxVxK, precision="highest"
  )
  others_AxV = 1 - jax.nn.one_hot(
    jnp.array(assign_crops), scores_BxVxK.shape[1]
  )
  return jnp.sum(entropy_AxV * others_AxV) / (
    jnp.sum(others_AxV) * scores_BxVxK.shape[0]
  )


def instance_loss(z_BxAxP: jax.Array, temperature: float) -> jax.Array:
  """Cross-entropy of each crop's other crops among all crops of the batch.

  NT-Xent (Chen et al. 2020, equation 1), which contrasts images rather than
  clusters. It gives a signal from the first step on, while codes are still
  those of a random network.

  Args:
    z_BxAxP: features on the unit sphere, of two or more crops per image.
    temperature: of the softmax over the other crops of the batch.

  Returns:
    The mean over crops and their A - 1 counterparts, a scalar.
  """
  images, crops = z_BxAxP.shape[:2]
  z_BxAxP = z_BxAxP.astype(jnp.float32)
  z_NxP = z_BxAxP.reshape(images * crops, -1)
  logits_NxN = jnp.matmul(z_NxP, z_NxP.T, precision="highest") / temperature
  itself_NxN = jnp.eye(images * crops, dtype=bool)
  all_N = jax.nn.logsumexp(logits_NxN, axis=1, where=~itself_NxN)
  own_BxAxA = (
    jnp.einsum("bap,bcp->bac", z_BxAxP, z_BxAxP, precision="highest")
    / temperature
  )
  others_AxA = 1 - jnp.eye(crops)
  own = jnp.sum(own_BxAxA * others_AxA) / (images * crops * (crops - 1))
  return jnp.mean(all_N) - own


def assign(
  scores_BxVxK: jax.Array,
  assign_crops: Sequence[int],
  epsilon: float,
  iterations: int,
  queue_scores_AxQxK: jax.Array | None = None,
  queue_used: jax.Array | None = None,
  power: float = 0.0,
) -> jax.Array:
  """Codes of each assigning crop, balanced over the batch and its queue.

  Args:
    scores_BxVxK: similarities of crops.
    assign_crops: which of them get codes; each is balanced separately.
    epsilon: see `sinkhorn`.
    iterations: see `sinkhorn`.
    queue_scores_AxQxK: similarities of earlier features, to balance over more
      rows than a small batch has.
    queue_used: scalar; False ignores the queue (it is not full yet).
    power: see `sinkhorn`.

  Returns:
    codes_BxAxK.
  """
  batch = scores_BxVxK.shape[0]
  codes = []
  for a, crop in enumerate(assign_crops):
    rows_NxK = scores_BxVxK[:, crop]
    used_N = None
    if queue_scores_AxQxK is not None:
      queued = queue_scores_AxQxK.shape[1]
      rows_NxK = jnp.concatenate([rows_NxK, queue_scores_AxQxK[a]])
      used_N = jnp.concatenate(
        [jnp.ones(batch, bool), jnp.broadcast_to(queue_used, queued)]
      )
    found_NxK = sinkhorn(rows_NxK, epsilon, iterations, used_N, power)
    codes.append(found_NxK[:batch])
  return jnp.stack(codes, axis=1)


def empty_queue(crops: int, length: int, width: int) -> dict[str, jax.Array]:
  """A queue of `length` earlier features for each assigning crop, unfilled."""
  return {
    "z_AxQxP": jnp.zeros((crops, length, width)),
    "filled": jnp.zeros((), jnp.int32),
  }


def update_queue(
  queue: Mapping[str, jax.Array], z_BxAxP: jax.Array, active: jax.Array
) -> dict[str, jax.Array]:
  """Puts the batch in front and drops the oldest, if `active` is true."""
  z_AxBxP = jax.lax.stop_gradient(z_BxAxP).astype(jnp.float32).swapaxes(0, 1)
  length, batch = queue["z_AxQxP"].shape[1], z_AxBxP.shape[1]
  pushed = jnp.concatenate([z_AxBxP, queue["z_AxQxP"][:, :-batch]], axis=1)
  filled = jnp.minimum(queue["filled"] + batch, length)
  return {
    "z_AxQxP": jnp.where(active, pushed, queue["z_AxQxP"]),
    "filled": jnp.where(active, filled, queue["filled"]),
  }


def is_full(queue: Mapping[str, jax.Array]) -> jax.Array:
  """Whether the queue is full; it is not used until then."""
  return queue["filled"] == queue["z_AxQxP"].shape[1]
