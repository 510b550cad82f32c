"""Encoders from outside: the one place that opens a folder or hub name of transformers and reads what it says.

What config.json and tokenizer files say is not believed: sizes are checked before anything is built, weights against
what was built, and the encoder is tried on a pair of texts. Code that a folder carries is run only if it is ours, or
the user asks for it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmbert.errors import CheckpointError, CmbertError
from cmbert.memory import require_memory
from cmbert.model.config_json import read_json_object, runs_our_code
from cmbert.model.cost import FP32_BYTES
from cmbert.tokenizer import PANIC
from cmbert.transfer.encoder_trial import PROBE_TOKENS, OutsideEncoder, probe, try_texts
from cmbert.vocabulary import rows_for

MAX_LAYERS = 1024
"""Most layers, groups of them and the like that are built (ours; published encoders have up to 48): each takes time."""
MAX_LABELS = 1_000_000
"""Most labels that a config.json may name: transformers makes a dictionary of them."""
PACKED_WEIGHTS = 4
"""Most parameters in a byte of a weights file: of two bits each."""
UNREADABLE = "transformers cannot read its config.json"
UNKNOWN = "neither a run, a checkpoint nor a model of transformers"
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
FRESH = ("pooler",)
"""Parts that a weights file may lack: nothing here reads them."""
HARMLESS = ("position_ids", "token_type_ids", "inv_freq", "version")
"""Buffers that older versions of transformers saved."""


@contextlib.contextmanager
def opening(name: str, what: str = "transformers cannot load it") -> Iterator[None]:
    """Turn whatever their code raises into one line of ours that names the model. Raises CheckpointError."""
    try:
        yield
    except (CmbertError, ModuleNotFoundError):
        raise
    except BaseException as error:  # other people's code and files: it may be anything
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise CheckpointError(f"{name}: {what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return an error as one printable line."""
    said = (str(error).strip().splitlines() or [""])[0]
    said = said if isinstance(error, (OSError, ValueError)) and said else f"{type(error).__name__} {said}".rstrip()
    return said.encode("utf-8", "backslashreplace").decode("utf-8")


def read_encoder_config(name: str, *, trust: bool = False) -> Any:
    """Return the configuration of a folder or hub name; its code is run if it is ours, or with `trust`.

    Raises CheckpointError when there is none, or it asks for code or for numbers that nobody has.
    """
    from transformers import AutoConfig, PreTrainedConfig

    local = Path(name).is_dir()
    trust = trust or runs_our_code(Path(name))
    if local and not (Path(name) / "config.json").is_file():
        raise CheckpointError(f"{name}: no config.json; give a run, a checkpoint or a folder made by `cmbert export`")
    with opening(name, UNREADABLE if local else UNKNOWN):
        values = read_json_object(Path(name) / "config.json") if local else PreTrainedConfig.get_config_dict(name)[0]
        _check_numbers(name, values)
        if values.get("auto_map") and not trust:
            raise CheckpointError(
                f"{name}: config.json's auto_map names code that came with the model, and that is not run unasked; "
                "read it, then say --trust-remote-code"
            )
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust, local_files_only=local)
        config.return_dict = True  # a tuple has no names
    return config


def _check_numbers(name: str, values: Mapping[str, Any]) -> None:
    """Raise CheckpointError for counts that would be made one by one for hours, before transformers reads them."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_numbers(name, value)
        elif isinstance(value, (int, float)):
            most = MAX_LABELS if key == "num_labels" else MAX_LAYERS if "layer" in key or "group" in key else None
            if most is not None and value > most:
                raise CheckpointError(f"{name}: config.json's {key} is above {most:,}; download the model again")


def network_class(name: str, config: Any) -> Any:
    """Return the auto class that makes an encoder alone. Raises CheckpointError for what has none."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    if not getattr(config, "is_encoder_decoder", False) and config.model_type not in ("t5", "mt5", "umt5"):
        return AutoModel
    if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return AutoModelForTextEncoding
    raise CheckpointError(f"{name}: {config.model_type} is an encoder with a decoder; name an encoder")


@dataclass(frozen=True)
class Size:
    """What an encoder holds once it is built."""

    parameters: int
    buffer_bytes: int


def measure(name: str, config: Any, *, trust: bool = False) -> Size:
    """Return how much an encoder holds, without room for it.

    Raises CheckpointError when it cannot be built, or is far larger than the weights of the folder.
    """
    with opening(name, "transformers cannot build what config.json describes"):
        made = network_class(name, config)
        with torch.device("meta"):
            built = made.from_config(config, trust_remote_code=trust or runs_our_code(Path(name)))
        total = sum(weight.numel() for weight in built.parameters())
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in built.buffers())
    weights = sum(path.stat().st_size for path in weight_files(Path(name)))
    if weights and total > PACKED_WEIGHTS * weights:
        raise CheckpointError(
            f"{name}: config.json describes {total:,} parameters, the weights have {weights:,} bytes: they are not "
            "of one model, or cut off; download it again"
        )
    return Size(total, buffers)


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's files of weights, by name."""
    return sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)) if folder.is_dir() else []


