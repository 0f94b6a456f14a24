"""Filters and random textures that corruptions are made of."""

import cv2
import numpy as np


def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
  """A Gaussian blur that reaches four sigma, HxW or HxWxC."""
  reach = int(4 * sigma + 0.5)
  if not reach:
    return x
  width = 2 * reach + 1
  return cv2.GaussianBlur(
    x, (width, width), sigma, borderType=cv2.BORDER_REPLICATE
  )


def smooth(x_HxW: np.ndarray, sigma: float) -> np.ndarray:
  """A Gaussian blur of any width, with reflection at the borders.

  As a product of cosine transforms, so its cost does not grow with sigma, which
  may be close to the side of the image. Sigma 0 changes nothing.
  """
  # Importing it takes a quarter of a second, also of runs that corrupt nothing.
  from scipy import fft

  height, width = x_HxW.shape
  decay = [
    np.exp(-((sigma * np.pi * np.arange(n) / n) ** 2) / 2)
    for n in (height, width)
  ]
  spectrum = fft.dctn(x_HxW, norm="ortho") * np.outer(*decay)
  return fft.idctn(spectrum, norm="ortho")


def motion(
  x: np.ndarray, radius: float, sigma: float, degrees: float
) -> np.ndarray:
  """A blur to one side along a direction: half a Gaussian over 2 radius + 1.

  Like ImageMagick's, which the published images were made with.
  """
  count = 2 * max(1, round(radius)) + 1
  steps = np.arange(count)
  weights = np.exp(-(steps**2) / (2 * sigma**2))
  angle = np.radians(degrees)
  # Pixels that the weights fall on, from the center of the kernel.
  rows = np.rint(steps * np.sin(angle)).astype(int) + count
  columns = np.rint(steps * np.cos(angle)).astype(int) + count
  kernel = np.zeros((2 * count + 1, 2 * count + 1), np.float32)
  np.add.at(kernel, (rows, columns), weights / weights.sum())
  return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def zoomed(x: np.ndarray, zoom: float) -> np.ndarray:
  """The center of a square image, enlarged to its side."""
  side = x.shape[0]
  inner = int(np.ceil(side / zoom))
  top = (side - inner) // 2
  part = np.ascontiguousarray(x[top : top + inner, top : top + inner])
  return cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR)


def scattered(
  pixels_SxSx3: np.ndarray, delta: int, times: int, rng: np.random.Generator
) -> np.ndarray:
  """Each pixel takes the color of one up to `delta` away, `times` times.

  Pixels near the borders keep theirs. (The published script means to swap two
  pixels, but its views alias, and it copies.)
  """
  side = pixels_SxSx3.shape[0]
  inner = np.arange(delta + 1, side - delta)
  here_R, here_C = np.meshgrid(inner, inner, indexing="ij")
  for _ in range(times):
    rows, columns = rng.integers(-delta, delta, (2, *here_R.shape))
    moved = pixels_SxSx3[here_R + rows, here_C + columns]
    pixels_SxSx3 = pixels_SxSx3.copy()
    pixels_SxSx3[here_R, here_C] = moved
  return pixels_SxSx3


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
  """A cloud by the diamond-square algorithm, 0 to 1, side x side.

  Each step halves the distance of the points and divides the amplitude of the
  noise by `decay`. (Fournier, Fussell & Carpenter 1982; the borders wrap.)
  """
  size = 1 << max(1, (side - 1).bit_length())
  cloud = np.zeros((size, size))
  step, amplitude = size, 100.0
  while step >= 2:
    half = step // 2

    def noisy(sum_of_four, amplitude=amplitude):
      # The published script multiplies the amplitude twice.
      noise = rng.uniform(-amplitude, amplitude, sum_of_four.shape)
      return sum_of_four / 4 + amplitude * noise

    corners = cloud[::step, ::step]
    below = np.roll(corners, -1, 0)
    squares = corners + below
    squares = squares + np.roll(squares, -1, 1)
    cloud[half::step, half::step] = centers = noisy(squares)
    above, left = np.roll(centers, 1, 0), np.roll(centers, 1, 1)
    right = np.roll(corners, -1, 1)
    cloud[::step, half::step] = noisy(centers + above + corners + right)
    cloud[half::step, ::step] = noisy(centers + left + corners + below)
    step, amplitude = half, amplitude / decay
  cloud -= cloud.min()
  return (cloud / cloud.max())[:side, :side].astype(np.float32)


def frost(side: int, rng: np.random.Generator) -> np.ndarray:
  """Ice on a window, side x side x 3, 0 to 1: needles over a cloud.

  Thin lines that branch from a few seeds, blurred a little, brighter where the
  cloud is dense, and bluish.
  """
  needles = np.zeros((side, side), np.float32)
  length = max(3.0, side / 3)
  for _ in range(max(6, side // 8)):
    x, y = rng.uniform(0, side, 2)
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(6):
      turned = angle + rng.choice((-1, 1)) * np.pi / 3
      reach = length * rng.uniform(0.2, 1)
      ends = [
        (int(x + reach * np.cos(a)), int(y + reach * np.sin(a)))
        for a in (angle, turned)
      ]
      for end in ends:
        cv2.line(
          needles,
          (int(x), int(y)),
          end,
          float(rng.uniform(0.4, 1)),
          1,
          cv2.LINE_AA,
        )
      x, y = x + reach * np.cos(angle) / 2, y + reach * np.sin(angle) / 2
  needles = np.clip(gaussian(needles, side / 224), 0, 1)
  cloud = plasma(side, 2.0, rng)
  ice = np.clip(0.25 + 0.45 * cloud + 0.6 * needles * (0.4 + cloud), 0, 1)
  return ice[..., None] * np.float32((0.85, 0.93, 1.0))
