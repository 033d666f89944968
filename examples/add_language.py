"""Teaches a trained model a further language with a LoRA adapter; measures what it learns and forgets.

    python examples/add_language.py --model runs/tiny/models/interleave-ft --output-dir runs/german

The bilingual miniature (English, French) hears stories whose sentences are drawn to be English or German
(`--languages en,fr,de`: or French). They are told and spoken as the miniature's own were, and encoded with
the model's own audio tokenizer and merges, which were never fitted on German: the vocabulary stays as it is.
Then topic-cloze on held-out stories, in every direction, with the adapter and without it.

With `--rows FOLDER` the stories are recordings, encoded with the model's audio tokenizer by

    hf-clsi encode recordings/ --output-dir FOLDER --languages en,de --split train --audio-tokenizer MODEL

Every tenth row is held out, and in place of cloze items the loss per token on those is measured.

DIR/adapter holds the adapter, DIR/merged an ordinary checkpoint with the adapter merged into it, and
DIR/results.json every number. docs/third_language.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments, set_seed

from hf_clsi import InterleavingCallback, InterleavingDataCollator, score_items
from hf_clsi.experiment.data import Reader, SpokenText, Told
from hf_clsi.experiment.presets import preset
from hf_clsi.rows.shards import read_rows
from hf_clsi.scores.cloze import accuracy_outcomes
from hf_clsi.scores.statistics import cluster_bootstrap_interval, wilson_interval
from hf_clsi.text.cloze import directions, draw_items
from hf_clsi.text.stories import Holdout, draw_stories
from hf_clsi.units.merges import UnitMerges


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    times = [time.monotonic()]
    set_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    # The byte-pair merges lie beside the weights.
    folder = Path(args.model) if Path(args.model).is_dir() else Path(snapshot_download(args.model))
    merges = UnitMerges.load(folder)
    if args.rows is None:
        known = [code for code in model.config.languages or [] if code != args.languages[-1]]
        rows, held_out = tell_stories(args, [*known, args.languages[-1]], processor, merges, seed_of(folder))
    else:
        rows, held_out = read_recordings(args)
    times.append(time.monotonic())

    model = get_peft_model(model, lora_config(args, model))
    collator = InterleavingDataCollator(
        languages=args.languages,
        merges=merges,
        weights=[*[1 / (len(args.languages) - 1)] * (len(args.languages) - 1), 1],  # half of it is new
        max_length=256,
        seed=args.seed,
        separator=model.config.separator,
        pad_to_max_length=False,
    )
    results = {"settings": {name: str(value) for name, value in vars(args).items()}}
    results["training"] = train(model, rows, collator, args)
    times.append(time.monotonic())

    measure = cloze_accuracy if args.rows is None else loss_per_token
    with_adapter = measure(model, held_out, merges, args)
    with model.disable_adapter():
        without = measure(model, held_out, merges, args)
    results["rows"] = [
        {"what": what, "n": n, "without": {"value": a, "ci95": a95}, "with": {"value": b, "ci95": b95}}
        for (what, n, a, a95), (_, _, b, b95) in zip(without, with_adapter, strict=True)
    ]
    print_table(results["rows"], "topic-cloze" if args.rows is None else "nats/token")
    model.save_pretrained(args.output_dir / "adapter")
    results["logits"] = reload_and_merge(model, processor, collator(rows[:2]), args)
    times.append(time.monotonic())
    results["seconds"] = dict(
        zip(("data", "training", "scores"), np.diff(times).round(1).tolist(), strict=True)
    )
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"largest difference of logits: {results['logits']}\nseconds: {results['seconds']}")
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="checkpoint with its processor: a folder or a Hub id")
    add("--output-dir", type=Path, required=True)
    add("--languages", default="en,de", help="of the training, the new one last (%(default)s)")
    add("--rows", type=Path, help="dataset with units_<L> for each of them, in place of stories")
    add("--rows-split", default="train", help="(%(default)s)")
    add("--train-embeddings", action="store_true", help="train and save the embeddings, too")
    add("--rank", type=int, default=64, help="of the adapter (%(default)s)")
    add("--learning-rate", type=float, default=4e-3, help="peak (%(default)s)")
    add("--epochs", type=float, default=6, help="(%(default)s)")
    add("--batch-size", type=int, default=12, help="stories a step (%(default)s)")
    add("--stories", type=int, default=5000, help="to train on (%(default)s)")
    add("--items", type=int, default=864, help="cloze items a direction (%(default)s)")
    add("--split", choices=("dev", "test"), default="test", help="of the items (%(default)s)")
    add("--num-processes", type=int, default=2, help="that speak (%(default)s)")
    add("--seed", type=int, default=0, help="of stories, adapter and order (%(default)s)")
    args = parser.parse_args(argv)
    args.languages = args.languages.split(",")
    if len(args.languages) < 2:
        parser.error("--languages needs a known language and the new one, such as en,de")
    return args


# -- data ----------------------------------------------------------------------------------------------------


def seed_of(folder: Path) -> int:
    """The seed that decided what was held out when the miniature was trained; its recipe.json has it."""
    recipe = folder / "recipe.json"
    return json.loads(recipe.read_text())["seed"] if recipe.is_file() else 0


def tell_stories(
    args, languages: list[str], processor, merges: UnitMerges, model_seed: int
) -> tuple[list[dict], dict]:
    """Story rows to train on, and cloze items: {(prompt language, ending language): items with tokens}.

    The items are those that the miniature itself is scored on. Their (character, object) pairs are heard
    neither in its training nor here, in any language: both draw training stories under the same `Holdout`.
    """
    settings, holdout = preset("tiny"), Holdout(model_seed)
    voice, config = settings.speech.speakers[0], processor.audio_tokenizer.config
    reader = Reader(settings, model_seed, config.sampling_rate, config.hop_length, args.num_processes)
    spoken = SpokenText(reader, processor.audio_tokenizer)
    stories = [Told(voice, plan) for plan in draw_stories(args.stories, "train", holdout, args.seed)]
    items = draw_items("topiccloze", args.items, args.split, "strict", holdout, model_seed)
    told = {Told(voice, plan) for item in items for plan in (item.prompt, item.negative)}
    wanted = [(code, story) for story in stories for code in args.languages]
    wanted += [(code, story) for story in told for code in languages]
    sentences = {sentence for code, story in wanted for sentence in reader.sentences(code, story)}
    spoken.encode(sorted(sentences), args.num_processes, progress=True)

    rows = [
        {"story_id": str(number)} | {f"units_{code}": spoken.story(code, story) for code in args.languages}
        for number, story in enumerate(stories)
    ]
    tokens = {
        (code, each.plan): merges.encode(spoken.story(code, each)) for each in told for code in languages
    }
    cloze = {
        (first, second): [
            {
                "id": item.id,
                "prompt": tokens[first, item.prompt][:-1],
                "correct": tokens[second, item.prompt][-1],
                "negative": tokens[second, item.negative][-1],
            }
            for item in items
        ]
        for first, second in directions(languages)
    }
    return rows, cloze


def read_recordings(args) -> tuple[list[dict], list[dict]]:
    """Rows as `hf-clsi encode` writes them: every tenth is held out."""
    columns = ["story_id", *(f"units_{code}" for code in args.languages)]
    rows = list(read_rows(args.rows, args.rows_split, columns=columns))
    if len(rows) < 20:
        raise ValueError(
            f"{args.rows}, split '{args.rows_split}': {len(rows)} rows are too few; have 20 or more."
        )
    return [row for number, row in enumerate(rows) if number % 10], rows[::10]


# -- training ------------------------------------------------------------------------------------------------


def lora_config(args, model) -> LoraConfig:
    """LoRA on attention and MLP; with --train-embeddings, the embeddings are trained and saved whole.

    Where input and output embeddings are one matrix, `ensure_weight_tying` keeps it one. Without it, peft
    trains two copies that drift apart, and merging gives a model with untied embeddings.
    """
    return LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",  # the seven projections of every layer, without lm_head
        modules_to_save=["embed_tokens", "lm_head"] if args.train_embeddings else None,
        ensure_weight_tying=args.train_embeddings and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )


def train(model: PeftModel, rows: list[dict], collator: InterleavingDataCollator, args) -> dict[str, Any]:
    """Train the adapter with the plain Trainer; what was trained on, and the losses."""
    arguments = TrainingArguments(
        output_dir=str(args.output_dir / "work"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=0.05,  # a share of all; then linear decay
        adam_beta2=0.98,
        remove_unused_columns=False,  # the collator reads story_id and units_<L>
        label_names=["labels"],  # which the Trainer cannot find out behind an adapter
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )
    epochs = InterleavingCallback(collator)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[epochs])
    trainer.train()
    model.cpu().eval()
    return {
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "tokens_per_epoch": int((collator(rows)["labels"] != -100).sum()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


# -- scores: (what, n, value, 95% interval) ------------------------------------------------------------------


def cloze_accuracy(model: PeftModel, cloze: dict, merges: UnitMerges, args) -> list[tuple]:
    """Accuracy of every direction, with Wilson's interval."""
    found = []
    for (prompt, ending), items in cloze.items():
        scores = score_items(
            model.get_base_model(),  # the adapter's layers are inside, unless they are disabled
            items,
            bos_token_id=model.config.bos_token_id,
            separator_token_id=model.config.separator_token_id,
            gain=False,
            progress=False,
        )
        correct, n = float(accuracy_outcomes(scores, "whole", "sum").sum()), len(items)
        found.append((f"{prompt} -> {ending}", n, correct / n, wilson_interval(correct, n)))
    return found