def open_encoder(name: str, *, untrained: bool = False, trust: bool = False) -> OutsideEncoder:
    """Open an encoder in fp32 on the CPU with its tokenizer, and try both; `untrained` gives it fresh weights.

    Raises CheckpointError, naming folder and fault, for what is no encoder, lacks weights or a tokenizer, or has those
    of another model; ConfigError for what does not fit into memory. `trust`: run the code that came with it.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it warns of is looked at here
    try:
        config = read_encoder_config(name, trust=trust)
        trust = trust or runs_our_code(Path(name))
        size = measure(name, config, trust=trust)
        needed = size.parameters * FP32_BYTES + size.buffer_bytes
        require_memory(f"--model {name}", needed, torch.device("cpu"), "take a smaller model")
        network = _build(name, config, untrained=untrained, trust=trust)
        tokenizer = load_auto_tokenizer(name, trust=trust)
        check_rows(name, network, tokenizer)
        with opening(name, "it does not read text"):
            return try_texts(name, network.eval(), tokenizer)
    finally:
        transformers_logging.set_verbosity(verbosity)


def _build(name: str, config: Any, *, untrained: bool, trust: bool) -> Any:
    made = network_class(name, config)
    if untrained:
        torch.manual_seed(0)
        with opening(name):
            return made.from_config(config, trust_remote_code=trust, dtype=torch.float32)
    with opening(name):
        network, found = made.from_pretrained(
            name,
            config=config,
            trust_remote_code=trust,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=Path(name).is_dir(),
        )
    missing = sorted(key for key in found["missing_keys"] if not any(part in key.split(".") for part in FRESH))
    if missing:
        raise CheckpointError(f"{name}: its weights lack {len(missing)} of the encoder's, {missing[0]} the first")
    modules = {path for path, _ in network.named_modules() if path}
    foreign = sorted(key for key in found["unexpected_keys"] if _is_part(key, modules))
    if foreign:
        raise CheckpointError(
            f"{name}: {config.model_type} of this transformers has no place for {len(foreign)} of the weights, "
            f"{foreign[0]} the first: the encoder would not be the one that was trained"
        )
    return network


def _is_part(key: str, modules: set[str]) -> bool:
    """Return whether a weight that found no place belongs inside the encoder: its module is there."""
    module, _, leaf = key.rpartition(".")
    return leaf not in HARMLESS and (module in modules or module.rpartition(".")[0] in modules)


def load_auto_tokenizer(name: str, *, trust: bool = False) -> Any:
    """Load a tokenizer of transformers from a folder or by name, padding and cutting at the right.

    Raises CheckpointError if there is none, or it asks for code that is not to be run.
    """
    from transformers import AutoTokenizer

    folder, local = Path(name), Path(name).is_dir()
    trust = trust or runs_our_code(folder)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json_object(settings).get("auto_map") and not trust:
        raise CheckpointError(
            f"{settings}: auto_map names code that came with the tokenizer, and that is not run unasked; read it, then "
            "say --trust-remote-code"
        )
    with opening(name, "has no tokenizer that transformers can load"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust, local_files_only=local)
        size, special = len(tokenizer), len(tokenizer.all_special_ids)
    if size <= special:  # transformers makes an empty one when the files are missing
        raise CheckpointError(f"{name}: has no tokenizer; put its files beside the model")
    with opening(name, "its tokenizer cannot be used"):
        settle(tokenizer)
    return tokenizer


def settle(tokenizer: Any) -> None:
    """Let a tokenizer pad and cut at the right, tell what is padding, and pad with another token if it has none.

    Positions are counted from the left by most encoders, whatever side a tokenizer was saved to pad at.
    """
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if "attention_mask" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    if tokenizer.pad_token_id is None:
        others = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.unk_token, tokenizer.cls_token)
        tokenizer.pad_token = next((token for token in others if token), None) or tokenizer.convert_ids_to_tokens(0)


def check_rows(name: str, network: Any, tokenizer: Any) -> None:
    """Raise CheckpointError when a tokenizer has ids that the embedding has no rows for."""
    with opening(name, "its embeddings cannot be read"):
        rows = network.get_input_embeddings().num_embeddings
        size = max(tokenizer.get_vocab().values()) + 1
    # Others pad their embeddings as they like, our export up to a multiple.
    is_ours = type(network).__name__.startswith("Cmbert")
    if size > rows or (is_ours and rows != rows_for(size)):
        raise CheckpointError(
            f"{name}: the tokenizer has {size:,} ids, the model {rows:,}: it is another model's; use its own"
        )


def require_encoder(name: str, network: Any, rows: int) -> None:
    """Raise CheckpointError unless a network that was built without its weights and tokenizer is an encoder."""
    ids = torch.arange(1, PROBE_TOKENS).clamp(max=rows - 1)[None]
    with opening(name, "it does not read tokens"):
        probe(name, network, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
