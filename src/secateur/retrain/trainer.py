"""Train a model, dense or masked, with Hugging Face's trainer; stopping and resuming changes no bit of the result."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.trainer_callback import ExportableState

from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.files import read_json, sha256_file, sync_folder, write_json
from secateur.masks.mask import MaskSet
from secateur.processes import Processes, is_lost_process
from secateur.quiet import quiet_transformers
from secateur.registry import choose
from secateur.retrain.attention import attention_of
from secateur.retrain.distil import Distiller
from secateur.retrain.dropout import dropout_rate
from secateur.retrain.keeper import MaskCallback
from secateur.retrain.memory import MemoryCallback
from secateur.retrain.optimizers import OPTIMIZERS, parameter_groups
from secateur.retrain.schedule import GradualCallback
from secateur.tasks.precision import PRECISIONS, resolve_precision
from secateur.tasks.reading import cross_entropy, is_classifier, model_inputs
from secateur.tasks.sampler import LengthSampler, OwnBatches, OwnRows

COMPLETE = "COMPLETE"  # stands in a checkpoint when the trainer has written all of it
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Progress:
    """Where a training stands: step of num_steps, loss of the last steps (nats per target), seconds so far."""

    step: int
    num_steps: int
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What a training did; losses in nats per target (token, or row), the first and the last that were logged.

    `precision` is what it computed in, bf16 or fp32, or both where it went on on another kind of machine;
    `earlier_seconds` were spent before the checkpoint that this
    training went on from.
    """

    steps: int
    epochs: float
    first_loss: float | None
    last_loss: float | None
    losses: tuple[tuple[int, float], ...]
    precision: str
    earlier_seconds: float = 0.0


def newest_checkpoint(work: Path) -> Path | None:
    """Find the checkpoint to go on from, and remove what a kill left unfinished.

    Args:
        work: the trainer's folder; it may be missing.

    Returns:
        The newest checkpoint that is marked complete, or none.
    """
    found = sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]), reverse=True)
    complete = [folder for folder in found if _is_complete(folder)]
    for folder in found:
        if not complete or folder != complete[0]:
            shutil.rmtree(folder, ignore_errors=True)
    return complete[0] if complete else None


def _files(checkpoint: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(checkpoint.iterdir()) if file.name != COMPLETE}


def _mark_complete(checkpoint: Path) -> None:
    """Hash what is there. The trainer would pass over a missing optimizer or random state without a word."""
    sync_folder(checkpoint)
    write_json(checkpoint / COMPLETE, _files(checkpoint))


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).is_file() and read_json(checkpoint / COMPLETE) == _files(checkpoint)


