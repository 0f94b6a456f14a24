"""A network as an ONNX graph, for images of any number and size.

    session = onnxruntime.InferenceSession("model.onnx")
    (features_NxD,) = session.run(["avgpool"], {"pixels": pixels_NxHxWx3})

Pixels are uint8. The graph normalizes them; BatchNorm is folded into the layer
before it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from seer_jax.models import encoder
from seer_jax.models.batch_norm import BatchNorm
from seer_jax.runtime import errors

# The oldest versions with all operators used, for older runtimes.
_OPSET, _IR = 17, 8
# Limit of protocol buffers.
_LARGEST = 2**31 - 2**24


def serialized(network: encoder.Encoder, variables: Mapping[str, Any]) -> bytes:
  """The bytes of a graph of `pixels_NxHxWx3`, uint8.

  Its outputs are `avgpool` NxD and, if the network has such heads, `projection`
  NxP and `logits` NxL, all float32. Raises UserError if onnx is not installed,
  or the weights are too large for one file.
  """
  try:
    import onnx  # An extra.
  except ImportError as error:
    raise errors.UserError(
      "writing ONNX needs the package: pip install -e '.[onnx]'"
    ) from error
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  if size > _LARGEST:
    raise errors.UserError(
      f"the weights have {size / 2**30:.1f} GiB, but an ONNX file has at most"
      " 2; --to orbax or huggingface has no limit"
    )
  return _Graph(onnx, network, variables).model().SerializeToString()


class _Graph:
  """Collects nodes and arrays; methods return the name of their output."""

  def __init__(self, onnx, network, variables):
    self._onnx, self._network = onnx, network
    self._params = jax.tree.map(np.asarray, variables["params"])
    self._stats = jax.tree.map(np.asarray, variables["batch_stats"])
    self._nodes, self._arrays, self._count = [], [], 0

  def model(self):
    """The graph as a ModelProto, checked by ONNX."""
    outputs = self._outputs()
    tensor, make = self._onnx.TensorProto, self._onnx.helper
    pixels = make.make_tensor_value_info(
      "pixels", tensor.UINT8, ["batch", "height", "width", 3]
    )
    graph = make.make_graph(
      self._nodes,
      "seer_jax",
      [pixels],
      [
        make.make_tensor_value_info(name, tensor.FLOAT, ["batch", width])
        for name, width in outputs.items()
      ],
      self._arrays,
    )
    model = make.make_model(
      graph,
      opset_imports=[make.make_opsetid("", _OPSET)],
      ir_version=_IR,
      producer_name="seer_jax",
    )
    self._onnx.checker.check_model(model)
    return model

  def _outputs(self):
    """Adds all nodes; returns the widths of the outputs by name."""
    network = self._network
    x = self._node("GlobalAveragePool", self._trunk())
    x = self._node("Flatten", x, output="avgpool")
    widths = {"avgpool": network.architecture.features}
    if network.out:
      self._unit(self._head(x))
      widths["projection"] = network.out
    elif network.hidden:
      x = self._head(x)
    if network.classes:
      self._linear(x, *_both(self._params["classifier"]), output="logits")
      widths["logits"] = network.classes
    return widths

  def _trunk(self):
    arch, params = self._network.architecture, self._params["trunk"]
    stats = self._stats["trunk"]
    folded = _folded(params["stem"]["kernel"], params, stats, "bn_stem")
    x = self._conv(self._normalized(), *folded, arch.stem_stride)
    x, width = self._active(x), arch.stem_width
    for stage, depth in enumerate(arch.depths, 1):
      for index in range(depth):
        name = f"stage{stage}_block{index}"
        stride = arch.strides[stage - 1] if index == 0 else 1
        groups = arch.inner[stage - 1] // arch.group_widths[stage - 1]
        changes = stride != 1 or width != arch.widths[stage - 1]
        x = self._block(x, params[name], stats[name], stride, groups, changes)
        width = arch.widths[stage - 1]
    return self._active(x) if arch.last_activation else x

  def _normalized(self):
    """`Preprocessing.normalize`, then channels before pixels."""
    prepared = self._network.preprocessing
    mean, std = (
      np.reshape(np.float32(each), (1, 3, 1, 1))
      for each in (prepared.mean, prepared.std)
    )
    x = self._node("Cast", "pixels", to=self._onnx.TensorProto.FLOAT)
    x = self._node("Transpose", x, perm=[0, 3, 1, 2])
    x = self._node("Mul", x, self._array(1 / (255 * std)))
    return self._node("Sub", x, self._array(mean / std))

  def _block(self, x, params, stats, stride, groups, changes):
    """`regnet.Block`."""

    def conv(x, name, norm, stride=1, groups=1):
      folded = _folded(params[name]["kernel"], params, stats, norm)
      return self._conv(x, *folded, stride, groups)

    linear = self._network.architecture.linear
    y = self._active(conv(x, "a", "bn_a"))
    y = self._active(conv(y, "b", "bn_b", stride, groups))
    if "se" in params:
      y = self._squeeze_excite(y, params["se"])
    y = conv(y, "c", "bn_c")
    if linear:
      return y if changes else self._node("Add", x, y)
    if changes:
      x = conv(x, "shortcut", "bn_shortcut", stride)
    return self._active(self._node("Add", x, y))

  def _squeeze_excite(self, x, params):
    gate = self._node("GlobalAveragePool", x)
    gate = self._active(self._conv(gate, *_both(params["reduce"])))
    gate = self._conv(gate, *_both(params["expand"]))
    return self._node("Mul", x, self._node("Sigmoid", gate))

  def _active(self, x):
    """ReLU, and SiLU for the networks of linear blocks."""
    if not self._network.architecture.linear:
      return self._node("Relu", x)
    return self._node("Mul", x, self._node("Sigmoid", x))

  def _head(self, x):
    """`encoder.Projection`, except for the last normalization."""
    network, params = self._network, self._params["head"]
    for layer in range(len(network.hidden)):
      kernel, bias = _both(params[f"linear{layer}"])
      if network.batch_norm:
        stats = self._stats["head"]
        kernel, bias = _folded(kernel, params, stats, f"bn{layer}", bias)
      x = self._node("Relu", self._linear(x, kernel, bias))
    if not network.out:
      return x
    return self._linear(x, *_both(params[f"linear{len(network.hidden)}"]))

  def _unit(self, x):
    """Rows on the unit sphere; zeros stay zeros."""
    square = self._node("ReduceSumSquare", x, axes=[1], keepdims=1)
    square = self._node("Max", square, self._array(np.float32(1e-24)))
    norm = self._node("Sqrt", square)
    return self._node("Div", x, norm, output="projection")

  def _linear(self, x, kernel, bias, output=""):
    return self._node(
      "Gemm", x, self._array(kernel), self._array(bias), output=output
    )

  def _conv(self, x, kernel_hwio, bias, stride=1, groups=1):
    side = kernel_hwio.shape[0]
    return self._node(
      "Conv",
      x,
      self._array(kernel_hwio.transpose(3, 2, 0, 1)),
      self._array(bias),
      kernel_shape=[side, side],
      pads=[side // 2] * 4,
      strides=[stride, stride],
      group=groups,
    )

  def _node(self, kind, *inputs, output="", **attributes):
    output = output or self._name(kind)
    node = self._onnx.helper.make_node(kind, inputs, [output], **attributes)
    self._nodes.append(node)
    return output

  def _array(self, values):
    name = self._name("array")
    values = np.ascontiguousarray(values, np.float32)
    self._arrays.append(self._onnx.numpy_helper.from_array(values, name))
    return name

  def _name(self, kind):
    self._count += 1
    return f"{kind}_{self._count}"


def _both(params):
  return params["kernel"], params["bias"]


def _folded(kernel, params, stats, norm, bias=0.0):
  """(kernel, bias) of a layer with the BatchNorm after it."""
  var = stats[norm]["var"] + np.float32(BatchNorm.epsilon)
  factor = params[norm]["scale"] / np.sqrt(var)
  bias = params[norm]["bias"] + (bias - stats[norm]["mean"]) * factor
  return kernel * factor, bias
