"""The table of checks that `bertjax verify` and the tests run."""

from bertjax.verify import bert, metrics, prompts, spans, squad, t5
from bertjax.verify.runner import Check

BERT, OPTIMIZATION = "google-research/bert create_pretraining_data.py", "google-research/bert optimization.py"
RUN_SQUAD = "google-research/bert run_squad.py"
METRICS = "google-research/text-to-text-transfer-transformer t5/evaluation/metrics_test.py"
T5_DATA = "google-research/text-to-text-transfer-transformer t5/data/preprocessors.py"
CHECKS = (
    Check("bert.masked_examples", BERT, bert.masked_examples),
    Check("bert.prediction_counts", f"{BERT} under Python 3", bert.prediction_counts),
    Check("bert.masking_rates", "arXiv 1810.04805 section 3.1", bert.masking_rates),
    Check("bert.sentence_pairs", BERT, bert.sentence_pairs),
    Check("bert.parameter_counts", "the released models", bert.parameter_counts),
    Check("bert.activations", "arXiv 1606.08415; google-research/bert modeling.py", bert.activations),
    Check("bert.learning_rates", OPTIMIZATION, bert.learning_rates),
    Check("bert.adam_steps", OPTIMIZATION, bert.adam_steps),
    Check("t5.mixing_rates", "arXiv 1910.10683 section 3.5.2; seqio.mixing_rate_num_examples", t5.glue_rates),
    Check("t5.nested_mixtures", "t5/data/glue_utils.py; seqio dataset_providers_test.py", t5.nested_rates),
    Check("t5.gradual_unfreezing", "arXiv 1910.10683 section 3.5.1", t5.unfreezing),
    Check("t5.span_lengths", f"{T5_DATA}, preprocessors_test.py, objectives/*.gin", spans.span_lengths),
    Check("t5.noise_rounding", T5_DATA, spans.noise_rounding),
    Check("t5.span_masks", T5_DATA, spans.span_masks),
    Check("t5.sentinels", f"{T5_DATA}, preprocessors_test.py", spans.sentinels),
    Check("t5.prefix_lengths", T5_DATA, spans.prefix_lengths),
    Check("t5.iid_rates", f"{T5_DATA}, objectives/iid_15_r10s90_f.gin", spans.iid_rates),
    Check("t5.decoder_only_rows", "google/seqio feature_converters_test.py", spans.decoder_only_rows),
    Check("t5.adapter_parameters", "T5's task_adapter.gin; arXiv 1910.10683 section 3.5.1", t5.adapter_parameters),
    Check("t5.parameter_counts", "the released models", t5.parameter_counts),
    Check("t5.position_buckets", "t5x layers.py; arXiv 1910.10683 section 2.1", t5.position_buckets),
    Check("t5.learning_rates", "t5x optimizer gin files; arXiv 1910.10683 section 3.1.2", t5.learning_rates),
    Check("t5.adafactor", "t5x/adafactor.py, adafactor_test.py", t5.adafactor_steps),
    Check("t5.losses", "t5x/losses.py", t5.losses),
    Check("t5.loss_weights", "t5x/losses.py, losses_test.py", t5.loss_weights),
    Check("t5.prompts", f"{T5_DATA}, preprocessors_test.py", prompts.prompts),
    Check("t5.ratings", f"{T5_DATA} stsb; 26 values: arXiv 1910.10683 section 2.4", prompts.ratings),
    Check("t5.punctuation", f"{T5_DATA}, preprocessors_test.py; RE2 syntax", prompts.punctuation),
    Check("t5.length_penalties", "arXiv 1609.08144 equation 14; t5x/decoding.py", t5.length_penalties),
    Check("t5.sampling_sets", "arXiv 1904.09751 section 3.1; transformers logits_process.py", t5.sampling_sets),
    Check("squad.training_windows", RUN_SQUAD, squad.training_windows),
    Check("squad.evaluation_windows", RUN_SQUAD, squad.evaluation_windows),
    Check("squad.predictions", RUN_SQUAD, squad.predictions),
    Check("squad.answer_texts", f"{RUN_SQUAD}, tokenization.py", squad.answer_texts),
    Check("squad.scores", "rajpurkar/SQuAD-explorer evaluate-v1.1.py, evaluate-v2.0.py", squad.squad_scores),
    Check("text.labels", f"{METRICS}, postprocessors_test.py", metrics.labels),
    Check("text.answers", f"{METRICS}, qa_utils_test.py", metrics.answers),
    Check("text.generated", METRICS, metrics.generated_text),
    Check("text.averages", "arXiv 1910.10683 tables 1 and 16", metrics.averages),
)