class _Watch(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers' classes are untyped
    """Marks checkpoints, follows the loss and the time, reports progress, and stops the training when asked to."""

    def __init__(
        self,
        sampler: LengthSampler,
        dataset: Any,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
        processes: Processes,
        precision: str,
    ) -> None:
        self.precision = precision
        self.in_order = [item for item in (sampler, dataset) if hasattr(item, "set_epoch")]
        self.processes = processes
        self.on_progress = on_progress
        self.should_stop = should_stop
        self.loss: float | None = None
        self.started = time.monotonic()
        self.earlier_seconds = 0.0
        self.stopped = False

    def state(self) -> dict[str, Any]:
        """Tell the trainer what to write into a checkpoint."""
        seconds = self.earlier_seconds + time.monotonic() - self.started
        return {"attributes": {"seconds": seconds, "precision": self.precision}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:  # a fresh trainer's state holds this object's own
            # A checkpoint of an earlier version has no entry, and the trainer's next save would stumble over that.
            saved = state.stateful_callbacks.setdefault(type(self).__name__, {"attributes": {"seconds": 0.0}})
            self.earlier_seconds = float(saved["attributes"]["seconds"])
            earlier = str(saved["attributes"].get("precision") or self.precision)
            if self.precision not in earlier.split(", "):  # begun on another kind of machine
                earlier += f", {self.precision}"
            self.precision = earlier

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for item in self.in_order:
            item.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_progress:
            self.on_progress(Progress(state.global_step, state.max_steps, self.loss, time.monotonic() - self.started))
        if self.processes.any(bool(self.should_stop and self.should_stop())) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise SecateurError(
                f"The training loss became {loss} near step {state.global_step}. The last saved step is kept: lower "
                "the learning rate, use precision fp32, or lengthen warmup_steps, and start the run anew."
            )
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _check_finite(kwargs["model"], step=state.global_step)  # unmarked, a ruined one replaces no good one
        self.processes.wait()  # for the random state of each
        self.processes.first(lambda: _mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}"))


class _Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with our order, our optimizer, and a loss that is a mean over the targets of a whole step.

    Targets are the tokens to write, or in classification the rows.

    The mean is taken over all micro-batches of one optimizer step together, so accumulation changes memory and
    nothing else. (T5's own loss ignores the token count that the trainer hands over; with the stock trainer two
    accumulated micro-batches therefore give twice the gradient.)
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        batches: OwnBatches,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        autocast_dtype: torch.dtype | None,
        label_smoothing: float,
        distiller: Distiller | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.distiller = distiller
        self.batches = batches
        self.make_optimizer = make_optimizer
        self.autocast_dtype = autocast_dtype
        self.label_smoothing = label_smoothing
        self.model_accepts_loss_kwargs = True  # asks the trainer for the step's number of targets

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not shared out by accelerate: it would repeat rows where a batch cannot be divided.
        return DataLoader(
            OwnRows(self.train_dataset),
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            self.optimizer = self.make_optimizer(target)
        return self.optimizer

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        # Autocast here and not by accelerate, which would wrap model.forward and leave it wrapped for evaluation.
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=self.autocast_dtype)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # a part of an epoch was the last, and a kill came after it
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save calls a full disk a RuntimeError
            if is_lost_process(error):
                raise
            raise CheckpointError(
                f"{self.args.output_dir}: the training cannot be saved: {str(error).splitlines()[0]}. "
                "Free space and resume."
            ) from error

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        unwrapped = self.accelerator.unwrap_model(model)
        read = model_inputs(unwrapped, inputs)
        if self.distiller is None:
            outputs = model(**read, use_cache=False)
            total = cross_entropy(outputs.logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        else:
            outputs = model(**read, use_cache=False, output_hidden_states=self.distiller.needs_hidden)
            # BERT reads which of two texts a token is of, and a DistilBERT that learns from it does not.
            taught = model_inputs(self.distiller.teacher, inputs) if is_classifier(unwrapped) else read
            total = self.distiller.loss(unwrapped, outputs, taught, labels, self.label_smoothing)
        loss = total / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())
        if self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over the processes afterwards
        return (loss, outputs) if return_outputs else loss


def _arguments(work: Path, **settings: Any) -> Seq2SeqTrainingArguments:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work),
        save_strategy="steps",
        save_total_limit=2,  # the one being written and a whole one
        logging_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        log_level="error",
        log_level_replica="error",
        ddp_find_unused_parameters=False,
        **settings,
    )
    arguments.mixed_precision = "no"  # the recipe decides, not what `accelerate config` or a launcher left behind
    # One process trains on one device: of several the trainer would make torch's DataParallel, whose threads know
    # neither autocast's precision nor where scores are. Several devices take several processes.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    sampler: LengthSampler,
    masks: MaskSet,
    work: Path,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    precision: str,
    optimizer: str,
    momentum: float | None,
    weight_decay: float,
    schedule: str,
    warmup_steps: int,
    accumulation: int,
    max_grad_norm: float,
    label_smoothing: float,
    dropout: float | None,
    attention: str,
    save_every: int,
    seed: int,
    device: str = "cpu",
    callbacks: Iterable[TrainerCallback] = (),
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    distiller: Distiller | None = None,
    gradual: GradualCallback | None = None,
) -> TrainResult:
    """Train a model in place; masked weights stay exactly 0.

    A call that finds complete checkpoints in `work` goes on from the newest and ends with the weights of a call that
    was never broken (bit for bit on the same kind of CPU at the same number of threads).

    Args:
        model: fp32 weights, with its masks attached.
        dataset: items for `collate`.
        collate: items -> input_ids, attention_mask (batch, source tokens), labels (batch, target
            tokens, or 1 for a class; -100 = none); of two texts a row token_type_ids too.
        sampler: the order; it must follow from its seed and `set_epoch` alone.
        masks: what is kept at 0; may be empty.
        work: folder for the trainer's checkpoints.
        epochs: passes over the data, above 0; parts are allowed.
        learning_rate: the peak; relative to each tensor's scale for adafactor.
        batch_size: rows of one micro-batch, over all processes together.
        precision: bf16 (autocast over fp32 weights), fp32, or auto: bf16 where the device is fast at it.
        optimizer: adamw, adafactor or sgd.
        momentum: sgd's momentum, or none.
        weight_decay: on matrices only.
        schedule: linear or cosine (both to 0), or constant.
        warmup_steps: steps from 0 to the peak.
        accumulation: micro-batches per step.
        max_grad_norm: clip the norm of the live gradients.
        label_smoothing: share of the target's probability spread over the vocabulary.
        dropout: rate for this training, or none for the model's own.
        attention: eager or sdpa.
        save_every: steps between two checkpoints.
        seed: of dropout.
        device: cpu, cuda or mps.
        callbacks: the user's own.
        on_progress: called after every step.
        should_stop: asked after every step; when it says yes, a checkpoint is written and RunInterrupted raised.
        processes: which process this is of those that train together; each holds the same model and data.
        distiller: a teacher and how much it counts; none: the data's targets alone.
        gradual: prunes ever further while the model is trained; `masks` are then those it begins with.

    Returns:
        Steps, epochs and losses.

    Raises:
        RunInterrupted: stopped on request.
        SecateurError: the loss is not finite, a removed weight came back to life, a batch does not fit into the
            memory, or a callback ended the training before a gradual pruning was over.
        CheckpointError: a checkpoint cannot be read.
    """
    hub_model: Any = model
    # Of several machines all compute in what the least of them is fast at.
    computing = "fp32" if processes.any(resolve_precision(precision, device) == "fp32") else "bf16"
    watch = _Watch(sampler, dataset, on_progress, should_stop, processes, computing)

    def make_optimizer(target: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(target.named_parameters(), weight_decay=weight_decay)
        make = choose(OPTIMIZERS, optimizer, "optimizer")
        return make(groups, learning_rate=learning_rate, momentum=momentum)

    teaching = distiller.teaching(model, device=device, seed=seed) if distiller else contextlib.nullcontext()
    with teaching:  # before the optimizer is made: what the student is given to learn with is trained too
        trainer = _Trainer(
            model=hub_model,
            args=_arguments(
                work,
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=-(-batch_size // processes.size),
                gradient_accumulation_steps=accumulation,
                max_grad_norm=max_grad_norm,
                lr_scheduler_type=choose(SCHEDULES, schedule, "schedule"),
                warmup_steps=warmup_steps,
                save_steps=save_every,
                logging_steps=10,
                seed=seed + processes.rank,  # every process drops other elements
                use_cpu=device == "cpu",
                use_cache=bool(getattr(hub_model.config, "use_cache", True)),  # else it would be saved as false
            ),
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[gradual or MaskCallback(masks), *callbacks, watch],
            batches=OwnBatches(sampler, batch_size, processes),
            make_optimizer=make_optimizer,
            autocast_dtype=PRECISIONS[computing],
            label_smoothing=label_smoothing,
            distiller=distiller,
        )
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        if device == "cpu":
            trainer.add_callback(MemoryCallback)
        resume = processes.first(lambda: newest_checkpoint(work))
        if resume and gradual:
            gradual.resume(resume)
        try:
            with (
                quiet_transformers(),
                dropout_rate(model, dropout, device=device),
                attention_of(hub_model, attention, device=device),
            ):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except torch.OutOfMemoryError as error:
            raise SecateurError(
                f"a micro-batch of {batch_size} rows does not fit into the memory of {device} in training. Lower "
                "train.batch_size and raise accumulation as much: the steps stay what they are."
            ) from error
        finally:
            hub_model.zero_grad(set_to_none=True)
            trainer.model_wrapped = trainer.model  # its wrapper holds the connections to other processes
            trainer.accelerator.free_memory()
        if watch.stopped:
            raise RunInterrupted(f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}.")
        if gradual:
            gradual.check_over(trainer.state.global_step)
        _check_finite(model, step=trainer.state.global_step)
        return _result(trainer, watch)


def _check_finite(model: nn.Module, *, step: int) -> None:
    """Refuse weights that the last steps ruined: their losses may not have been logged."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            raise SecateurError(
                f"{name}: holds NaN or infinity at step {step}. The last good save is kept: lower the learning rate, "
                "use precision fp32, or lengthen warmup_steps, and start the run anew."
            )


def _result(trainer: Seq2SeqTrainer, watch: _Watch) -> TrainResult:
    history: Sequence[dict[str, Any]] = trainer.state.log_history
    losses = tuple((int(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry)
    return TrainResult(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        first_loss=losses[0][1] if losses else None,
        last_loss=losses[-1][1] if losses else None,
        losses=losses,
        precision=watch.precision,
        earlier_seconds=watch.earlier_seconds,
    )
