"""Published weights: where they are, and their preprocessing.

https://github.com/facebookresearch/vissl/blob/main/projects/SEER/README.md;
timm's and Hugging Face's copies of the same weights, and other RegNets of the
hub. SEER's weights have a license of their own, for research only.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Mapping

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import architectures
from seer_jax.runtime import errors, files
from seer_jax.weights import infer_model

SEER_FEATURES = Preprocessing(256, 224, "bilinear")
FINE_TUNED = Preprocessing(384, 384, "bicubic")
_FILES = "https://dl.fbaipublicfiles.com/vissl/model_zoo/"
# The weights that timm 1.0.31 loads for the name of a network alone.
_TIMM_TAGS: Mapping[str, str] = {
  "pycls_in1k": "x_002 x_004 x_006 x_040 x_064 x_120 y_002 y_006 y_008",
  "tv2_in1k": "x_004_tv x_008 x_016 x_032 x_080 x_160 x_320 y_004 y_008_tv"
  " y_016 y_080_tv y_320",
  "ra_in1k": "y_032",
  "ra3_in1k": "y_040 y_064 y_080 z_040",
  "sw_in12k_ft_in1k": "y_120 y_160",
  "seer_ft_in1k": "y_640 y_2560",
  "swag_ft_in1k": "y_1280",
}
_TIMM_BARE: Mapping[str, str] = {
  f"regnet{name}": f"regnet{name}.{tag}"
  for tag, names in _TIMM_TAGS.items()
  for name in names.split()
}
_TIMEOUT = 20  # Seconds for the first response of the hub.
_WEIGHTS = ("model", "pytorch_model")


@dataclasses.dataclass(frozen=True)
class Published:
  """One set of weights."""

  name: str
  trunk: str  # Name in `architectures.MODELS`; "" is inferred from the file.
  repository: str = ""  # On Hugging Face's hub; "" for none.
  url: str = ""  # For the user to download; "" for none.
  preprocessing: Preprocessing | None = None  # None is the repository's.


# Name, trunk; file and repository of the pre-trained weights; then of the
# fine-tuned ones. Where timm has a copy, the repository is timm's.
_SEER = (
  (
    *("seer_32", "regnety_32gf"),
    "seer_regnet32d/seer_regnet32gf_model_iteration244000.torch",
    "timm/regnety_320.seer",
    "seer_regnet32_finetuned_in1k_model_final_checkpoint_phase78.torch",
    "timm/regnety_320.seer_ft_in1k",
  ),
  (
    *("seer_64", "regnety_64gf"),
    "seer_regnet64/seer_regnet64gf_model_final_checkpoint_phase0.torch",
    "timm/regnety_640.seer",
    "seer_regnet64_finetuned_in1k_model_final_checkpoint_phase78.torch",
    "timm/regnety_640.seer_ft_in1k",
  ),
  (
    *("seer_128", "regnety_128gf"),
    "swav_ig1b_regnet128Gf_cnstant_bs32_node16_sinkhorn10_proto16k_syncBN64"
    "_warmup8k/model_final_checkpoint_phase0.torch",
    "timm/regnety_1280.seer",
    "seer_regnet128_finetuned_in1k_model_final_checkpoint_phase78.torch",
    "timm/regnety_1280.seer_ft_in1k",
  ),
  (
    *("seer_256", "seer_256gf"),
    "swav_ig1b_cosine_rg256gf_noBNhead_wd1e5_fairstore_bs16_node64_sinkhorn10"
    "_proto16k_apex_syncBN64_warmup8k/model_final_checkpoint_phase0.torch",
    "",
    "seer_regnet256_finetuned_in1k_model_final_checkpoint_phase38.torch",
    "timm/regnety_2560.seer_ft_in1k",
  ),
  (
    *("seer_10b", "seer_10b"),
    "seer_regnet10B/model_iteration124500_conso.torch",
    "facebook/regnet-y-10b-seer",
    "seer_10b_finetuned_in1k_model_phase28_conso.torch",
    "facebook/regnet-y-10b-seer-in1k",
  ),
)


def _seer():
  for name, trunk, file, repository, tuned, tuned_repository in _SEER:
    # The pre-trained file of 256 GF may have another trunk than SEER's.
    first = trunk if repository else ""
    yield Published(name, first, repository, _FILES + file, SEER_FEATURES)
    url = f"{_FILES}seer_finetuned/{tuned}"
    name += "_in1k"
    yield Published(name, trunk, tuned_repository, url, FINE_TUNED)


SEER: Mapping[str, Published] = {each.name: each for each in _seer()}


def find(name: str) -> Published | None:
  """The published weights of a name; None if there are none.

  Names of SEER's weights (`seer_32`, `seer_256_in1k`), of timm's
  (`regnety_320.seer`; `regnety_320` for timm's default) and of repositories on
  the hub (`facebook/regnet-y-040`, also after `hf-hub:`). Raises UserError if
  timm's network of that name is not supported.
  """
  name = re.sub(r"^hf[-_]hub:", "", name)
  bare = name.removeprefix("timm/").split(".")[0]
  if reason := infer_model.refusal(bare):
    raise errors.UserError(f"timm's {bare} is not supported: {reason}")
  name = _TIMM_BARE.get(name, name)
  if name in SEER:
    return SEER[name]
  for each in SEER.values():
    if each.repository and name == each.repository.split("/")[1]:
      return each
  if re.fullmatch(r"regnet[a-z]+_\w+\.\w+", name):
    name = f"timm/{name}"
  if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
    return None
  for each in SEER.values():
    if name == each.repository:
      return each
  try:
    trunk = architectures.canonical(name.split("/")[1])
  except ValueError:
    trunk = ""
  return Published(name, trunk, name)


def folder_of(it: Published) -> pathlib.Path:
  """The folder for a file that the user downloads."""
  return files.cache_folder("weights") / it.name.replace("/", "--")


def fetched(it: Published) -> pathlib.Path:
  """The weights on this disk: put there by the user, or from the hub's cache.

  Raises UserError if they cannot be downloaded; says where to put which file.
  """
  folder = folder_of(it)
  if folder.is_dir() and any(folder.iterdir()):
    files = sorted(folder.glob("*.torch")) + sorted(folder.glob("*.pth"))
    return files[0] if files else folder
  return pathlib.Path(_downloaded(it, folder))


def _downloaded(it, folder):
  source = it.url or f"https://huggingface.co/{it.repository}"
  what = f"download {source} to {folder}/"
  if not it.repository:
    raise errors.UserError(f"{it.name} is not on Hugging Face's hub; {what}")
  try:
    import huggingface_hub  # An extra, and slow to import.
  except ImportError as error:
    raise errors.UserError(
      f"{it.name} is not on this disk: pip install huggingface_hub; or {what}"
    ) from error
  try:
    return _snapshot(huggingface_hub, it.repository)
  except Exception as error:  # Of many layers: HTTP, the hub, the disk.
    words = " ".join(str(error).split())[:200]
    raise errors.UserError(
      f"cannot download {it.repository} from Hugging Face's hub"
      f" ({type(error).__name__}: {words}); {what}"
    ) from error


def _snapshot(hub, repository):
  """An earlier download, or else a new one."""
  with contextlib.suppress(Exception):
    found = hub.snapshot_download(repository, local_files_only=True)
    there = [path.name for path in pathlib.Path(found).iterdir()]
    if any(name.startswith(_WEIGHTS) for name in there):
      return found
  about = hub.model_info(repository, timeout=_TIMEOUT)
  there = [each.rfilename for each in about.siblings]
  # Many repositories have both forms; one is enough.
  safe = any(name.startswith(_WEIGHTS[0]) for name in there)
  kind = "model*.safetensors*" if safe else "pytorch_model*.bin*"
  return hub.snapshot_download(repository, allow_patterns=[kind, "*.json"])
