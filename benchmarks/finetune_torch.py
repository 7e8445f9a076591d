"""Fine-tune with transformers' torch model on exactly the batches of a bertjax configuration: a yardstick for scores.

    python benchmarks/finetune_torch.py CONFIG run.name=torch-1 key.path=value ...
    bertjax evaluate runs/torch-1

Trains the first stage of CONFIG (objective span_qa or classification, rows that are not packed) as transformers'
run_qa.py and run_glue.py do: AdamW, clipped gradients, dropout, float32 or with --bfloat16 autocast. The initial
weights (heads included), the batches, their order, the learning rate of every step and weight decay are those of
`bertjax train CONFIG`; dropout masks and arithmetic differ. transformers' softmax over the tokens of a window includes
its padding, bertjax's does not: --own-tokens trains with the latter. The result is written as the last checkpoint of a
bertjax run, which `bertjax evaluate` scores. Prints one JSON line. Needs: pip install torch transformers.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import bertjax
from bertjax.interop import hf_folder
from bertjax.training.optimizers import has_weight_decay, schedule, warmup_steps


def torch_inputs(batch, torch):
    """A bertjax batch -> keyword arguments of a transformers model, without the loss."""
    take = lambda name: torch.from_numpy(np.asarray(batch[name]).astype(np.int64))  # noqa: E731
    mask = take("segment_ids")
    if mask.max() > 1:
        raise SystemExit("the rows are packed, which torch's attention does not know: set preprocess.pack=false")
    width = int(mask.sum(1).max())  # as dynamic padding of the Trainer's collator
    return {
        "input_ids": take("input_ids")[:, :width],
        "token_type_ids": take("token_type_ids")[:, :width],
        "attention_mask": mask[:, :width],
    }


def torch_loss(model, batch, torch, own_tokens):
    """transformers' own loss; with `own_tokens` that of spans as in bertjax, whose softmax leaves out padding."""
    inputs = torch_inputs(batch, torch)
    take = lambda name: torch.from_numpy(np.asarray(batch[name]).astype(np.int64))  # noqa: E731
    if "start_positions" in batch and own_tokens:
        found, real = model(**inputs), inputs["attention_mask"] > 0
        ends = ((found.start_logits, "start_positions"), (found.end_logits, "end_positions"))
        losses = [
            torch.nn.functional.cross_entropy(logits.float().masked_fill(~real, -1e30), take(name)[:, 0])
            for logits, name in ends
        ]
        return sum(losses) / 2
    if "start_positions" in batch:
        return model(
            **inputs, start_positions=take("start_positions")[:, 0], end_positions=take("end_positions")[:, 0]
        ).loss
    return model(**inputs, labels=take("labels")[:, 0]).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--bfloat16", action="store_true", help="torch.autocast to bfloat16")
    parser.add_argument("--own-tokens", action="store_true", help="leave padding out of the softmax over a window")
    asked = parser.parse_args()
    import torch
    import transformers

    program = bertjax.build_program(asked.config, None, *asked.overrides)
    stage = program.config.stages[0]
    state = program.init_state()
    model_config, tx = program.config.model, stage.optimizer
    params = {path: np.asarray(x) for path, x in {**state.params, **state.frozen}.items()}
    heads = program.program.heads
    auto = {"qa": "AutoModelForQuestionAnswering", "classifier": "AutoModelForSequenceClassification"}[heads[0]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "start"
        tokenizer = program._ctx.tokenizer
        hf_folder.save_folder(folder, params, model_config, heads, tokenizer=tokenizer)
        model = getattr(transformers, auto).from_pretrained(folder)
    torch.manual_seed(program.config.run.seed)
    model.train()
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        plain = name.replace("LayerNorm", "norm").replace(".", "/").replace("bias", "bias")
        (decayed if has_weight_decay(plain) else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": tx.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=tx.learning_rate, betas=(tx.b1, tx.b2), eps=tx.eps)
    rate = schedule(tx, program.steps)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(program.steps)))
    times, losses = [], []
    for step, batch in enumerate(program.batches()):
        batch = jax.device_get(batch)
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        with torch.autocast("cpu", torch.bfloat16, enabled=asked.bfloat16):
            loss = torch_loss(model, batch, torch, asked.own_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), tx.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
        losses.append(loss.item())
        if step % 50 == 0:
            print(
                f"step {step}/{program.steps} loss {np.mean(losses[-50:]):.4f} {np.mean(times[-50:]):.2f} s", flush=True
            )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "end"
        model.save_pretrained(folder)
        trained = hf_folder.load_params(folder, model_config)
    put = lambda path, x: jax.device_put(trained.get(path, x), x.sharding)  # noqa: E731
    state = replace(
        state, step=jnp.int32(program.steps), params={path: put(path, x) for path, x in state.params.items()}
    )
    saved = program.save(state)
    about = {"steps": program.steps, "warmup": warmup_steps(tx, program.steps), "torch": torch.__version__}
    print(
        json.dumps(about | {"seconds": sum(times), "step_ms": 1e3 * float(np.median(times)), "checkpoint": str(saved)})
    )


if __name__ == "__main__":
    main()