@torch.no_grad()
def loss_per_token(model: PeftModel, rows: list[dict], merges: UnitMerges, args) -> list[tuple]:
    """Loss per token of held-out rows in each language: the mean over rows, with a bootstrap interval."""
    found = []
    for code in args.languages:
        longest, separator = model.config.text_config.max_position_embeddings, model.config.separator
        collator = InterleavingDataCollator(
            [code], merges=merges, max_length=longest, separator=separator, pad_to_max_length=False
        )
        losses = np.array([model(**collator([row])).loss.item() for row in rows])
        interval = cluster_bootstrap_interval(losses, np.arange(len(rows)))  # every row its own cluster
        found.append((code, len(rows), float(losses.mean()), interval))
    return found


def print_table(rows: list[dict], title: str) -> None:
    print(f"\n{title:12} {'n':>5}  {'without the adapter':24} with it")
    for row in rows:
        cells = [
            f"{row[name]['value']:.3f} [{row[name]['ci95'][0]:.3f}, {row[name]['ci95'][1]:.3f}]"
            for name in ("without", "with")
        ]
        print(f"{row['what']:12} {row['n']:5}  {cells[0]:24} {cells[1]}")


# -- save, reload, merge -------------------------------------------------------------------------------------


@torch.no_grad()
def reload_and_merge(model: PeftModel, processor, batch: dict, args) -> dict[str, float]:
    """Reload the adapter, merge it, save the merged model; largest differences of logits on the way.

    Raises:
        RuntimeError: one of them is more than rounding.
    """
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    logits = model(**inputs).logits
    reloaded = AutoPeftModelForCausalLM.from_pretrained(args.output_dir / "adapter").eval()
    found = {"reloaded": (reloaded(**inputs).logits - logits).abs().max().item()}
    merged = reloaded.merge_and_unload()
    found["merged"] = (merged(**inputs).logits - logits).abs().max().item()
    if max(found.values()) > 1e-3:
        raise RuntimeError(f"the saved adapter does not give the trained model's logits: {found}")
    merged.config.languages = list(dict.fromkeys([*(merged.config.languages or []), *args.languages]))
    merged.save_pretrained(args.output_dir / "merged")
    processor.save_pretrained(args.output_dir / "merged")
    return found


if __name__ == "__main__":
    main()
