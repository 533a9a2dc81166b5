"""Learning by gradients: the training step of one rank, for `hvdlm train` and for every measurement of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hvdlm import checkpoint
from hvdlm.checkpoint import ENGINE, Checkpoint, Cut, Piece, Shares
from hvdlm.compute.device import autocast, prepare_device
from hvdlm.compute.trace import Timed, Trace
from hvdlm.data.manifest import Manifest
from hvdlm.data.orders import ContiguousBatches
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, Part
from hvdlm.models.unmade import Unmade
from hvdlm.optim import build_optimizer, lr_at, set_lr
from hvdlm.optim.ema import Ema
from hvdlm.optim.norm import norm_of
from hvdlm.parallel.axes import Axes
from hvdlm.parallel.deferred import defer
from hvdlm.parallel.exchange import added, places, summed
from hvdlm.parallel.pipeline import Chunk, Pipeline, Tied, in_chunks, stage_of
from hvdlm.parallel.schedule import SCHEDULES
from hvdlm.parallel.sharing import Whole, share
from hvdlm.sync import build_sync
from hvdlm.tasks import Batch, Sums
from hvdlm.tasks.readers import Readers
from hvdlm.train.config import RunConfig, check_batch, total_steps
from hvdlm.train.examples import Examples, Share
from hvdlm.train.guard import Guard, Verdict
from hvdlm.train.learner import Learner, Source, StepResult
from hvdlm.train.loss_scale import LossScaler
from hvdlm.train.micro_batches import MicroBatch, StepWork
from hvdlm.train.noise_scale import NoiseScale
from hvdlm.train.parts import build_task, vocabulary_of
from hvdlm.train.prefetch import Prefetch
from hvdlm.train.recurrent_state import RecurrentState
from hvdlm.train.trained import model_of
from hvdlm.world.place import Place


class GradientLearner(Learner):
    """Model, optimizer, sync and data order of one rank, ready to run any step."""

    has_values = True  # else its tensors have shapes alone

    def __init__(self, config: RunConfig, source: Source, manifest: Manifest, axes: Axes, place: Place) -> None:
        train = config.train
        self.config, self.axes, self.world = config, axes, axes.world
        check_batch(train, axes.mesh)
        self.device = prepare_device(train.device, place, threads=train.threads, deterministic=train.deterministic)
        lacking = config.model.without_cpu_fp16
        if lacking and train.precision == "fp16" and self.device.type == "cpu":
            raise UserError(f"train.precision: fp16 is not there for {lacking} on CPUs; use bf16 or fp32")
        vocabulary = vocabulary_of(manifest)
        self.task = build_task(config, vocabulary, manifest.fields)
        unmade = Unmade() if axes.mesh.cuts_model and self.has_values else None
        with unmade or nullcontext():
            self.model = model_of(config, vocabulary, self.task)
        self.whole = Whole.of(self.model)
        self.flops_per_token = self.task.flops_per_token(self.model, config.data.seq_len)
        self.shared = share(self.model, axes, config.parallel, self.model.layer_costs(config.data.seq_len), unmade)
        if self.device.type != "cpu":  # where it was built
            self.model.to(self.device)
        self.examples = Examples(config, source, self.task, manifest, axes.data.size, self.device)
        self.plan, self.epoch_samples = self.examples.plan, self.examples.batches.epoch_samples
        per_sample = self.examples.batches.tokens_per_sample
        self.total_steps = total_steps(train, self.plan, self.epoch_samples, per_sample)
        # With the loss in the same graph its float32 logits, the largest tensor of all, are never written.
        self._loss = torch.compile(self.task.loss) if train.compile else self.task.loss
        self.noise_scale = NoiseScale(self._counted())  # its hooks must run before those of the sync
        optimizer = build_optimizer(self.model, config.optim, self.whole.roles, self.whole.trained)
        self.sync = build_sync(config.sync, self.model, optimizer, axes.data, shares=config.parallel.zero == 1)
        self.pipeline = self._build_pipeline()
        self.ema = Ema(self.model, config.ema) if config.ema.decay else None
        self.guard = Guard(config.guard)
        self.scaler = LossScaler() if train.precision == "fp16" else None
        self.recurrent_state: RecurrentState | None = None
        if isinstance(self.examples.batches, ContiguousBatches):
            self.recurrent_state = RecurrentState(self.model, train.global_batch, axes.data)
        self.left_out = 0  # samples that a rewind has passed over
        self._bytes_inside = 0  # sent to other stages and tensor ranks, in steps
        self.val_losses: list[float] = []
        # On a GPU the norm is looked at only where somebody must know it: that waits for all that was started.
        looks = self.guard.is_needed or self.scaler is not None or self.device.type == "cpu"
        self.is_timed = False  # on a GPU: wait at the end of each step, so that `step_s` is the whole of it
        # What this rank computed last is over before it waits for others, so that `comm_s` is that wait alone.
        self._computes_first = self.device.type == "cuda" and self.world.size > 1 and config.sync.keeps_replicas_equal
        self._judges = looks and (config.sync.reduces_to_mean or not config.sync.keeps_replicas_equal)
        self._takes_draws = self.model.takes_draws or self.task.takes_draws
        self._reader = Prefetch(self.examples.read)
        self._trace = Trace(config.log.trace, config.run_dir / "trace" / f"rank{self.world.rank}.json")

    def _counted(self) -> list[nn.Parameter]:
        """Those parameters whose gradients are of this rank alone among the ranks that hold a replica together."""
        cuts, is_first = self.shared.cuts, self.axes.place.tensor == 0
        return [p for name, p in self.model.named_parameters() if is_first or not cuts[name].is_whole]

    def _build_pipeline(self) -> Pipeline:
        named, layout, tied = dict(self.model.named_parameters()), self.shared.layout, self.model.tied_weight
        parts = layout.of_rank(self.axes.place.pipeline)
        orders, parallel = self.sync.orders_micro_batches, self.config.parallel
        splits = SCHEDULES[parallel.schedule].splits_backward and layout.num_stages > 1
        return Pipeline(
            self.axes.pipeline,
            layout,
            parallel.schedule,
            parameters=in_chunks(named, parts),
            lowest=min((stage_of(name, layout.layers) for name in self.whole.trained), default=0),
            holds=orders and (len(parts) > 1 or splits),
            tied=None if tied is None else Tied(tied, each=orders),
            deferred=defer(self.model.layers_to_cut) if splits else None,
        )

    @property
    def cuts(self) -> Mapping[str, Cut]:
        return self.shared.cuts

    @property
    def readers(self) -> Readers:
        axes = self.axes
        if not axes.mesh.cuts_model:
            return super().readers
        return Readers(axes.world, axes.data.rank, axes.data.size, axes.speaks, self._ask)

    def _ask(self, model: LanguageModel, batch: Batch, question: Callable[[LanguageModel], Any]) -> Any:
        """Of the stages, one after the other."""

        def asked(part: Part | None) -> Any:
            return question(model if part is None else cast(LanguageModel, Chunk(model, part)))

        return self.pipeline.look(asked, lambda: self._room(batch))

    @property
    def num_parameters(self) -> int:
        return self.whole.num_parameters

    def run(self, first: int, end: int) -> list[StepResult]:
        """Train on the global batches of steps [first, end), this rank's share of them."""
        results = []
        for step, part in self.sync.work(first, end):
            self._trace.before(step)
            results.append(self._step(step, part, end))
            self.world.beats += 1
        return results

    def lr_of(self, step: int) -> float:
        total, optim = self.total_steps, self.config.optim
        batch = self.config.train.global_batch if self.config.train.batch_tokens else self.plan.batch_at(step)
        return lr_at(step, total, optim, global_batch=batch, val_losses=self.val_losses)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.sync.optimizer

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.sync.groups

    @property
    def sync_kind(self) -> str:
        return self.sync.kind

    @property
    def bytes_sent(self) -> int:
        return self.sync.bytes_sent + self._bytes_inside

    def take_reason(self) -> str:
        reason, self.guard.reason = self.guard.reason, ""
        return reason

    @property
    def num_cut(self) -> int:
        return self.examples.num_cut

    @property
    def data_remark(self) -> str:
        return self.examples.remark

    def tokens_before(self, step: int) -> int:
        return self.examples.tokens_before(step)

    def facts(self) -> dict[str, float]:
        facts = {name: value for name, value in self.sync.facts().items() if isinstance(value, int | float)}
        return facts | self.examples.padding()

    def _exchanged(self) -> int:
        return self.axes.tensor.exchanged_bytes + self.axes.pipeline.exchanged_bytes

    def _step(self, step: int, part: int, end: int) -> StepResult:
        start, bytes_before = time.perf_counter(), self._exchanged()
        with Timed("wait for data") as wait:
            share = self._reader.get(step, part, self.left_out)
        if step + 1 < self.total_steps:
            self._reader.expect(step + 1, part, self.left_out)
        passes = len(share.slices)
        set_lr(self.sync.optimizer, self.lr_of(step))
        with Timed("sync.begin") as begin:
            self.sync.begin(step, passes)
        facts = self.config.sync
        is_even = not self.config.train.batch_tokens  # of which one micro-batch is like another
        # Whether this rank has the whole gradient of a micro-batch, of what it holds.
        is_told = (self.pipeline.tied is None or self.pipeline.tied.each) and not self.shared.partial
        if step == end - 1 and facts.keeps_replicas_equal and facts.reduces_to_mean and is_even and is_told:
            self.noise_scale.arm()
        self.task.begin(step)
        survey_s = self._survey(step, share) if self.config.task.meets_before_backward else 0.0
        with Timed("forward and backward"):
            before_s = self.axes.tensor.exchange_s
            sums = self._accumulate(step, share)
            inside_s = self.axes.tensor.exchange_s - before_s + self.pipeline.wait_s
            if self.pipeline.is_last:
                self.examples.prove(share, sums)
            if self._computes_first:
                torch.cuda.current_stream().synchronize()
        with Timed("sync.reduce") as reduce:
            self.sync.reduce()
            self._complete()
        with Timed("clip and update"):
            norm, verdict = self._apply(step)
            if self.is_timed and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        with Timed("sync.zero_grad") as zero_grad:  # where local SGD averages
            self.sync.zero_grad()
        comm_s = begin.seconds + survey_s + reduce.seconds + zero_grad.seconds + inside_s
        self._bytes_inside += self._exchanged() - bytes_before
        sums = sums if self.axes.speaks else torch.zeros_like(sums)
        return StepResult(step, sums, passes, norm, verdict, time.perf_counter() - start, wait.seconds, comm_s)

    @torch.no_grad()
    def _survey(self, step: int, share: Share) -> float:
        """Let the task know what it must of the whole global batch; seconds of waiting for others. Collective."""
        self.model.train()
        parts = []
        for one in self.examples.micro_batches(step, share, takes_draws=self._takes_draws):
            with autocast(self.device, self.config.train.precision):
                parts.append(self.task.survey(self.model, one.batch, one.draws if self.model.takes_draws else None))
        sums = torch.stack(parts).sum(0)
        with Timed("sum of the survey") as summed:
            self.axes.data.sum_(sums)
        self.task.surveyed(sums, share.all_targets)
        return summed.seconds

    def _accumulate(self, step: int, share: Share) -> Tensor:
        """Backward over the micro-batches of this rank's share; their sums, on the last stage."""
        micro_batch = self.config.train.micro_batch
        self.model.train()
        weight = self.sync.weight(share.targets, share.all_targets) * self._scale
        self.noise_scale.weigh(weight, self.task.count(share.ids[:micro_batch].numpy()), share.all_targets)
        parts = list(self.examples.micro_batches(step, share, takes_draws=self._takes_draws))
        work = StepWork(
            parts,
            self.model,
            lambda model, one: self._sums_of(model, step, one),
            weight=weight,
            totals=torch.zeros(len(self.task.sums), dtype=torch.float64, device=self.device),
            room=self._room,
            sync=self.sync,
            noise_scale=self.noise_scale,
        )
        self.pipeline.run(work, len(parts))
        return work.totals

    def _room(self, batch: Batch) -> Tensor:
        """For the stream of a batch between two stages, (B, T, C)."""
        (num, time), tensor = batch.inputs.shape, self.axes.tensor
        if self.config.parallel.sequence:
            time = len(places(tensor.rank, tensor, time))
        return torch.empty((num, time, self.model.hidden_width), device=self.device)

    def _sums_of(self, model: LanguageModel, step: int, one: MicroBatch) -> Sums:
        """The task's sums over a micro-batch."""
        carried = self.recurrent_state
        state = None if carried is None else carried.before(one.rows, anew=self.examples.batches.starts_anew(step))
        with autocast(self.device, self.config.train.precision):
            sums, state = self._loss(model, one.batch, state, one.draws if self.model.takes_draws else None)
        if carried is not None and state is not None:
            carried.keep(one.rows, state)
        return sums

    @property
    def _scale(self) -> float:
        return self.scaler.scale if self.scaler else 1.0

    def _apply(self, step: int) -> tuple[Tensor, Verdict]:
        """Unscale, clip and apply the reduced gradient, or leave it out; its norm and what was decided."""
        norm = self._norm() / self._scale
        self.noise_scale.take(norm)
        verdict = Verdict.APPLY
        if self.scaler is not None and not torch.isfinite(norm) and self.scaler.scale > LossScaler.SMALLEST:
            verdict = Verdict.SKIP
        elif self._judges:
            verdict = self.guard.judge(float(norm))
        if verdict == Verdict.APPLY:
            self._clip(self.sync.to_apply(), norm)
            self.sync.step()
            self.pipeline.share_tied()
            if self.ema is not None:
                self.ema.update(step)
        if self.scaler is not None:
            before = self.scaler.scale
            self.scaler.update(is_finite=bool(torch.isfinite(norm)))
            if self.scaler.scale != before:
                self.sync.rescale(self.scaler.scale / before)
        return norm, verdict

    def _complete(self) -> None:
        """Add up over tensor ranks what each has of the gradients of parameters that all of them hold; collective."""
        trained = {name for name, _ in self.sync.named}
        names = [name for name in self.shared.partial if name in trained]
        if names and self.axes.tensor.size > 1:
            self.sync.complete(names, lambda part: summed(part, self.axes.tensor))

    def _norm(self) -> Tensor:
        """Of the gradient of the whole model; collective where ranks share one."""
        found = self.sync.squares(self.shared.square)
        squares = torch.zeros(len(self.whole.names), dtype=torch.float64, device=self.device)
        numbers = [number for number, name in enumerate(self.whole.names) if name in found]
        if numbers:
            squares[numbers] = torch.stack([found[self.whole.names[number]] for number in numbers])
        if self.axes.mesh.cuts_model:
            squares = self._over_model(squares)
        return norm_of(squares)

    def _over_model(self, squares: Tensor) -> Tensor:
        """Added up over the ranks of a replica, in one tree; what several hold alike counts once."""
        if self.axes.place.tensor:
            cuts = self.shared.cuts
            held = [name in cuts and not cuts[name].is_whole for name in self.whole.names]
            squares = squares.where(torch.tensor(held, device=self.device), 0.0)
        return added(self.axes.model.gather_rows(squares))

    def _clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Scale the gradients back, to at most `optim.clip`, in one pass or none."""
        if not gradients:  # of a stage that is frozen
            return
        clip = self.config.optim.clip
        factor = (clip / (norm + 1e-6)).clamp(max=1.0) / self._scale if clip else torch.ones_like(norm) / self._scale
        if self.device.type == "cpu":  # there it costs nothing to look
            if float(factor) != 1.0:
                torch._foreach_mul_(gradients, float(factor))
        elif clip or self.scaler:
            torch._foreach_mul_(gradients, factor)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The weights that count, in the model: the ranks' mean where they differ, the running mean where it is on."""
        if self.ema is not None:
            with self.ema.swapped():
                self.pipeline.share_tied()
                yield
            self.pipeline.share_tied()
        elif self.config.sync.keeps_replicas_equal:
            yield
        else:
            own = [parameter.detach().clone() for parameter in self.sync.parameters]
            self.sync.average_weights()
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_([*self.sync.parameters], own)

    def collect(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and plain values of a checkpoint besides weights and optimizer; collective, the same on all ranks."""
        self.sync.settle()
        tensors = {f"sync/{name}": tensor for name, tensor in self.sync.state().items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        if self.recurrent_state is not None:
            tensors |= {f"carried/{number}": part for number, part in enumerate(self.recurrent_state.gather())}
        scalars = {"sync": self.sync.kind, "guard": self.guard.to_dict(), "left_out": self.left_out}
        scaler = self.scaler.to_dict() if self.scaler else None
        return tensors, {**scalars, "val_losses": self.val_losses, "scaler": scaler}

    def pieces(self, tensors: Mapping[str, Tensor]) -> tuple[list[Piece], dict[str, Any]]:
        mesh, place = self.axes.mesh, self.axes.place
        among = place.data * mesh.tensor + place.tensor, mesh.data * mesh.tensor
        shares = Shares(among, (place.data, mesh.data))
        cuts = self.shared.cuts
        pieces, scalars = checkpoint.pieces_of(self.model, self.sync.kept_whole, tensors, cuts, shares)
        return pieces + self.sync.pieces(cuts, tells_whole=place.tensor == 0), scalars

    def load_optimizer(self, path: Path) -> None:
        self.sync.load_optimizer(Checkpoint(path), self.model, self.shared.cuts)

    def restore(self, path: Path) -> int:
        """Load a checkpoint; every rank reads what it holds of it. Returns the step to go on with."""
        found, cuts = Checkpoint(path), self.shared.cuts
        checkpoint.load_model(found, self.model, cuts=cuts)
        self.sync.load_optimizer(found, self.model, cuts)
        held = {name for name, _ in self.sync.named} if self.ema is not None else set()
        names = [n for n in found.names(ENGINE) if not n.startswith("ema/") or n.removeprefix("ema/") in held]
        tensors = found.read(ENGINE, names, {f"ema/{name}": cut for name, cut in cuts.items()})
        state, scalars = found.state, found.state.get("engine", {})
        if scalars.get("sync") == self.sync.kind:  # another way to combine begins afresh
            self.sync.load_state(_under("sync/", tensors))
        if self.ema is not None and any(name.startswith("ema/") for name in tensors):
            self.ema.load_state(_under("ema/", tensors))
        if self.recurrent_state is not None:
            carried = _under("carried/", tensors)
            if "carried" in tensors:  # of versions that knew one LSTM: of each layer its output, then its cell
                carried = {str(number): part for number, part in enumerate(tensors["carried"])}
            self.recurrent_state.load([carried[str(number)] for number in range(len(carried))])
        if self.scaler is not None and scalars.get("scaler"):
            self.scaler.load(scalars["scaler"])
        if "guard" in scalars:
            self.guard.load(scalars["guard"])
        self.left_out = scalars.get("left_out", 0)
        self.val_losses = self.losses_in(state)
        return state["step"]

    def agree(self) -> None:
        super().agree()
        self.pipeline.share_tied()

    def close(self) -> None:
        """Collective."""
        self._trace.close()
        self._reader.close()
        self.sync.close()
        self.axes.close()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
