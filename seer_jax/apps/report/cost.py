"""What a run took: time, images and an estimate of energy."""

import re
from typing import NamedTuple

from seer_jax.apps.report.history import History

# Board power in watts, from the vendors' data sheets (V100, A100, H100 and
# H200: SXM). Of TPUs only v4's is published: at most 192 W (Jouppi et al. 2023,
# table 4).
_WATTS = {
  r"V100": 300,
  r"A100": 400,
  r"H[12]00": 700,
  r"B200": 1000,
  r"\bL40S": 350,
  r"\bL4\b": 72,
  r"\bT4\b": 70,
  r"RTX 3090": 350,
  r"RTX 4090": 450,
  r"RTX 5090": 575,
  r"TPU v4": 192,
}
# Assumed, of any processor under load.
_WATTS_A_CORE = 5


class Energy(NamedTuple):
  """An estimate; `kilowatt_hours` is None if the power is not published."""

  kilowatt_hours: float | None
  words: str

  @property
  def amount(self) -> str:
    """Such as "2.1 Wh" or "35 kWh"; "" if unknown."""
    if self.kilowatt_hours is None:
      return ""
    if self.kilowatt_hours < 0.1:
      return f"{1000 * self.kilowatt_hours:.2g} Wh"
    return f"{self.kilowatt_hours:,.3g} kWh"


def energy(history: History) -> Energy:
  """Energy of a run at full power throughout, without cooling and the like.

  A run that resumed on other hardware counts as if all of it ran on the newest.
  """
  seconds = history.last("seconds")
  starts = history.record.starts
  if not seconds or not starts:
    return Energy(
      None, "No estimate: the run is from before hardware was recorded."
    )
  start, hours = starts[-1], seconds / 3600
  if "cpu" in start.device.lower():
    watts = _WATTS_A_CORE * start.cores * start.processes
    return Energy(
      watts * hours / 1000,
      f"{start.cores * start.processes} cores at {_WATTS_A_CORE} W each for"
      f" {duration(seconds)}: it may be wrong by a factor of two.",
    )
  known = [
    watts for name, watts in _WATTS.items() if re.search(name, start.device)
  ]
  if not known:
    return Energy(
      None,
      f"No estimate: the power of {start.device} is not known here. It took"
      f" {start.devices * hours:,.1f} device hours.",
    )
  return Energy(
    known[0] * start.devices * hours / 1000,
    f"{start.devices} x {start.device} at their board power of {known[0]} W for"
    f" {duration(seconds)}: an upper bound for the devices, without hosts and"
    " cooling.",
  )


def duration(seconds: float) -> str:
  """Seconds as "2 h 5 min", "3 min 20 s" or "1.2 s"."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f"{hours} h {minutes} min"
  return f"{hours / 24:.1f} days"
