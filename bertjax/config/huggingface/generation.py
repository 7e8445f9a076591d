"""Rules for every field of generation_config.json (transformers' GenerationConfig), and its Decoding options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.storage import text

FILENAME = "generation_config.json"
# Read into Decoding, or the number of answers.
DECODING = (
    "num_beams", "do_sample", "temperature", "top_k", "top_p", "length_penalty", "early_stopping", "max_length",
    "max_new_tokens", "min_length", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences",
)  # fmt: skip
# These ids are compared with config.json and the tokenizer.
SUPPORTED = (*DECODING, "decoder_start_token_id", "eos_token_id", "pad_token_id")
# These change the text and are not implemented; with the values that have no effect.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,),
    "force_words_ids": ([],), "constraints": ([],), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (), "num_beam_groups": (1,), "diversity_penalty": (0.0,),
    "min_p": (0.0,), "top_h": (1.0,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,), "guidance_scale": (1.0,), "penalty_alpha": (0.0,), "dola_layers": (), "stop_strings": ([],),
    "max_time": (), "watermarking_config": (), "token_healing": (False,), "forced_decoder_ids": ([],),
}  # fmt: skip
# These change only speed, or outputs other than the text.
IGNORED = (
    "bos_token_id", "use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "renormalize_logits", "remove_invalid_values", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile",
    "continuous_batching_config", "low_memory", "prefill_chunk_size", "_from_model_config", "transformers_version",
    "_commit_hash", "_name_or_path", "generation_kwargs", "trust_remote_code", "custom_generate",
)  # fmt: skip
_OFF: dict[str, Any] = {
    "min_new_tokens": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "bad_words_ids": [],
}  # fmt: skip
_NUMBERS = (
    "num_beams", "temperature", "top_k", "top_p", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_return_sequences",
)  # fmt: skip
# The least values that `generate` of transformers accepts; max_length and min_length count the start token.
_LEAST = {"num_beams": 1, "max_length": 2, "min_length": 0}
CONFIG_JSON_FIELDS = (*DECODING, *UNSUPPORTED)  # those that transformers 4 keeps in config.json


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read generation_config.json of a folder; {} if there is none. Raises UserError."""
    path = folder / FILENAME
    if not path.is_file():
        return {}
    found = text.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; repair or remove it")
    _check_numbers(found, str(path))
    return found


def _check_numbers(found: Mapping[str, Any], where: str) -> None:
    for name in _NUMBERS:
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{where}: {name} is {value!a:.40}, not a number; correct it")
        if value is not None and value < (least := _LEAST.get(name, value)):
            start = ", since it counts the start token" if name == "max_length" else ""
            raise UserError(f"{where}: {name} is {value}, it must be at least {least}{start}; correct it")


def generation_settings(files: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the settings in {"config", "generation_config"}: transformers 4 wrote them into config.json."""
    found: dict[str, Any] = files["generation_config"]
    if not found:
        found = {name: files["config"][name] for name in CONFIG_JSON_FIELDS if name in files["config"]}
        _check_numbers(found, "config.json")
    return found


def to_decoding_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """Translate to fields of Decoding that generate as `generate` of transformers does.

    Missing fields have the defaults of transformers (length penalty 1, top_k 50 when sampling), except the length.
    """
    given = {name: value for name, value in found.items() if value is not None}
    made: dict[str, Any] = {}
    if given.get("num_beams", 1) > 1 and not given.get("do_sample"):
        made = {"beam_size": given["num_beams"], "beam_rules": "transformers"}
        made["length_penalty"] = float(given.get("length_penalty", 1.0))
        made |= {name: given[name] for name in ("early_stopping",) if given.get(name)}
    elif given.get("do_sample"):
        made = {"sample": True, "temperature": float(given.get("temperature", 1.0))}
        made |= {"top_k": given.get("top_k", 50) or None, "top_p": float(given["top_p"]) if "top_p" in given else None}
    if "max_new_tokens" in given:
        made["max_new_tokens"] = given["max_new_tokens"]
    elif given.get("max_length", 20) != 20:  # 20 is the default of transformers
        made["max_new_tokens"] = given["max_length"] - 1  # it counts the start token
    least = given.get("min_new_tokens", max(0, given.get("min_length", 0) - 1))  # min_length also counts it
    rules: dict[str, Any] = {"min_new_tokens": least}
    rules |= {n: given[n] for n in ("no_repeat_ngram_size", "repetition_penalty", "bad_words_ids") if n in given}
    made |= {name: value for name, value in rules.items() if value != _OFF[name]}
    return made


def num_return_sequences(found: Mapping[str, Any]) -> int:
    """The number of answers for each text; 1 where transformers refuses the number that is set."""
    count = found.get("num_return_sequences") or 1
    most = count if found.get("do_sample") else found.get("num_beams") or 1
    return int(count) if 1 <= count <= most and count % 1 == 0 else 1


def unsupported_settings(found: Mapping[str, Any]) -> list[str]:
    """List `name value` of the settings with which `generate` of transformers gives another text than bertjax.

    Settings that have no rule here are among them: they may be newer, and change the text.
    """
    given = {name: value for name, value in found.items() if value is not None}
    names = [name for name, same in UNSUPPORTED.items() if name in given and given[name] not in same]
    names += sorted(given.keys() - {*SUPPORTED, *UNSUPPORTED, *IGNORED})
    if given.get("num_return_sequences", 1) != num_return_sequences(given):
        names.insert(0, "num_return_sequences")
    if given.get("num_beams", 1) > 1 and given.get("do_sample"):
        names.insert(0, "num_beams")  # sampled beams
    return [f"{name} {given[name]!a:.40}" for name in names]
