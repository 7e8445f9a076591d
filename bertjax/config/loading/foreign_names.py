"""Options of other trainers and their names here: one table, for error messages and for docs/migration.md.

A line of the table is `name | options here | note`; without an option here the note says why, or what to do instead.
`STAGE`, `TASK` and `NAME` stand for the name of a stage, a task or an evaluation. Names are those that users write:
fields of transformers' TrainingArguments and options of its example scripts, flags of google-research/bert, gin
parameters of T5X (their last part), keys of MaxText, and keys of levanter (their last part).
"""

from functools import cache
from typing import NamedTuple


class ForeignName(NamedTuple):
    """A name of another trainer; `ours` are options here, `note` is a conversion, or what to do without an option."""

    origin: str
    name: str
    ours: tuple[str, ...]
    note: str


_TABLE = {
    "transformers.TrainingArguments": """
output_dir | run.root, run.name | a run writes to ROOT/NAME
run_name | run.name |
project | | set WANDB_PROJECT
max_steps | stages.STAGE.steps |
num_train_epochs | stages.STAGE.epochs |
per_device_train_batch_size | stages.STAGE.batch_size | here rows over all devices: multiply by their number
gradient_accumulation_steps | stages.STAGE.grad_accum | micro-batches of one batch_size: multiply that instead
learning_rate | stages.STAGE.optimizer.learning_rate |
lr_scheduler_type | stages.STAGE.optimizer.schedule | its linear is our polynomial, its cosine ours
lr_scheduler_kwargs | stages.STAGE.optimizer.min_lr_ratio, stages.STAGE.optimizer.power, \
stages.STAGE.optimizer.decay_steps | each is an option of its own
warmup_steps | stages.STAGE.optimizer.warmup_steps | a fraction below 1 is warmup_ratio
warmup_ratio | stages.STAGE.optimizer.warmup_ratio |
optim | stages.STAGE.optimizer.kind | adamw_torch is adamw
optim_args | stages.STAGE.optimizer | each is an option of its own
optim_target_modules | stages.STAGE.trainable |
weight_decay | stages.STAGE.optimizer.weight_decay | biases and norms have none here either
adam_beta1 | stages.STAGE.optimizer.b1 |
adam_beta2 | stages.STAGE.optimizer.b2 |
adam_epsilon | stages.STAGE.optimizer.eps |
max_grad_norm | stages.STAGE.optimizer.clip_norm |
label_smoothing_factor | stages.STAGE.objective.label_smoothing | text_to_text only
average_tokens_across_devices | | always so: a loss is divided by the targets of the global batch
bf16 | run.compute_dtype | bfloat16
fp16 | run.compute_dtype | bfloat16 or float32; there is no float16 and no loss scaling
bf16_full_eval | run.compute_dtype | evaluations compute as training does
fp16_full_eval | run.compute_dtype | evaluations compute as training does
tf32 | | set NVIDIA_TF32_OVERRIDE or jax_default_matmul_precision
gradient_checkpointing | run.remat | full or dots
gradient_checkpointing_kwargs | run.remat |
activation_checkpointing | run.remat | full or dots
activation_checkpointing_kwargs | run.remat |
torch_compile | | every step is compiled by XLA
torch_compile_backend | | every step is compiled by XLA
torch_compile_mode | | every step is compiled by XLA
use_liger_kernel | run.attention | kernels are chosen by hardware
liger_kernel_config | run.attention |
use_cache | | generation always uses its cache
neftune_noise_alpha | | not implemented
torch_empty_cache_steps | | XLA manages the memory
auto_find_batch_size | | `bertjax plan CONFIG` finds the batch that fits
logging_strategy | run.log_every |
logging_steps | run.log_every |
logging_first_step | run.log_every | 1 logs every step
log_on_each_node | | the primary process logs
logging_nan_inf_filter | run.max_nonfinite_steps | non-finite steps are skipped and reported
include_num_input_tokens_seen | | metrics.jsonl has tokens_per_second
log_level | | no counterpart: events are one line each
log_level_replica | | the primary process logs
disable_tqdm | | bars are drawn on terminals only; pipe the output
report_to | run.tensorboard, run.wandb |
trackio_space_id | run.tensorboard, run.wandb | Trackio is not supported
trackio_bucket_id | run.tensorboard, run.wandb | Trackio is not supported
trackio_static_space_id | run.tensorboard, run.wandb | Trackio is not supported
eval_strategy | stages.STAGE.evaluate.NAME.every | steps, auto or end; epoch is the number of steps in one
evaluation_strategy | stages.STAGE.evaluate.NAME.every | steps, auto or end
eval_steps | stages.STAGE.evaluate.NAME.every | of T5X and MaxText: evaluate.NAME.batches
eval_delay | | not implemented
eval_on_start | | not implemented; `bertjax evaluate` scores any checkpoint
per_device_eval_batch_size | stages.STAGE.evaluate.NAME.batch_size | here rows over all devices
prediction_loss_only | stages.STAGE.evaluate.NAME.kind | loss
eval_do_concat_batches | | evaluations gather their results themselves
eval_use_gather_object | | evaluations gather their results themselves
eval_accumulation_steps | | results leave the device after each batch
include_for_metrics | | metrics belong to the kind of the evaluation
batch_eval_metrics | | evaluations gather their results themselves
save_strategy | run.checkpoint.save_every, run.checkpoint.save_minutes |
save_steps | run.checkpoint.save_every |
save_total_limit | run.checkpoint.keep_last |
save_only_model | | checkpoints resume exactly; `bertjax export` writes the weights alone
save_on_each_node | | all processes write one checkpoint together
enable_jit_checkpoint | | SIGTERM always saves and exits with code 75
load_best_model_at_end | run.checkpoint.keep_best, stages.STAGE.init_from | init_from: best, or `--best` of a command
metric_for_best_model | run.checkpoint.keep_best | NAME/SCORE, such as dev/f1
greater_is_better | run.checkpoint.best_mode |
early_stopping_patience | stages.STAGE.early_stopping.patience |
early_stopping_threshold | stages.STAGE.early_stopping.min_delta |
push_to_hub | | `bertjax export RUN --push ORG/NAME` after the run
hub_model_id | | `bertjax export RUN --push ORG/NAME` after the run
hub_token | | set HF_TOKEN
hub_private_repo | | `bertjax export RUN --push ORG/NAME --private`
hub_strategy | | training uploads nothing; `bertjax export RUN --push ORG/NAME`
hub_always_push | | training uploads nothing; `bertjax export RUN --push ORG/NAME`
hub_revision | | `bertjax export RUN --push ORG/NAME --revision BRANCH`
ignore_data_skip | | resuming is exact and skips nothing slowly
restore_callback_states_from_checkpoint | | checkpoints hold all state
resume_from_checkpoint | | run the same command again: it resumes
overwrite_output_dir | | remove the run folder, or choose another run.name
full_determinism | | runs are repeatable on the same hardware
seed | run.seed |
data_seed | run.seed | one seed for all
use_cpu | | --device cpu
no_cuda | | --device cpu
accelerator_config | mesh |
parallelism_config | mesh |
dataloader_drop_last | | batches are always full: epochs follow each other without a gap
dataloader_num_workers | run.prefetch, run.prepare_workers | data are tokenized before training
dataloader_pin_memory | run.prefetch |
dataloader_persistent_workers | run.prefetch |
dataloader_prefetch_factor | run.prefetch |
dataloader_multiprocessing_context | run.prepare_workers |
dataloader_in_order | | the order of batches is always the same
remove_unused_columns | | only the fields that the preprocessing names are read
label_names | tasks.TASK.preprocess.label |
train_sampling_strategy | | every epoch is shuffled; rows are packed instead of grouped by length
group_by_length | tasks.TASK.preprocess.pack |
length_column_name | tasks.TASK.preprocess.pack |
ddp_find_unused_parameters | mesh | data parallelism needs no such options
ddp_bucket_cap_mb | mesh | data parallelism needs no such options
ddp_broadcast_buffers | mesh | data parallelism needs no such options
ddp_static_graph | mesh | data parallelism needs no such options
ddp_backend | mesh | XLA's collectives
ddp_timeout | run.watchdog |
fsdp | mesh.fsdp | the number of shards, or -1 for all devices
fsdp_config | mesh.fsdp |
deepspeed | mesh.fsdp | ZeRO-3 is mesh.fsdp
debug | | no counterpart: non-finite steps are found always
skip_memory_metrics | | the memory in use is logged on GPU and TPU
do_train | | `bertjax train`
do_eval | stages.STAGE.evaluate | or `bertjax evaluate RUN`
do_predict | | `bertjax predict`, `bertjax evaluate`
local_rank | | processes find each other; see docs/distributed.md
sortish_sampler | tasks.TASK.preprocess.pack |
predict_with_generate | stages.STAGE.evaluate.NAME.kind | text_to_text
generation_max_length | stages.STAGE.evaluate.NAME.decoding.max_new_tokens |
generation_num_beams | stages.STAGE.evaluate.NAME.decoding.beam_size |
generation_config | stages.STAGE.evaluate.NAME.decoding |
""",
    "transformers examples (run_mlm, run_qa, run_glue, run_summarization, run_t5_mlm_flax)": """
model_name_or_path | pretrained |
pretrained_model_name_or_path | pretrained |
config_name | model.config_from |
config_overrides | model |
tokenizer_name | tokenizer.path |
use_fast_tokenizer | | tokenizers are always fast ones
model_revision | pretrained | NAME@REVISION
cache_dir | run.prepared_dir | of prepared data
token | | set HF_TOKEN
trust_remote_code | | not supported: no code of a data set or model runs
low_cpu_mem_usage | | parameters are created in their shards
torch_dtype | run.compute_dtype | parameters are float32
dataset_name | tasks.TASK.source.name | with source.kind: huggingface
dataset_config_name | tasks.TASK.source.config |
task_name | tasks.TASK.source.config | mrpc of glue; see configs/finetune/classification.yaml
train_file | tasks.TASK.source.files |
validation_file | stages.STAGE.evaluate.NAME.data.source.files |
test_file | stages.STAGE.evaluate.NAME.data.source.files |
train_split_name | tasks.TASK.source.split |
validation_split_percentage | tasks.TASK.source.split, stages.STAGE.evaluate.NAME.data.source.split \
| 5 is "[5%:]" for training and "[:5%]" for the evaluation
max_seq_length | tasks.TASK.preprocess.sequence_length |
max_length | tasks.TASK.preprocess.sequence_length |
block_size | tasks.TASK.preprocess.sequence_length |
max_source_length | tasks.TASK.preprocess.sequence_length |
max_target_length | tasks.TASK.preprocess.target_length | of MaxText: preprocess.sequence_length
val_max_target_length | stages.STAGE.evaluate.NAME.decoding.max_new_tokens |
pad_to_max_length | tasks.TASK.preprocess.pack | rows are padded; pack fills them
line_by_line | tasks.TASK.source.layout |
mlm_probability | tasks.TASK.preprocess.masked_lm_prob |
whole_word_mask | tasks.TASK.preprocess.whole_word_mask |
mean_noise_span_length | tasks.TASK.preprocess.mean_noise_span_length |
doc_stride | tasks.TASK.preprocess.doc_stride |
max_query_length | tasks.TASK.preprocess.max_query_length |
n_best_size | stages.STAGE.evaluate.NAME.n_best |
max_answer_length | stages.STAGE.evaluate.NAME.max_answer_length |
version_2_with_negative | stages.STAGE.evaluate.NAME.version_2 |
null_score_diff_threshold | stages.STAGE.evaluate.NAME.null_score_diff_threshold |
num_beams | stages.STAGE.evaluate.NAME.decoding.beam_size |
source_prefix | tasks.TASK.preprocess.inputs | part of the template
text_column | tasks.TASK.preprocess.fields | or write {field} in the template
summary_column | tasks.TASK.preprocess.fields | or write {field} in the template
source_lang | tasks.TASK.preprocess.languages |
target_lang | tasks.TASK.preprocess.languages |
num_labels | stages.STAGE.objective.num_labels |
problem_type | stages.STAGE.objective.problem_type | by default num_labels decides: 1 is regression
label_column_name | tasks.TASK.preprocess.label |
ignore_mismatched_sizes | stages.STAGE.fresh | heads to start fresh
freeze_encoder | stages.STAGE.trainable | head, gradual, adapters or lora
lora_r | stages.STAGE.trainable.lora_rank |
target_modules | stages.STAGE.trainable.lora_targets | query, value, attention_output, mlp_output, ...
use_rslora | stages.STAGE.trainable.lora_rslora |
max_train_samples | tasks.TASK.limit |
max_eval_samples | stages.STAGE.evaluate.NAME.data.limit |
max_predict_samples | stages.STAGE.evaluate.NAME.data.limit |
preprocessing_num_workers | run.prepare_workers |
overwrite_cache | | prepared data are keyed by their sources and options
streaming | run.prepared_dir | data are prepared first, in a bucket if they are large
adafactor | stages.STAGE.optimizer.kind | adafactor
dtype | run.compute_dtype | parameters are float32
lr | stages.STAGE.optimizer.learning_rate |
""",
    "google-research/bert": """
train_batch_size | stages.STAGE.batch_size | rows over all devices
eval_batch_size | stages.STAGE.evaluate.NAME.batch_size |
predict_batch_size | stages.STAGE.evaluate.NAME.batch_size |
num_train_steps | stages.STAGE.steps |
num_warmup_steps | stages.STAGE.optimizer.warmup_steps |
warmup_proportion | stages.STAGE.optimizer.warmup_ratio |
max_eval_steps | stages.STAGE.evaluate.NAME.batches |
save_checkpoints_steps | run.checkpoint.save_every |
keep_checkpoint_max | run.checkpoint.keep_last |
iterations_per_loop | run.log_every |
init_checkpoint | stages.STAGE.init_from | the run folder that `bertjax import` makes of it
bert_config_file | model.config_from | the folder of the config.json
vocab_file | tokenizer.path |
do_lower_case | tokenizer.lowercase |
input_file | tasks.TASK.source.files | text: no TFRecords are needed
predict_file | stages.STAGE.evaluate.NAME.data.source.files |
max_predictions_per_seq | tasks.TASK.preprocess.max_predictions_per_seq |
masked_lm_prob | tasks.TASK.preprocess.masked_lm_prob |
short_seq_prob | tasks.TASK.preprocess.short_seq_prob |
dupe_factor | tasks.TASK.preprocess.dupe_factor |
do_whole_word_mask | tasks.TASK.preprocess.whole_word_mask |
random_seed | run.seed |
use_tpu | | --device tpu; the fastest device is the default
num_tpu_cores | mesh |
tpu_name | | launch/tpu.py
""",
    "T5X": """
model_dir | run.root, run.name | a run writes to ROOT/NAME; ROOT may be in gs://
mixture_or_task_name | stages.STAGE.data | SeqIO's names: bertjax tasks
mixture_or_task_module | registries | a YAML file with your own tasks and mixtures
task_feature_lengths | task_feature_lengths | of the tasks that are used by name
train_steps | stages.STAGE.steps | here of the stage: without the steps of the checkpoint before it
total_steps | stages.STAGE.steps | here of the stage: without the steps of the checkpoint before it
batch_size | stages.STAGE.batch_size | rows over all devices
num_microbatches | stages.STAGE.grad_accum |
initial_checkpoint_path | stages.STAGE.init_from | the run folder that `bertjax import` makes of it
eval_period | stages.STAGE.evaluate.NAME.every |
evaluator_num_examples | stages.STAGE.evaluate.NAME.data.limit |
period | run.checkpoint.save_every | in MaxText: checkpoint_period
checkpoint_period | run.checkpoint.save_every |
keep | run.checkpoint.keep_last | of levanter: keep_every
num_partitions | mesh.tensor |
model_parallel_submesh | mesh.tensor |
logical_axis_rules | mesh.rules |
dropout_rate | model.dropout_rate | of BERT: hidden_dropout_prob
loss_normalizing_factor | stages.STAGE.objective.loss_normalizing_factor |
label_smoothing | stages.STAGE.objective.label_smoothing |
z_loss | stages.STAGE.objective.z_loss |
base_learning_rate | stages.STAGE.optimizer.learning_rate |
factors | stages.STAGE.optimizer.schedule | constant * rsqrt_decay is inverse_sqrt
decay_rate | stages.STAGE.optimizer.decay_rate |
step_offset | | counts start with the stage
use_hardware_rng | run.dropout_rng |
use_cached_tasks | run.prepared_dir | data are always cached
shuffle_train_examples | | every epoch is shuffled
pack | tasks.TASK.preprocess.pack |
use_custom_packing_ops | tasks.TASK.preprocess.pack |
stats_period | run.log_every |
vocabulary | tokenizer.path |
beam_size | stages.STAGE.evaluate.NAME.decoding.beam_size |
remat_policy | run.remat | none, full or dots
""",
    "MaxText": """
steps | stages.STAGE.steps |
per_device_batch_size | stages.STAGE.batch_size | here rows over all devices: multiply by their number
base_output_directory | run.root | a folder, or gs://bucket/runs
ici_data_parallelism | mesh.data |
ici_fsdp_parallelism | mesh.fsdp |
ici_tensor_parallelism | mesh.tensor |
ici_sequence_parallelism | mesh.rules | sequence: [tensor]
ici_context_parallelism | mesh.rules | sequence: [tensor]
ici_expert_parallelism | | no mixtures of experts
ici_pipeline_parallelism | | no pipeline parallelism: mesh.fsdp and mesh.tensor
dcn_data_parallelism | mesh.dcn | -1: the slices that are there
dcn_fsdp_parallelism | mesh.dcn | slices hold copies: FSDP is inside one
dcn_tensor_parallelism | mesh.dcn | slices hold copies: tensor parallelism is inside one
num_slices | mesh.dcn | -1: the slices that are there
warmup_steps_fraction | stages.STAGE.optimizer.warmup_ratio |
learning_rate_schedule_steps | stages.STAGE.steps | schedules end with the stage
cosine_learning_rate_final_fraction | stages.STAGE.optimizer.min_lr_ratio | with schedule: cosine
opt_type | stages.STAGE.optimizer.kind |
adam_b1 | stages.STAGE.optimizer.b1 |
adam_b2 | stages.STAGE.optimizer.b2 |
adam_eps | stages.STAGE.optimizer.eps |
adam_weight_decay | stages.STAGE.optimizer.weight_decay |
gradient_clipping_threshold | stages.STAGE.optimizer.clip_norm |
scan_layers | run.segments | scan or list
weight_dtype | | parameters are float32
async_checkpointing | | saves are always in the background
enable_checkpointing | run.checkpoint.save_every |
max_num_checkpoints_to_keep | run.checkpoint.keep_last |
load_parameters_path | stages.STAGE.init_from |
load_full_state_path | stages.STAGE.init_from | a run itself resumes by the same command
dataset_type | tasks.TASK.source.kind |
dataset_path | tasks.TASK.source.data_dir | of kind: tfds
hf_path | tasks.TASK.source.name | with source.kind: huggingface
hf_train_files | tasks.TASK.source.files |
grain_train_files | tasks.TASK.source.files |
tokenizer_path | tokenizer.path |
packing | tasks.TASK.preprocess.pack |
enable_dropout | model.dropout_rate | 0 turns it off
base_emb_dim | model.hidden_size | of T5: d_model
base_num_query_heads | model.num_attention_heads | of T5: num_heads
base_mlp_dim | model.intermediate_size | of T5: d_ff
base_num_decoder_layers | model.num_hidden_layers | of T5: num_layers
head_dim | model.d_kv | of T5; BERT's is hidden_size / num_attention_heads
data_shuffle_seed | run.seed | one seed for all
init_weights_seed | run.seed | one seed for all
eval_interval | stages.STAGE.evaluate.NAME.every |
log_period | run.log_every |
profiler | run.profile |
profiler_steps | run.profile.steps |
skip_first_n_steps_for_profiler | run.profile.start_step |
enable_tensorboard | run.tensorboard |
jax_cache_dir | run.compilation_cache_dir |
hardware | | --device cpu, gpu or tpu
compile_topology | | `bertjax plan CONFIG --topology v5e:16x16`
compile_topology_num_slices | | `bertjax plan CONFIG --topology ...`
enable_goodput_recording | | goodput.jsonl is always written
quantization | run.dense_dtype | fp8; int8 is not implemented
""",
    "levanter": """
per_device_parallelism | stages.STAGE.grad_accum | micro-batches per step instead of rows per device
steps_per_eval | stages.STAGE.evaluate.NAME.every |
max_eval_batches | stages.STAGE.evaluate.NAME.batches |
base_path | run.root | checkpoints are in the run folder
save_interval | run.checkpoint.save_minutes | in minutes
mp | run.compute_dtype | p=f32,c=bfloat16 is bfloat16
tracker | run.tensorboard, run.wandb |
wandb | run.wandb |
log_dir | run.root |
load_checkpoint | | run the same command again: it resumes
load_checkpoint_path | stages.STAGE.init_from |
initialize_from | stages.STAGE.init_from |
initialize_from_hf | stages.STAGE.init_from | a Hugging Face folder
tensor_parallel_axes | mesh.rules, mesh.tensor |
axis_resources | mesh.rules |
parameter_axis_resources | mesh.rules |
fsdp_axis | mesh.fsdp |
model_axis_size | mesh.tensor |
replica_dcn_axis_size | mesh.dcn |
warmup | stages.STAGE.optimizer.warmup_ratio | as a number of steps: warmup_steps
decay | stages.STAGE.optimizer.decay_ratio | of wsd; as a number of steps: decay_steps
min_lr_ratio | stages.STAGE.optimizer.min_lr_ratio |
lr_schedule | stages.STAGE.optimizer.schedule | its linear is our polynomial
beta1 | stages.STAGE.optimizer.b1 |
beta2 | stages.STAGE.optimizer.b2 |
epsilon | stages.STAGE.optimizer.eps |
train_urls | tasks.TASK.source.files |
validation_urls | stages.STAGE.evaluate.NAME.data.source.files |
seq_len | tasks.TASK.preprocess.sequence_length |
hidden_dim | model.hidden_size | of T5: d_model
intermediate_dim | model.intermediate_size | of T5: d_ff
hf_save_path | | `bertjax export RUN FOLDER`
hf_save_steps | | `bertjax export RUN FOLDER`
hf_upload | | `bertjax export RUN --push ORG/NAME` after the run
require_accelerator | | --device gpu or tpu
mixture_weights | mixtures.NAME.mixture | with rate: explicit
train_weights | mixtures.NAME.mixture | with rate: explicit
""",
}


@cache
def table() -> dict[str, ForeignName]:
    """{name: its line} of the table."""
    found = {}
    for origin, text in _TABLE.items():
        for row in text.strip().splitlines():
            name, ours, note = (part.strip() for part in row.split("|"))
            options = tuple(option.strip() for option in ours.split(",") if option.strip())
            found[name] = ForeignName(origin, name, options, note)
    return found


def explain(key: str) -> str:
    """Return what another trainer's name is called here, `in bertjax: ...`; "" for an unknown name.

    key: as written, also with dashes or with the sections before it (`trainer.train_batch_size`).
    """
    name = key.rsplit(".", 1)[-1].strip("-").replace("-", "_").lower()
    line = table().get(name)
    if line is None:
        return ""
    ours = " and ".join(line.ours)
    return f"in bertjax: {ours} ({line.note})" if ours and line.note else f"in bertjax: {ours or line.note}"


def render() -> str:
    """The table as Markdown, for docs/migration.md."""
    out = []
    for origin in _TABLE:
        out += [f"\n### {origin}\n", "| name | in bertjax | note |", "|---|---|---|"]
        for line in table().values():
            if line.origin == origin:
                ours = ", ".join(f"`{option}`" for option in line.ours) or "-"
                out.append(f"| `{line.name}` | {ours} | {line.note} |")
    return "\n".join(out).strip() + "\n"


if __name__ == "__main__":
    print(render(), end="")
